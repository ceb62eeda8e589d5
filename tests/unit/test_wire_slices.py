"""Slices are read as they are written, and nothing else is one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.wire.errors import PermanentError
from sluice.wire.slices import Slice, merged, parse_slice
from tests.unit.wire_support import patient


@patient
@given(
    st.from_regex(r"[A-Za-z0-9._-]{1,249}", fullmatch=True),
    st.integers(0, 10**9 - 1),
    st.integers(0, 10**18 - 1),
    st.integers(0, 10**18 - 1),
)
def test_it_reads_what_it_writes(topic: str, partition: int, offset: int, length: int) -> None:
    one = Slice(topic, partition, offset, length)
    assert parse_slice(str(one)) == parse_slice(f" [{one}] ") == one
    assert one.end == offset + length < 2**63


@pytest.mark.parametrize(
    "text",
    [
        "",
        "digits",
        "digits:0:0",
        "digits:0:0:5:1",
        ":0:0:5",
        "digits:-1:0:5",
        "digits:0:-1:5",
        "digits:0:0:-5",
        "digits:0:0:+5",
        "digits:0:0:5.0",
        "digits:0:0: 5",
        "digits:0:0:1_000",
        "digits:0:0:٣",
        "a b:0:0:5",
        "ä:0:0:5",
        "digits:0:0:" + "9" * 19,
        "x" * 10_000,
    ],
)
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(PermanentError, match="is not topic:partition:offset:length") as refused:
        parse_slice(text)
    assert len(str(refused.value)) < 200


def test_slices_that_overlap_or_touch_are_one() -> None:
    given = ["b:0:5:5", "a:1:0:3", "b:0:0:5", "b:0:7:9", "a:0:8:2", "a:0:0:4", "b:0:20:1", "a:0:1:2"]
    wanted = ["a:0:0:4", "a:0:8:2", "a:1:0:3", "b:0:0:16", "b:0:20:1"]
    assert [str(one) for one in merged(map(parse_slice, given))] == wanted
    assert merged([]) == []
