"""The live feed's ear: what a job says is foreign, so it is bounded and checked, and ends nothing but the feed."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator

import pytest

from sluice.streams.live import LINE_BYTES, Heard
from sluice.wire.errors import PermanentError

Pair = tuple[socket.socket, Heard]


@pytest.fixture
def pair() -> Iterator[Pair]:
    job, own = socket.socketpair()
    with job, own:
        yield job, Heard(own)


def test_a_job_says_where_it_begins_and_what_it_used(pair: Pair) -> None:
    job, heard = pair
    job.sendall(b'{"from": [["t", 0, 7], ["t", 1, 0]]}\n{"used": 1}\n{"us')
    assert heard.begin(["t"]) == {("t", 0): 7, ("t", 1): 0} and heard.past is None
    assert heard.used(5) == 1
    assert heard.used(5) == 1, "half a line is none yet"
    job.sendall(b'ed": 2}\n{"used": 4}\n')
    assert heard.used(5) == 4
    job.sendall(b'{"used": 5, "over": true}\n{"used": 6}\n')
    assert heard.used(5) == 5 and heard.over


def test_a_job_asks_for_some_of_what_its_model_was_trained_on(pair: Pair) -> None:
    job, heard = pair
    job.sendall(b'{"from": [], "past": 500}\n{"used": 1, "past": 7}\n')
    assert heard.begin(["t"]) == {} and heard.past == 500
    with pytest.raises(PermanentError):
        heard.used(3)  # once, and first


def test_a_job_that_goes_is_over(pair: Pair) -> None:
    job, heard = pair
    job.sendall(b'{"from": []}\n{"used": 2}\n')
    job.close()
    assert heard.begin(["t"]) == {} and not heard.over
    assert heard.used(3, wait_s=5) == 2, "what it said last counts"
    assert heard.used(3, wait_s=5) == 2 and heard.over


def test_a_job_that_goes_before_it_said_anything(pair: Pair) -> None:
    job, heard = pair
    job.close()
    assert heard.begin(["t"]) == {} and heard.over


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"nonsense", "may not"),
        (b"[]", "may not"),
        (b"{}", "may not"),
        (b'{"from": [["other", 0, 1]]}', "begin at other:0:1"),
        (b'{"from": [["t", -1, 1]]}', "begin at t:-1:1"),
        (b'{"from": [["t", 0, -1]]}', "begin at t:0:-1"),
        (b'{"from": [["t", 0, 9223372036854775808]]}', "not its own"),
        (b'{"from": [["a\\nb", 0, 7]]}', "begin at a b:0:7, which is not its own"),
        (b'{"from": [["t", 0]]}', "may not"),
        (b'{"from": [["t", "0", 1]]}', "may not"),
        (b'{"from": [], "topics": ["x"]}', "may not"),
        (json.dumps({"from": [["t", 0, 1]] * 10_001}).encode(), "may not"),
        (b'{"from": [], "past": -1}', "may not"),
        (b'{"from": [], "past": 9223372036854775808}', "may not"),
        (b'{"from": [], "past": "all"}', "may not"),
        (b'{"past": 5}', "may not"),
        (b"x" * (LINE_BYTES + 70_000), "too long"),
    ],
)
def test_what_a_job_may_not_say_first(pair: Pair, line: bytes, reason: str) -> None:
    job, heard = pair

    def say() -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
            job.sendall(line + b"\n")

    saying = threading.Thread(target=say)
    saying.start()
    with pytest.raises(PermanentError) as refused:
        heard.begin(["t"])
    job.shutdown(socket.SHUT_RDWR)
    saying.join()
    assert reason in str(refused.value) and len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "line",
    [b'{"used": 4}', b'{"used": -1}', b'{"used": 1.5}', b'{"used": "1"}', b'{"from": []}', b"\xff", b'{"used": 1}'],
)
def test_what_a_job_may_not_say_later(pair: Pair, line: bytes) -> None:
    """Not more than it was given, not less than before."""
    job, heard = pair
    job.sendall(b'{"used": 2}\n' + line + b"\n")
    with pytest.raises(PermanentError):
        heard.used(3)
