"""Format `raw`: a record's value is the bytes of the array, its key the label as text (number or name), if any."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sluice.streams.samples import (
    Array,
    Encoded,
    Labels,
    StreamConfig,
    bad,
    from_bytes,
    label_of_key,
    to_bytes,
)


def decode(records: Sequence[Encoded], config: StreamConfig) -> tuple[Array, Labels]:
    """As `sluice.streams.formats.decode`, in the dtype of the wire."""
    wanted = config.nbytes
    for record in records:
        if len(record.value) != wanted:
            raise bad(record, f"has {len(record.value)} bytes, not {wanted}")
    x = from_bytes([record.value for record in records], config)
    known: dict[bytes | None, int] = {}  # few keys are many records': each is looked at once
    for record in records:
        if record.key not in known:
            known[record.key] = label_of_key(record, config)
    return x, np.array([known[record.key] for record in records], np.int64)


def encode(sample: Array, label: int | None, config: StreamConfig) -> tuple[bytes | None, bytes]:
    """(key, value) of one sample (*shape) and its label."""
    return None if label is None else str(label).encode(), to_bytes(sample, config)
