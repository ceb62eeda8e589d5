"""A history that never grows beyond a bound, however long it goes on: the older a part of it, the fewer its entries."""

from __future__ import annotations

from typing import TypeVar

EntryT = TypeVar("EntryT")

MOST = 500
"""Entries of an endless job's metrics."""


def thin(entries: list[EntryT], most: int = MOST) -> None:
    """Leave out every second entry of the older half if there are more than `most`; the first one stays."""
    if len(entries) > most:
        half = len(entries) // 2
        entries[:half] = entries[:half:2]
