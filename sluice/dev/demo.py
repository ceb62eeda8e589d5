"""The demo: stream, train, partition, deploy, infer, tell; on the brokers that are given, else on embedded ones.

What it counts it counts from outside: answers on the sensor broker, rows over REST. Its exit code is 0 only if every
sample was answered exactly once in both places.
"""

from __future__ import annotations

import json
import runpy
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sluice.client import Client
from sluice.dev.sensor import Sensor
from sluice.dev.system import System
from sluice.doors.http import HttpDoor
from sluice.stage.segment import Arrays, load_segments
from sluice.wire import bundle as bundles
from sluice.wire import messages
from sluice.wire.codec import encode_tensor
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Manifest
from sluice.wire.messages import Offload
from sluice.wire.names import TIERS

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits"
MODEL = "digits"
HELD_OUT = 400
"""Images that are never sent to training; the sensor shows them to the devices."""
VALIDATION_RATE = 0.3
EPSILON = 0.04
"""The promise: at most 4 % of the answers differ from the full model's, with 95 % confidence. Some 420 images certify
it; for less they would not do, in some trainings, to let anything leave at the second exit."""
CODEC = "int8"
"""32 values cross a cut, one byte each; zstd would add its own header to them."""
PLACEMENT = ["edge", "fog", "cloud"]
"""So that every tier has something to do; a plan would leave so small a model on the device."""
EPOCHS = 40
RATE_HZ = 60.0


class Held:
    """The demo's data: what is sent to Kafka and what is held out, with the same noise."""

    def __init__(self) -> None:
        if not (EXAMPLE / "data.py").exists():
            raise PermanentError("the demo's example is not installed: run it from a clone of the repository")
        x, y = runpy.run_path(str(EXAMPLE / "data.py"))["noisy_digits"](seed=0)
        self.x: NDArray[np.uint8] = x[:HELD_OUT]
        self.y: NDArray[np.int64] = y[:HELD_OUT]
        self.stream = {"x": x[HELD_OUT:], "y": y[HELD_OUT:]}
        self.source = (EXAMPLE / "model.py").read_text()


def deploy(system: System, held: Held, console: Console, *, epochs: int = EPOCHS, **cut: Any) -> str:
    """Steps 1 to 4: data to Kafka, a training, a partition, a rollout; `cut`: settings of the partition in place of the
    demo's. Returns the bundle's digest."""
    run = secrets.token_hex(3)
    file = system.folder / "stream.npz"
    np.savez(file, **held.stream)
    console.print("[bold]1 Stream[/]: digits to Kafka as Avro, announced on sluice.control")
    stream_id = f"digits-{run}"
    arguments = ["send", str(file), "--topic", "digits", "--stream-id", stream_id, "--format", "avro"]
    arguments += ["--validation-rate", str(VALIDATION_RATE), "--bootstrap", system.brokers.bootstrap, "--json"]
    announced = json.loads(system.processes.run(arguments))
    console.print(f"  {announced['count']} images in {', '.join(announced['slices'])}")
    with system.client() as client:
        client.stream(stream_id, wait_s=60)
        console.print("[bold]2 Train[/]: three exits jointly, from that slice, in a job")
        client.add_model(MODEL, held.source)
        training = client.train(MODEL, stream_id, epochs=epochs, batch=64, learning_rate=0.004, seed=0)["id"]
        done = _follow(console, "training", lambda change: client.wait_for_training(training, change))
        _exits(console, done["result"]["metrics"])
        console.print("[bold]3 Partition[/]: cut at the early exits, certify thresholds on data not trained on, sign")
        settings = {"max_accuracy_loss": EPSILON, "codec": CODEC, "placement": PLACEMENT} | cut
        begun = client.partition(training, **settings)["id"]
        done = _follow(console, "partition", lambda change: client.wait_for_partition(begun, change))
        digest: str = done["bundle"]
        roll_out(client, digest, system, console)
    return digest


def roll_out(client: Client, digest: str, system: System, console: Console, point: str = "default") -> None:
    """Step 4: one call names the bundle and the devices; returns when all of them run it."""
    console.print(f"[bold]4 Deploy[/]: bundle {digest[:12]}… to {', '.join(system.devices)}")
    rollout = client.roll_out(digest, list(system.devices), point)
    done = client.wait_for_rollout(rollout["id"], timeout_s=60)
    failed = {d["device_id"]: d["last_error"] for d in done["devices"] if d["state"] != "done"}
    if failed:
        raise PermanentError(f"rollout failed: {failed}")


def infer(
    system: System,
    held: Held,
    console: Console,
    *,
    samples: int = HELD_OUT,
    rate_hz: float = RATE_HZ,
    tick: Callable[[int], None] | None = None,
    patience_s: float = 30.0,
) -> Sensor:
    """Step 5: the sensor shows the held-out images to the devices; returns what was told of each."""
    console.print(f"[bold]5 Infer[/]: {samples} held-out images over MQTT, {rate_hz:g} a second")
    sensor = Sensor(
        {device: system.brokers.as_user(device) for device in system.devices},
        held.x,
        run=f"r{secrets.token_hex(3)}",
        uplink=system.brokers.as_user("gateway"),
    )
    sensor.start()
    try:
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("answers", total=samples)

            def progress(count: int) -> None:
                bar.update(task, completed=count)
                if tick:
                    tick(count)

            sensor.publish([i % len(held.x) for i in range(samples)], rate_hz, progress)
            sensor.wait(patience_s)
    finally:
        sensor.stop()
    return sensor


def tell(system: System, held: Held, digest: str, sensor: Sensor) -> dict[str, Any]:
    """Step 6: the summary as it stands in `demo.json`."""
    told, y, x = sensor.told, held.y, held.x
    finals = [(i, t, t.finals[0]) for i, t in enumerate(told) if t.finals]
    rows, repeats = _results(system, sensor.run_id, len(told))
    latency = {
        tier: np.array([(t.answered_ns - t.sent_ns) / 1e6 for _, t, p in finals if p.tier == tier]) for tier in TIERS
    }
    every = np.concatenate(list(latency.values())) if finals else np.array([np.nan])
    right = {tier: [p.label == y[i % len(y)] for i, _, p in finals if p.tier == tier] for tier in TIERS}
    full, manifest = full_model(system, digest, x)
    answered_rows = {row["source_id"] for row in rows if row["status"] == "final"}
    lost_device = sum(not t.finals for t in told)
    lost_results = len(told) - len(answered_rows)
    return {
        "sent": len(told),
        "answered": len(finals),
        "lost": max(lost_device, lost_results),
        "lost_at_device": lost_device,
        "lost_in_results": lost_results,
        "duplicates": sum(len(t.finals) - 1 for t in told if t.finals) - sensor.redelivered,
        "repeated_across_reconnect": sensor.redelivered,
        "repeats_on_predictions_topic": repeats,
        "provisional": sum(t.provisionals for t in told),
        "accuracy": _mean([r for tier in TIERS for r in right[tier]]),
        "full_model_accuracy": _mean([full[i % len(y)] == y[i % len(y)] for i in range(len(told))]),
        "agreement": _mean([p.label == full[i % len(y)] for i, _, p in finals]),
        "exits": {tier: len(right[tier]) for tier in TIERS},
        "accuracy_by_tier": {tier: _mean(right[tier]) for tier in TIERS},
        "p50_ms": float(np.percentile(every, 50)),
        "p99_ms": float(np.percentile(every, 99)),
        "latency_ms": {
            tier: {"p50": float(np.percentile(ms, 50)), "p99": float(np.percentile(ms, 99))} if len(ms) else None
            for tier, ms in latency.items()
        },
        "bytes_up": sensor.bytes_up,
        "bytes_raw": raw_bytes(manifest, finals, x),
        "certificate": _certificate(manifest),
    }


def show(summary: dict[str, Any], console: Console) -> None:
    """Step 6, for people."""
    console.print("[bold]6 Tell[/]")
    table = Table("tier", "answered", "share", "accuracy", "p50 ms", "p99 ms", title="sensor to answer, by tier")
    for tier in TIERS:
        count, latency = summary["exits"][tier], summary["latency_ms"][tier] or {}
        table.add_row(
            tier,
            str(count),
            f"{count / max(summary['answered'], 1):.1%}",
            f"{summary['accuracy_by_tier'][tier]:.1%}" if count else "",
            f"{latency.get('p50', float('nan')):.1f}",
            f"{latency.get('p99', float('nan')):.1f}",
        )
    console.print(table)
    ratio = summary["bytes_up"] / summary["bytes_raw"] if summary["bytes_raw"] else float("nan")
    verdict = "saved" if ratio < 1 else "not saved"
    console.print(
        f"accuracy {summary['accuracy']:.1%}, full model {summary['full_model_accuracy']:.1%}, "
        f"same answer {summary['agreement']:.1%}\n"
        f"bytes up {summary['bytes_up']}, raw input {summary['bytes_raw']} (ratio {ratio:.2f}: {verdict}; "
        "on 8x8 images the header of a message weighs more than the image)\n"
        f"sent {summary['sent']}, answered {summary['answered']}, lost {summary['lost']}, "
        f"duplicates {summary['duplicates']}"
    )
    if not all(summary["exits"].values()):
        console.print("[yellow]not every tier answered something: the promise left no room for it this time[/]")


def went_well(summary: dict[str, Any]) -> bool:
    """Whether every sample was answered exactly once, at the device and in the results."""
    return bool(summary["lost"] == 0) and summary["duplicates"] == 0 and summary["answered"] == summary["sent"]


def full_model(system: System, digest: str, x: NDArray[np.uint8]) -> tuple[NDArray[np.int64], Manifest]:
    """The full model's labels for `x`: all segments in a row, float tensors between them, no early exit."""
    folder = system.folder / "full"
    door = HttpDoor(system.url, system.token)
    manifest = door.fetch_bundle(digest, folder, None, lambda manifest: range(len(manifest.segments)))
    door.close()
    segments = load_segments(folder, bundles.open_bundle(folder, digest).manifest, range(len(manifest.segments)))
    tensors: Arrays = {manifest.inputs[0].name: x}
    for segment in segments:
        tensors = {**tensors, **segment.run(tensors)}
    last = manifest.segments[-1].exit
    assert last is not None
    return tensors[last.logits].astype(np.float32).argmax(axis=1), manifest


def raw_bytes(manifest: Manifest, finals: list[Any], x: NDArray[np.uint8]) -> int:
    """What the same samples would weigh, each sent up as its raw input in the same kind of message."""
    spec = manifest.inputs[0]
    total = 0
    for i, _, p in finals:
        offload = Offload(
            p.device_id, p.epoch, p.seq, p.source_id, p.model, p.bundle, p.operating_point, "cloud", 0, (), (),
            p.captured_at, 60_000,
        )  # fmt: skip
        tensors = (encode_tensor(x[i % len(x)], spec, "raw"),)
        total += len(messages.encode(replace(offload, tensors=tensors)))
    return total


def _results(system: System, run: str, wanted: int, patience_s: float = 20.0) -> tuple[list[dict[str, Any]], int]:
    """(rows of this run, how often a sample stood on the predictions topic beyond the first time)."""
    import time

    deadline = time.monotonic() + patience_s
    with system.client() as client:
        while True:
            every = client.every_prediction()
            rows = [row for row in every if (row["source_id"] or "").startswith(f"{run}-")]
            if len(rows) >= wanted or time.monotonic() > deadline:
                break
            time.sleep(0.3)
    repeated = [name for name, count in Counter(row["source_id"] for row in rows).items() if count > 1]
    if repeated:
        raise PermanentError(f"results show samples more than once: {repeated[:5]}")
    return rows, sum(row["repeats"] for row in rows)


def _follow(
    console: Console, what: str, wait: Callable[[Callable[[dict[str, Any]], None]], dict[str, Any]]
) -> dict[str, Any]:
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)

        def change(job: dict[str, Any]) -> None:
            metrics, progress = job.get("metrics"), job.get("progress")
            if metrics:
                bar.update(task, completed=metrics[-1]["epoch"], total=metrics[-1]["epochs"])
            elif progress:
                bar.update(task, description=progress["what"], completed=progress["done"], total=progress["total"])

        return wait(change)


def _exits(console: Console, metrics: dict[str, Any]) -> None:
    for name, values in metrics.items():
        accuracy = values.get("val_accuracy", values.get("accuracy"))
        console.print(f"  exit {name}: validation accuracy {accuracy:.1%}")


def _certificate(manifest: Manifest) -> dict[str, Any] | None:
    certificate = manifest.operating_point("default").certificate
    return certificate.model_dump() if certificate else None


def _mean(values: list[Any]) -> float:
    return float(np.mean(values)) if values else float("nan")
