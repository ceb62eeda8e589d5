"""The table of stream formats, and the one way from records to arrays.

A format is a name in `FORMATS` with two functions or three; to add one, write a module like `raw` and add the line.
What a format needs to know stands in the announcement's `config`. Decoding is strict: a record that is not exactly what
the config says ends it, with the place of the record in the error, because a model that was trained on half-read data
is worse than none. Who wants to go on without it hands in `on_bad`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sluice.streams import avro, csv, json, raw
from sluice.streams.samples import NONE, Array, BadRecord, Encoded, Feature, Labels, StreamConfig, bad
from sluice.wire.errors import PermanentError


@dataclass(frozen=True, slots=True)
class Format:
    """`decode`: records to (x (n, *shape), y (n,)); `encode`: one sample and its label to (key, value); `own`: what the
    format needs to have announced beside what all do, of the dtype, whether there are labels, and the features."""

    decode: Callable[[Sequence[Encoded], StreamConfig], tuple[Array, Labels]]
    encode: Callable[[Array, int | None, StreamConfig], tuple[bytes | None, bytes]]
    own: Callable[[np.dtype[Any], bool, Sequence[Feature]], dict[str, object]] = lambda *_: {}

    def config_of(
        self, x: Array, labelled: bool, labels: Sequence[str], features: Sequence[Feature]
    ) -> dict[str, object]:
        """What to announce for samples like `x` (n, *shape), whether they have labels, the names of the classes, and
        the features of tabular data."""
        named = [feature.model_dump() for feature in features]
        config = {"shape": list(x.shape[1:]), "dtype": x.dtype.name, "labels": list(labels), "features": named}
        return config | self.own(x.dtype, labelled, features)


OnBad = Callable[[BadRecord], None]
"""Called with each record that is left out."""


FORMATS: dict[str, Format] = {
    "avro": Format(avro.decode, avro.encode, avro.own),
    "csv": Format(csv.decode, csv.encode, csv.own),
    "json": Format(json.decode, json.encode),
    "raw": Format(raw.decode, raw.encode),
}


def format_named(name: str) -> Format:
    """The format called `name`; `PermanentError` if there is none."""
    found = FORMATS.get(name)
    if found is None:
        raise PermanentError(f"stream format {name[:40]!r} is unknown; known: {', '.join(FORMATS)}")
    return found


def decode(
    name: str,
    records: Sequence[Encoded],
    config: StreamConfig,
    on_bad: OnBad | None = None,
    classes: int | None = None,
) -> tuple[Array, Labels]:
    """(x (n, *shape) uint8 or float32, y (n,) int64, `NONE` where a record has no label) of some records.

    A record that is not whole, has another size than the config says, a label that is no class, or a value that float32
    cannot hold raises `BadRecord`, of the first such record; with `on_bad` that is called instead, in their order, and
    n is smaller than there are records.
    `classes`: how many of them whoever asks can tell apart; a label beyond is no class for him.
    """
    kind = format_named(name)
    try:
        if records:
            return _checked(kind, records, config, classes)
    except BadRecord as error:
        if len(records) > 1:  # halves: so the first that is bad is found first, and few of the good ones are read again
            middle = len(records) // 2
            parts = [decode(name, half, config, on_bad, classes) for half in (records[:middle], records[middle:])]
            return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])
        if on_bad is None:
            raise
        on_bad(error)
    return np.empty((0, *config.shape), np.uint8 if config.dtype == "uint8" else np.float32), np.empty(0, np.int64)


def _checked(
    kind: Format, records: Sequence[Encoded], config: StreamConfig, classes: int | None
) -> tuple[Array, Labels]:
    x, y = kind.decode(records, config)
    if x.dtype != np.uint8:
        with np.errstate(over="ignore", invalid="ignore"):
            x = x.astype(np.float32)
        finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
        if not finite.all():
            raise bad(records[int(np.argmin(finite))], "has a value that is not a finite float32")
    known = (y >= NONE) & (y < (len(config.labels) or np.iinfo(np.int64).max))
    if not known.all():
        worst = int(np.argmin(known))
        raise bad(records[worst], f"has label {y[worst]}, which is no class")
    if classes is not None and len(y) and y.max() >= classes:
        worst = int(np.argmax(y >= classes))
        raise bad(records[worst], f"has label {y[worst]}, and the model tells {classes} classes apart")
    return x, y
