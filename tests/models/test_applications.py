"""Models of `keras.applications`, as they are and as a backbone under a new head: taken apart, cut, and whole again."""

import statistics
import time
from typing import Any

import numpy as np
import pytest

from tests.models.backbones import images, transferred, whole

pytestmark = [pytest.mark.tensorflow, pytest.mark.models]

SINGLE = {"MobileNetV2": 74, "ResNet50": 39, "EfficientNetB0": 84}
"""Places between layers that a single tensor crosses; the raw input comes on top."""


@pytest.fixture(scope="module", params=[f"{build} {name}" for name in SINGLE for build in ("whole", "transferred")])
def model(request: pytest.FixtureRequest) -> tuple[str, bool, Any]:
    build, name = request.param.split()
    return name, build == "whole", {"whole": whole, "transferred": transferred}[build](name)


def test_split_points_and_the_ends_of_blocks_among_them(model: tuple[str, bool, Any]) -> None:
    from partitioner.anatomy.exits import anatomy
    from partitioner.anatomy.splits import split_points

    name, as_it_is, built = model
    found = anatomy(built)
    points = split_points(found)
    assert (found.task, found.classes, len(points)) == ("classification", 10, len(found.trunk))
    single = sum(len(point.keys) == 1 for point in points)
    if as_it_is:
        assert single == SINGLE[name] + 1
    else:
        assert single >= SINGLE[name]
    ends = [point for point in points if point.block_end]
    assert single / 3 < len(ends) < single * 2 / 3
    assert all(len(point.keys) == 1 for point in ends)
    inside = ("_conv", "_expand", "_depthwise", "_dwconv", "_pad")
    assert not [point.name for point in ends if point.name.endswith(inside)]
    assert [point.macs_before for point in points] == sorted(point.macs_before for point in points)
    taken = []
    for _ in range(5):
        begun = time.perf_counter()
        split_points(found)
        taken.append(time.perf_counter() - begun)
    assert statistics.median(taken) < 0.05


def test_known_places_of_mobilenet() -> None:
    from partitioner.anatomy.exits import anatomy
    from partitioner.anatomy.splits import find_split, split_points

    for built in (whole("MobileNetV2"), transferred("MobileNetV2")):
        points = split_points(anatomy(built))
        for name, kib, share in (
            ("block_3_project_BN", 4.5, 0.30),
            ("block_6_project_BN", 2.25, 0.40),
            ("block_13_project_BN", 1.40625, 0.75),
        ):
            point = find_split(points, name)
            assert point.block_end and point.nbytes("int8") == kib * 1024
            assert point.macs_before / (point.macs_before + point.macs_after) == pytest.approx(share, abs=0.01)


def test_cut_at_two_ends_of_blocks_it_is_the_model_again(model: tuple[str, bool, Any]) -> None:
    from partitioner.anatomy.cut import cut, ends_of, piece_model
    from partitioner.anatomy.exits import anatomy
    from partitioner.anatomy.splits import split_points

    _, _, built = model
    found = anatomy(built)
    ends = [point for point in split_points(found) if point.block_end]
    chosen = [ends[len(ends) // 4], ends[3 * len(ends) // 4]]
    made = cut(found, ends_of(found, [], chosen))
    assert [piece.name for piece in made.pieces] == [*(point.name for point in chosen), found.exits[-1].name]
    assert made.pieces[0].macs == chosen[0].macs_before
    image = images(1, made.inputs[0].dtype)
    tensors: dict[str, Any] = {"x": image}
    for piece in made.pieces:
        tensors |= piece_model(made, piece)([tensors[t.name] for t in piece.inputs], training=False)
    logits = np.asarray(tensors["logits"])
    chances = np.asarray(built(image, training=False))
    told = chances > 1e-30  # the others ran out of float32
    wanted = np.log(chances[told])
    assert np.ptp(logits) > 0.1 and told.sum() > 1, "the signal gets through"
    made_of = logits[told] - logits[told].mean()
    np.testing.assert_allclose(made_of, wanted - wanted.mean(), atol=1e-5 * max(1, np.ptp(logits)))
