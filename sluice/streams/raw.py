"""Format `raw`: a record's value is the bytes of the array, its key the label as text (number or name), if any."""

from __future__ import annotations

from collections.abc import Sequence

from sluice.streams.samples import (
    Array,
    Encoded,
    Labels,
    StreamConfig,
    bad,
    from_bytes,
    labels_of_keys,
    to_bytes,
    values_of,
)


def decode(records: Sequence[Encoded], config: StreamConfig) -> tuple[Array, Labels]:
    """As `sluice.streams.formats.decode`, in the dtype of the wire."""
    values, wanted = values_of(records), config.nbytes
    if set(map(len, values)) != {wanted}:
        at = next(i for i, value in enumerate(values) if len(value) != wanted)
        raise bad(records[at], f"has {len(values[at])} bytes, not {wanted}")
    return from_bytes(values, config), labels_of_keys(records, config)


def encode(sample: Array, label: int | None, config: StreamConfig) -> tuple[bytes | None, bytes]:
    """(key, value) of one sample (*shape) and its label."""
    return None if label is None else str(label).encode(), to_bytes(sample, config)
