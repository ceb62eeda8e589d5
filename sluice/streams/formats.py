"""The table of stream formats, and the one way from records to arrays.

A format is a name in `FORMATS` with three functions; to add one, write a module like `raw` and add the line. What a
format needs to know stands in the announcement's `config`. Decoding is strict: a record that is not exactly what the
config says ends it, with the place of the record in the error, because a model that was trained on half-read data is
worse than none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sluice.streams import avro, raw
from sluice.streams.samples import Array, Encoded, Labels, StreamConfig, bad
from sluice.wire.errors import PermanentError


@dataclass(frozen=True, slots=True)
class Format:
    """`decode`: records to (x (n, *shape), y (n,) or None); `encode`: one sample and its label to (key, value);
    `config_of`: what to announce for samples, whether they have labels, and names of the classes."""

    decode: Callable[[Sequence[Encoded], StreamConfig], tuple[Array, Labels | None]]
    encode: Callable[[Array, int | None, StreamConfig], tuple[bytes | None, bytes]]
    config_of: Callable[[Array, bool, Sequence[str]], dict[str, object]]


FORMATS: dict[str, Format] = {
    "avro": Format(avro.decode, avro.encode, avro.config_of),
    "raw": Format(raw.decode, raw.encode, raw.config_of),
}


def format_named(name: str) -> Format:
    """The format called `name`; `PermanentError` if there is none."""
    found = FORMATS.get(name)
    if found is None:
        raise PermanentError(f"stream format {name[:40]!r} is unknown; known: {', '.join(FORMATS)}")
    return found


def decode(name: str, records: Sequence[Encoded], config: StreamConfig) -> tuple[Array, Labels | None]:
    """(x (n, *shape) uint8 or float32, y (n,) int64 or None if the records have no labels) of one or more records.

    Raises `PermanentError` that names the first record that is not whole, has another size than the config says, a
    label that is no class, or a value that float32 cannot hold.
    """
    x, y = format_named(name).decode(records, config)
    if x.dtype != np.uint8:
        with np.errstate(over="ignore", invalid="ignore"):
            x = x.astype(np.float32)
        finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
        if not finite.all():
            raise bad(records[int(np.argmin(finite))], "has a value that is not a finite float32")
    if y is not None:
        known = (y >= 0) & (y < (len(config.labels) or np.iinfo(np.int64).max))
        if not known.all():
            worst = int(np.argmin(known))
            raise bad(records[worst], f"has label {y[worst]}, which is no class")
    return x, y
