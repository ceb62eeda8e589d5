"""tflite-runtime, the runtime of 32-bit devices, on ARM: it crashes there on what it takes on x86-64.

It dies for a FULLY_CONNECTED that is quantised by channel and has no bias, at two rows or more; `convert.py` makes none
such. On the 32-bit device only the segments are run: some of the agent's packages are to be had as source alone there
(`deploy/README.md`).
"""

import json
from pathlib import Path

import pytest

from tests.device.machine import RASPBERRY_PI_2, RASPBERRY_PI_4, Kind, machine, tflite_runtime
from tests.device.test_runtime import PROVE
from tests.integration.edge_support import MadeBundle, make_bundle

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(900)]

NO_BIAS = """
keras.utils.set_random_seed(4)
x = keras.Input((6, 6, 1), dtype="uint8")
a = layers.Dense(32, use_bias=False, activation="relu")(layers.Flatten()(layers.Rescaling(1 / 255)(x)))
first = layers.Dense(3, name="first")(a)
b = layers.Dense(32, use_bias=False)(layers.Dense(32, activation="relu")(a))
final = layers.Dense(3, name="final")(layers.ReLU()(b))
model = keras.Model(x, [first, final])
"""


@pytest.fixture(scope="module")
def no_bias(tmp_path_factory: pytest.TempPathFactory) -> MadeBundle:
    return make_bundle(tmp_path_factory.mktemp("no-bias"), "int8", NO_BIAS)


@pytest.mark.parametrize("kind", [RASPBERRY_PI_4, RASPBERRY_PI_2], ids=lambda kind: kind.machine)
def test_golden_samples_pass_on_tflite_runtime(
    kind: Kind,
    wheel: Path,
    floats: MadeBundle,
    integers: MadeBundle,
    no_bias: MadeBundle,
    tmp_path: Path,
    tell: list[str],
) -> None:
    device = machine(kind, tflite_runtime(kind), wheel, tmp_path)
    done = device.run(str(PROVE), *(str(made.folder) for made in (floats, integers, no_bias)))
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    told = json.loads(done.stdout)
    assert told["profile"]["machine"] == kind.machine
    assert told["profile"]["runtime"].startswith("tflite-runtime ")
    for name, bundle in zip(("float32", "int8", "int8 without bias"), told["bundles"], strict=True):
        off = [max(segment["off"].values()) for segment in bundle]
        assert all(far <= segment["tolerance"] for far, segment in zip(off, bundle, strict=True))
        delegates = [segment["delegate"] for segment in bundle]
        tell.append(
            f"{kind.machine} tflite-runtime, {name}: off by {', '.join(f'{far:.2g}' for far in off)}; "
            f"XNNPACK {'in' if any(delegates) else 'not in'} use"
        )
