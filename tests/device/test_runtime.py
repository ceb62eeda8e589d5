"""What a device installs works there: every compiled package, the runtime with XNNPACK, the golden samples."""

import json
from pathlib import Path

import pytest

from tests.device.machine import Machine
from tests.integration.edge_support import MadeBundle

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(900)]

PROVE = Path(__file__).parents[1] / "prove.py"
IMPORTS = """
import importlib, json, pkgutil, platform, sys
import edge_agent

for module in pkgutil.iter_modules(edge_agent.__path__):
    importlib.import_module(f"edge_agent.{module.name}")
from ai_edge_litert import interpreter
from sluice.stage import segment
from sluice.wire import codec, messages, signing

segment.runtime()
print(json.dumps({
    "machine": platform.machine(),
    "compiled": sorted(n for n, m in sys.modules.items() if str(getattr(m, "__file__", "")).endswith(".so")),
    "absent": [n for n in ("tensorflow", "confluent_kafka", "fastapi") if importlib.util.find_spec(n)],
}))
"""
COMPILED = (
    "numpy._core._multiarray_umath",
    "pydantic_core._pydantic_core",
    "fastavro._read",
    "zstandard.backend_c",
    "nacl._sodium",
)
"""Packages that have slower ways around their compiled part, or none."""


def test_everything_that_the_agent_imports_is_there_and_compiled_for_it(pi: Machine) -> None:
    done = pi.run("-c", IMPORTS)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["machine"] == "aarch64" and told["absent"] == []
    assert set(COMPILED) <= set(told["compiled"])
    assert any(name.startswith("ai_edge_litert.") for name in told["compiled"])


def test_golden_samples_of_this_machine_pass_there_with_xnnpack(
    pi: Machine, floats: MadeBundle, integers: MadeBundle, tell: list[str]
) -> None:
    done = pi.run(str(PROVE), str(floats.folder), str(integers.folder))
    assert done.returncode == 0, done.stderr
    assert "Created TensorFlow Lite XNNPACK delegate" in done.stderr
    told = json.loads(done.stdout)
    assert told["profile"]["machine"] == "aarch64" and told["profile"]["runtime"].startswith("ai-edge-litert ")
    for name, bundle in zip(("float32", "int8"), told["bundles"], strict=True):
        assert len(bundle) == 2
        for index, segment in enumerate(bundle):
            assert segment["delegate"] and not segment["delegate_without"], "XNNPACK is left out"
            assert segment["samples"] > 1
            assert max(segment["off"].values()) <= segment["tolerance"]
            tell.append(
                f"aarch64 golden samples, {name} segment {index}: off by {segment['off']['single']:.2g} one by one, "
                f"{segment['off']['together']:.2g} together; tolerance {segment['tolerance']:.2g}"
            )
