"""The two errors that a main loop understands; anything else is a defect and crashes the process loudly.

`TemporaryError`: pause, back off with jitter, acknowledge nothing. `PermanentError`: this record can never succeed,
so it becomes a dead letter and the stream moves on. `UnknownSchemaError` lies between: the record may be newer than
its reader, so it is held, neither acknowledged nor thrown away.
"""

from __future__ import annotations


def in_short(words: object, most: int = 200) -> str:
    """`words` in one line of `most` characters: what others wrote or libraries say, for an error's message."""
    return " ".join(str(words)[: 8 * most].split())[:most]


class SluiceError(Exception):
    """Base of the errors that Sluice raises on purpose; the message says what happened, to what, what to do."""


class TemporaryError(SluiceError):
    """Something outside is not available now; the same work may succeed later.

    `delay` is the wait in seconds that the caller should at least leave before the next try.
    """

    def __init__(self, message: str, delay: float = 1.0) -> None:
        super().__init__(message)
        self.delay = delay


class PermanentError(SluiceError):
    """This record, file or request can never succeed as it is."""


class UnknownSchemaError(SluiceError):
    """A well-formed envelope with a schema fingerprint that this version does not know: held, not poisoned."""
