"""How many answers were right, as far as somebody told: counted in the database, by model, bundle, tier, exit and time.

A label by name means what the bundle that answered calls so; one that this bundle does not know (a name or a number)
makes its answer neither right nor wrong, and is counted by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, func, literal, select

from cloud.tables import predictions
from cloud.watch.labelled import labelled
from sluice.wire.errors import PermanentError

GROUPS_MOST = 10_000
"""Rows of an answer."""
CELLS_MOST = 200_000
"""What they are counted from: each with one answer and one label."""

Key = tuple[int, str, str, str, int]
"""(beginning of the time in UTC µs, 0 where all time is one; model; bundle; tier; exit)"""


@dataclass(slots=True)
class Counts:
    """Of one key: all samples that were answered, those with a label, the right ones, those with an unknown label."""

    samples: int
    labelled: int = 0
    right: int = 0
    unknown: int = 0


def count_right(
    connection: Connection,
    conditions: Sequence[ColumnElement[bool]],
    bucket_us: int | None,
    names_of: Callable[[str], Sequence[str] | None],
) -> dict[Key, Counts]:
    """Counts by key, in order; `conditions` on `predictions`, `bucket_us` the length of a time by Kafka's clock.

    `names_of`: the classes of a bundle, None if nobody knows them any more; its labels by name are unknown then. Raises
    `PermanentError` if there are too many rows. Answers of models that do not classify are left out.
    """
    p = predictions.c
    begin: ColumnElement[int] = p.recorded_at - p.recorded_at % bucket_us if bucket_us else literal(0)
    key = (begin.label("bucket"), p.model, p.bundle, p.tier, p.exit)
    order = ("bucket", p.model, p.bundle, p.tier, p.exit)
    wanted = select(*key, func.count().label("samples")).where(p.label >= 0, *conditions)
    answered = connection.execute(wanted.group_by(*order).order_by(*order).limit(GROUPS_MOST + 1)).all()
    told = labelled()
    cell = (*key, p.label, told.c.told, told.c.name)
    cells = select(*cell, func.count().label("samples")).join(told, told.c.id == p.id)
    by = (*order, p.label, told.c.told, told.c.name)
    judged = connection.execute(cells.where(p.label >= 0, *conditions).group_by(*by).limit(CELLS_MOST + 1)).all()
    if len(answered) > GROUPS_MOST or len(judged) > CELLS_MOST:
        raise PermanentError("that are too many rows: ask for a later `since`, longer times, or one model")
    found = {(int(b), model, bundle, tier, exit_): Counts(n) for b, model, bundle, tier, exit_, n in answered}
    classes = {bundle: names_of(bundle) for bundle in {row.bundle for row in judged}}
    for b, model, bundle, tier, exit_, answer, number, name, n in judged:
        counts = found[int(b), model, bundle, tier, exit_]
        counts.labelled += n
        right = is_right(answer, number, name, classes[bundle])
        if right is None:
            counts.unknown += n
        elif right:
            counts.right += n
    return found


def number_of(number: int, name: str, classes: Sequence[str] | None) -> int | None:
    """The class that was told, by number (-1: by `name`); None if the bundle's `classes` do not have it."""
    if name:
        return classes.index(name) if classes is not None and name in classes else None
    return number if classes is None or number < len(classes) else None


def is_right(answer: int, number: int, name: str, classes: Sequence[str] | None) -> bool | None:
    """Whether the class `answer` is what was told; None if the bundle's `classes` do not have what was told."""
    told = number_of(number, name, classes)
    return None if told is None else answer == told
