"""The samples, divided: nothing on two sides, the certificate gets most, groups stay together."""

import numpy as np
import pytest
from numpy.typing import NDArray

from partitioner.promise.parts import FEW_GROUPS, Parts, split_parts
from sluice.wire.errors import PermanentError


def sizes(parts: Parts) -> list[int]:
    return [len(one) for one in (parts.train, parts.temperature, parts.plan, parts.certify)]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("n", [4, 20, 400, 2501])
def test_every_sample_is_in_one_part_and_most_certify(n: int, train: bool) -> None:
    parts = split_parts(n, None, 3, train=train)
    every = np.concatenate([parts.train, parts.temperature, parts.plan, parts.certify])
    assert np.sort(every).tolist() == list(range(n))
    assert all(np.all(np.diff(one) > 0) for one in (parts.train, parts.temperature, parts.plan, parts.certify))
    train_size, *others = sizes(parts)
    assert all(others) and (train_size > 0) == train
    assert len(parts.certify) >= len(parts.plan) >= len(parts.temperature)
    if n >= 20:
        assert len(parts.certify) >= 0.7 * (n - train_size)


def test_the_seed_decides() -> None:
    first, again, other = (split_parts(500, None, seed, train=False) for seed in (1, 1, 2))
    assert np.array_equal(first.certify, again.certify) and np.array_equal(first.plan, again.plan)
    assert not np.array_equal(first.certify, other.certify)


def test_samples_enough_for_one_percent_are_enough_in_all() -> None:
    """299 certify 1 % at 95 %; about 400 have to be given for that."""
    assert len(split_parts(400, None, 0, train=False).certify) >= 299
    assert sizes(split_parts(2500, None, 0, train=False)) == [0, 150, 375, 1975]


def people(counts: list[int]) -> NDArray[np.str_]:
    names = np.repeat([f"person-{i}" for i in range(len(counts))], counts)
    return np.random.default_rng(0).permutation(names)


@pytest.mark.parametrize("counts", [[10, 10, 10, 10], [300, 5, 5, 5, 90], [40] * 17, [7] * 19 + [400], [3] * 200])
@pytest.mark.parametrize("train", [False, True])
def test_a_group_stands_on_one_side(counts: list[int], train: bool) -> None:
    groups = people(counts)
    for seed in range(5):
        parts = split_parts(len(groups), groups, seed, train=train)
        used = [one for one in (parts.train, parts.temperature, parts.plan, parts.certify) if len(one)]
        assert len(used) == 3 + train and sum(map(len, used)) == len(groups)
        met = [set(groups[one].tolist()) for one in used]
        assert sum(map(len, met)) == len(counts), "a group is in two parts"


def test_few_groups_are_placed_by_size_so_that_most_samples_certify() -> None:
    groups = people([300, 5, 5, 5, 90])
    for seed in range(5):
        assert len(split_parts(len(groups), groups, seed, train=False).certify) >= 300


def test_of_many_groups_chance_alone_decides() -> None:
    """A large group certifies no oftener than a small one: the certifying ones stand for new ones."""
    groups = people([2000] + [10] * (FEW_GROUPS + 20))
    seeds = range(400)
    found = [split_parts(len(groups), groups, seed, train=False).certify for seed in seeds]
    met = [set(groups[one].tolist()) for one in found]
    share = len(met[0]) / (FEW_GROUPS + 21)
    assert len({len(one) for one in met}) == 1
    for name in ("person-0", "person-1"):
        often = sum(name in one for one in met) / len(seeds)
        assert abs(often - share) < 4 * np.sqrt(share * (1 - share) / len(seeds))


def test_too_few_to_divide_are_refused() -> None:
    for counts, train in [([50, 50], False), ([50, 50, 50], True)]:
        groups = people(counts)
        with pytest.raises(
            PermanentError, match=rf"{len(counts)} groups for {3 + train} parts .* calibrate by samples"
        ):
            split_parts(len(groups), groups, 0, train=train)
    with pytest.raises(PermanentError, match="2 samples for 3 parts"):
        split_parts(2, None, 0, train=False)
