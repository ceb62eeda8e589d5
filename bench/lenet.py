"""The whole path with a LeNet on MNIST in two segments: bundles made here, rolled out for real, on real brokers.

Half of the images exit early, on the device: the threshold is the median of the early exit's confidence. For benchmarks
of load (`bench_replay`, `bench_saturation`, `bench_hot_swap`); what they measure is the path, not the model.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bench.chains import LOGITS, lenet, pieces, quiet_keras, segment_of, train
from bench.data import Images, mnist
from sluice.client import Client
from sluice.dev.processes import Processes
from sluice.dev.system import Brokers, System, start_system
from sluice.stage.policy import probabilities
from sluice.stage.segment import RunningSegment, load_segment
from sluice.wire import bundle as bundles
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import ExitPolicy, Manifest, OperatingPoint, Provenance, Segment
from tests.brokers.kafka import Kafka
from tests.brokers.mosquitto import Mosquitto

MODEL = "lenet"
IMAGES = 2000
"""Test images that sensors show."""
TAUGHT = 20_000
"""Training images of one epoch: enough for a model that is sure of half of the images."""
GOLDEN = 8
CODEC = "zstd"
"""Loses nothing, so that every answer can be compared with what the bundle's own chain gives."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Chain:
    """A bundle: its folder, digest, threshold, and its segments, to run them here."""

    folder: Path
    digest: str
    threshold: float
    segments: tuple[RunningSegment, ...]

    def probabilities(self, x: Images) -> tuple[Floats, Floats]:
        """What its exits make of images (n, 28, 28, 1): (n, 10) each, of the early and the final one."""
        first = self.segments[0].run({"x": x})
        return (
            probabilities(first[LOGITS].astype(np.float32), 1.0),
            probabilities(self.segments[1].run({"h0": first["h0"]})[LOGITS].astype(np.float32), 1.0),
        )

    def mixed(self, other: Chain, x: Images) -> Floats:
        """What its first segment and the `other`'s second one would make of images: what must never be."""
        h0 = self.segments[0].run({"x": x})["h0"]
        return probabilities(other.segments[1].run({"h0": h0})[LOGITS].astype(np.float32), 1.0)


def images() -> Images:
    """The images that sensors show, (n, 28, 28, 1)."""
    return mnist()[2][:IMAGES, ..., None]


def make_chain(folder: Path, seed: int, version: int = 1) -> Chain:
    """A LeNet, trained briefly from `seed`, as an unsigned bundle in `folder`.

    Operating points: `default` (edge, fog), `sure` (the same, but only a tenth exits early), `up` (all on the fog:
    the raw image is offloaded), `device` (all on the device).
    """
    x_train, y_train, _, _ = mnist()
    quiet_keras().utils.set_random_seed(seed)
    model = lenet()
    train(model, x_train[:TAUGHT, ..., None], y_train[:TAUGHT], epochs=1, batch=128)
    x = images()
    tensors: dict[str, Any] = {"x": x[:GOLDEN]}
    specs, running = [], []
    for index, piece in enumerate(pieces(model, "block")):
        content, spec = segment_of(piece, index)
        running.append(load_segment(content, spec))
        made = running[-1].run(tensors)
        golden = {f"in.{tensor.name}": tensors[tensor.name] for tensor in spec.inputs}
        golden |= {f"out.{name}": array for name, array in made.items()}
        specs.append(_stored(folder, spec, content, golden))
        tensors |= made
    early = probabilities(running[0].run({"x": x})[LOGITS].astype(np.float32), 1.0).max(axis=1)
    half, tenth = (float(np.quantile(early, share)) for share in (0.5, 0.9))
    placements = {"default": ("edge", "fog"), "sure": ("edge", "fog"), "up": ("fog", "fog"), "device": ("edge", "edge")}
    points = tuple(
        OperatingPoint.model_validate(
            {
                "id": name,
                "placement": placement,
                "codec": CODEC,
                "policies": _policies(tenth if name == "sure" else half),
            }
        )
        for name, placement in placements.items()
    )
    manifest = Manifest(
        model=MODEL,
        version=version,
        labels=tuple("0123456789"),
        inputs=specs[0].inputs,
        segments=tuple(specs),
        operating_points=points,
        provenance=Provenance(created_at=""),
    )
    data = manifest.model_dump_json().encode()
    bundles.write_atomically(folder / bundles.MANIFEST, data)
    return Chain(folder, bundles.sha256(data), half, tuple(running))


def _policies(threshold: float) -> list[dict[str, Any]]:
    return [ExitPolicy(measure="max_prob", threshold=threshold).model_dump()] * 2


def _stored(folder: Path, spec: Segment, content: bytes, golden: Mapping[str, Any]) -> Segment:
    """The segment with its files in the bundle's folder."""
    packed, blobs = io.BytesIO(), folder / bundles.BLOBS
    np.savez(packed, **golden)
    files = {"file": bundles.write_blob(blobs, content), "golden": bundles.write_blob(blobs, packed.getvalue())}
    return spec.model_copy(update=files)


@dataclass(frozen=True, slots=True)
class Stand:
    """The whole path, running, and what is rolled out on it."""

    system: System
    chains: tuple[Chain, ...]
    pids: dict[str, int]
    """All processes of the path by their names, brokers too."""

    def roll_out(self, chain: Chain, point: str = "default") -> None:
        """To all devices; returns when all of them run it."""
        with self.system.client() as client:
            begun = client.roll_out(chain.digest, list(self.system.devices), point)
            done = client.wait_for_rollout(begun["id"], timeout_s=120)
        failed = {d["device_id"]: d["last_error"] for d in done["devices"] if d["state"] != "done"}
        if failed:
            raise PermanentError(f"rollout failed: {failed}")


@contextmanager
def standing(
    folder: Path,
    console: Console,
    devices: Sequence[str],
    *,
    bundles_wanted: int = 1,
    extra: Mapping[str, Mapping[str, str]] | None = None,
) -> Iterator[Stand]:
    """The whole path with its brokers; the first of the bundles runs on all devices."""
    console.print(f"training {bundles_wanted} LeNet for MNIST")
    chains = tuple(make_chain(folder / f"bundle-{n}", seed=n, version=n + 1) for n in range(bundles_wanted))
    with Mosquitto() as mosquitto, Kafka() as kafka, Processes(folder / "logs") as processes:
        brokers = Brokers(mosquitto.host, mosquitto.port, kafka.bootstrap)
        system = start_system(processes, folder, brokers, devices=devices, say=console.print, extra=extra)
        with system.client() as client:
            for chain in chains:
                _upload(client, chain)
        pids = {name: process.child.pid for name, process in system.by_name.items()}
        stand = Stand(system, chains, {**pids, "mosquitto": mosquitto.pid, "kafka": kafka.pid})
        console.print(f"rolling out to {len(devices)} devices")
        stand.roll_out(chains[0])
        yield stand
        if dead := [process.name for process in processes.dead()]:
            raise RuntimeError(f"ended by themselves: {', '.join(dead)}")


def _upload(client: Client, chain: Chain) -> None:
    stored = client.upload_bundle(chain.folder)
    assert stored["digest"] == chain.digest


def cpu_s(pids: Mapping[str, int]) -> dict[str, float]:
    """CPU time so far of each process, s (`proc(5)`: stat)."""
    spent = {}
    for name, pid in pids.items():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        spent[name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent


def machine_s() -> float:
    """CPU time so far of everything on this machine, s (`proc(5)`: /proc/stat; user, nice, system, irq, softirq)."""
    user, nice, system, _idle, _wait, irq, soft = (int(n) for n in Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")
