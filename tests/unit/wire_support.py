"""Whole, valid examples of what travels; a test changes the one thing that it is about."""

from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, settings

from sluice.wire.manifest import Manifest
from sluice.wire.messages import Belief, Offload, Prediction, Tensor

EPOCH = "0123456789abcdef"
DIGEST = "ab" * 32
DEFAULT = ["edge", "fog", "cloud"]

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For hypothesis on a machine that others use as well: no test fails because it took long."""


def offload(**changes: Any) -> Offload:
    """An offload to the fog, of the model that `manifest` describes."""
    example = Offload(
        device_id="pi-1",
        epoch=EPOCH,
        seq=7,
        source_id="reading 7",
        model="gate",
        bundle=DIGEST,
        operating_point="default",
        tier="fog",
        next_segment=1,
        tensors=(Tensor("h0", "float32", (3,), 0.0, 0, "raw", bytes(12)),),
        beliefs=(Belief(0, 1, 0.5),),
        captured_at=1_700_000_000_000_000,
        ttl_ms=30_000,
        compute_us={"edge": 120},
        bytes_sent=0,
        trace="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )
    return replace(example, **changes)


def prediction(**changes: Any) -> Prediction:
    """A final prediction of the fog's exit."""
    example = Prediction(
        device_id="pi-1",
        epoch=EPOCH,
        seq=7,
        source_id=None,
        model="gate",
        bundle=DIGEST,
        operating_point="default",
        tier="fog",
        exit=1,
        label=1,
        confidence=0.75,
        outputs=bytes(8),
        status="final",
        reason="exit",
        captured_at=1_700_000_000_000_000,
        produced_at=1_700_000_000_500_000,
        compute_us={"edge": 120, "fog": 80},
        bytes_sent=310,
        trace=None,
    )
    return replace(example, **changes)


def tensor_spec(name: str, *shape: int, dtype: str = "float32") -> dict[str, Any]:
    """A tensor as the manifest names it, with a scale for codec int8."""
    return {"name": name, "dtype": dtype, "shape": list(shape), "scale": 0.5, "zero_point": 3}


def _segment(index: int, inputs: list[Any], outputs: list[Any], passes: list[str]) -> dict[str, Any]:
    blob = {"sha256": f"{index}" * 64, "size": 10}
    return {
        "index": index,
        "file": blob,
        "inputs": inputs,
        "outputs": outputs,
        "passes": passes,
        "exit": {"name": f"exit {index}", "logits": f"l{index}"},
        "macs": 100,
        "golden": blob,
        "tolerance": 0.001,
    }


def operating_point(name: str, placement: list[str], codec: str = "raw") -> dict[str, Any]:
    """One that answers at a confidence of 0.9."""
    policy = {"measure": "max_prob", "threshold": 0.9}
    return {"id": name, "placement": placement, "codec": codec, "policies": [policy] * 3}


def manifest_dict() -> dict[str, Any]:
    """Three segments with an exit each; the last reads `x` as well, which the others pass on untouched."""
    x, h0, h1 = tensor_spec("x", 4), tensor_spec("h0", 3), tensor_spec("h1", 2)
    return {
        "model": "gate",
        "version": 1,
        "labels": ["open", "shut"],
        "inputs": [x],
        "segments": [
            _segment(0, [x], [h0], ["x"]),
            _segment(1, [h0], [h1], ["x"]),
            _segment(2, [h1, x], [], []),
        ],
        "operating_points": [
            operating_point("default", DEFAULT),
            operating_point("small", DEFAULT, "int8-zstd"),
            operating_point("two-fog", ["edge", "fog", "fog"]),
            operating_point("all-edge", ["edge", "edge", "edge"]),
        ],
        "provenance": {"created_at": "2026-11-20T00:00:00+00:00"},
    }


def manifest() -> Manifest:
    """`manifest_dict`, checked."""
    return Manifest.model_validate(manifest_dict())
