"""Records that cannot be read: counted, left out up to a bound, and kept as dead letters if the caller wishes."""

from __future__ import annotations

from collections.abc import Callable

from sluice.doors.kafka import KafkaWriter, dead_letter_headers
from sluice.streams.samples import BadRecord
from sluice.wire.errors import PermanentError
from sluice.wire.names import DEAD_LETTER

Letter = Callable[[BadRecord], None]
LETTER_BYTES = 500_000
"""So much of a record is kept in its dead letter."""


class BadRecords:
    """What is called with each record that is left out (`on_bad` of `sluice.streams.formats.decode`).

    Up to `most` are borne; the one beyond raises: itself where none are, else a `PermanentError` that names the first.
    """

    def __init__(self, most: int = 0, letter: Letter | None = None) -> None:
        self.most = most
        self.count = 0
        self.first: BadRecord | None = None
        self._letter = letter

    def __call__(self, error: BadRecord) -> None:
        """One more."""
        self.count += 1
        self.first = self.first or error
        if not self.most:
            raise error
        if self.count > self.most:
            raise PermanentError(
                f"{self.count} records are bad, {self.most} would be left out; the first: {self.first}"
            )
        if self._letter is not None:
            self._letter(error)


def letters_to(writer: KafkaWriter, room: str) -> Letter:
    """Dead letters of `room`, written by `writer`; the caller flushes it."""

    def letter(error: BadRecord) -> None:
        record = error.record
        headers = dead_letter_headers(error.reason[:1000], room, record.topic, record.partition, record.offset)
        writer.write(DEAD_LETTER, record.value[:LETTER_BYTES], key=record.key, headers=headers)

    return letter
