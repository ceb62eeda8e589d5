"""Decoders against damaged messages: some thousands here, a million with `make fuzz`; and what that found once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sluice.wire.state import State
from tests.fuzz.feed import Feeder
from tests.fuzz.mutate import mutants
from tests.fuzz.targets import STATES, Target, targets
from tests.fuzz.worker import place_of, work

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"
INPUTS = 400
NAMES = (*targets(), "golden")


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    from tests.unit.bundle_support import make_bundle

    return targets(make_bundle(tmp_path_factory.mktemp("fuzz")).folder)


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", NAMES)
def test_damaged_messages_are_refused_and_nothing_else_happens(
    every: dict[str, Target], name: str, tmp_path: Path
) -> None:
    with place_of(tmp_path / "shared") as place:
        seen = work(every[name], 1, INPUTS, place)
    assert seen["inputs"] == INPUTS
    assert [words for words, _ in seen["troubles"].values()] == []


@pytest.mark.parametrize("file", sorted(CORPUS.glob("*/*")), ids=lambda file: f"{file.parent.name}-{file.name}")
def test_what_broke_a_decoder_once_does_not_break_it_again(every: dict[str, Target], file: Path) -> None:
    feeder = Feeder(every[file.parent.name].feed)
    fed = feeder(file.read_bytes())
    feeder.close()
    assert fed.trouble is None


@pytest.fixture
def remembering() -> Iterator[list[bytes]]:
    """Holds what a leaking decoder would."""
    kept: list[bytes] = []
    yield kept
    kept.clear()


def _crash(data: bytes) -> None:
    raise KeyError(data)


@pytest.mark.parametrize(
    ("feed", "trouble"),
    [
        (_crash, "KeyError"),
        (lambda _data: bytearray(b"x" * 100_000_000), "memory: "),
        (lambda _data: [sum(range(1_000_000)) for _ in range(400)], "slow: "),
    ],
)
def test_what_a_decoder_must_not_do_is_seen(feed: object, trouble: str) -> None:
    feeder = Feeder(feed)  # type: ignore[arg-type]
    fed = feeder(b"abc")
    feeder.close()
    assert fed.trouble is not None
    assert trouble in fed.trouble


def test_what_is_remembered_from_input_to_input_is_seen(remembering: list[bytes], tmp_path: Path) -> None:
    leaking = Target(lambda data: remembering.append(data + b"x" * 1_000_000), targets()["slices"].valid)
    with place_of(tmp_path / "shared") as place:
        seen = work(leaking, 1, 2000, place)
    assert "kept:" in seen["troubles"]


def test_damage_is_the_same_for_a_seed() -> None:
    valid = [b'{"values": [1, 2]}', b'{"values": 7}']
    assert mutants(valid, 5, 50) == mutants(valid, 5, 50) != mutants(valid, 6, 50)


def test_every_message_of_state_is_fuzzed() -> None:
    assert set(State.__subclasses__()) == set(STATES)
