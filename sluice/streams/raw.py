"""Format `raw`: a record's value is the bytes of the array, its key the label as text (number or name), if any."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sluice.streams.samples import Array, Encoded, Labels, StreamConfig, bad, from_bytes, label_of, to_bytes


def decode(records: Sequence[Encoded], config: StreamConfig) -> tuple[Array, Labels | None]:
    """As `sluice.streams.formats.decode`, in the dtype of the wire."""
    for record in records:
        if len(record.value) != config.nbytes:
            raise bad(record, f"has {len(record.value)} bytes, not {config.nbytes}")
    x = from_bytes([record.value for record in records], config)
    labelled = [bool(record.key) for record in records]
    if not any(labelled):
        return x, None
    if not all(labelled):
        raise bad(records[labelled.index(False)], "has no label, others have")
    return x, np.array([label_of(record, _text(record), config) for record in records], np.int64)


def encode(sample: Array, label: int | None, config: StreamConfig) -> tuple[bytes | None, bytes]:
    """(key, value) of one sample (*shape) and its label."""
    return None if label is None else str(label).encode(), to_bytes(sample, config)


def config_of(x: Array, labelled: bool, labels: Sequence[str]) -> dict[str, object]:
    """What to announce for samples like `x` (n, *shape)."""
    del labelled
    return {"shape": list(x.shape[1:]), "dtype": x.dtype.name, "labels": list(labels)}


def _text(record: Encoded) -> str:
    try:
        return (record.key or b"").decode()
    except UnicodeDecodeError as error:
        raise bad(record, "has a key that is no text") from error
