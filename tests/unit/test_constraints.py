"""The two constraints files: plain pins, and the same versions wherever the two runtimes allow it."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
APART = {"numpy", "tflite-runtime"}
"""tflite-runtime 2.14 needs a NumPy before 2."""


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    assert all(line.count("==") == 1 and " " not in line for line in lines)
    return dict(line.split("==") for line in lines)


def test_the_environment_of_tflite_runtime_differs_from_the_others_where_it_has_to() -> None:
    main, other = pins("constraints.txt"), pins("constraints-tflite-runtime.txt")
    assert {name: version for name, version in other.items() if main.get(name) != version}.keys() == APART
