"""The job's side of a feed that ends in any way: told as one, for the job to be run again."""

import socket
from collections.abc import Callable

import pytest

from sluice.streams.fed import Fed
from sluice.wire.errors import TemporaryError

Use = Callable[[Fed], object]
FRAME = b'{"batch": {"x": {"dtype": "<f4", "shape": [100]}, "y": {"dtype": "<i8", "shape": [0]}, "ends": []}}\n'
USES: dict[str, tuple[bytes, Use]] = {
    "before a frame": (b"", list),
    "in the middle of a line": (FRAME[:20], list),
    "in the middle of a batch": (FRAME + b"12345", list),
    "while the job speaks": (b"", lambda fed: fed.begin({("topic", 0): 0})),
}


@pytest.mark.parametrize("unread", [True, False], ids=["reset", "closed"])
@pytest.mark.parametrize("use", USES)
def test_a_feed_that_ended_is_something_passing(use: str, unread: bool) -> None:
    """One that is killed with words of ours unread resets the connection, and does not only close it."""
    job, feed = socket.socketpair()
    sent, what = USES[use]
    fed = Fed(job.detach())
    with feed:
        if unread:
            fed.begin({})
        feed.sendall(sent)
    with pytest.raises(TemporaryError, match="ended before it did"):
        what(fed)


def test_a_feed_that_is_reset_at_the_end_is_told_too() -> None:
    job, feed = socket.socketpair()
    fed = Fed(job.detach())
    fed.begin({})
    feed.close()
    with pytest.raises(TemporaryError, match="ended before it did"):
        fed.close()
