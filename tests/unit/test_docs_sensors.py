"""The examples in `docs/sensors.md` are settings that the agent takes, and feed what the text says."""

import re
from pathlib import Path

import pytest

from edge_agent.intake import check_fed
from edge_agent.settings import EdgeSettings
from sluice.daemon.settings import load
from sluice.wire.manifest import TensorSpec

PAGE = (Path(__file__).parents[2] / "docs" / "sensors.md").read_text()
EXAMPLES = re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    ("number", "model", "shape"), [(0, "any", (1024,)), (1, "activity", (128, 9)), (2, "any", (18,))]
)
def test_the_examples_feed_what_they_say(tmp_path: Path, number: int, model: str, shape: tuple[int, ...]) -> None:
    file = tmp_path / "edge.toml"
    file.write_text(EXAMPLES[number])
    settings = load(EdgeSettings, file)
    check_fed(settings, model, [TensorSpec(name="x", dtype="float32", shape=shape)])


def test_there_are_three() -> None:
    assert len(EXAMPLES) == 3
