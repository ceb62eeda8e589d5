"""Which early exits there are to choose from: the model's own, new ones attached and trained, or none."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras

from partitioner.anatomy.exits import Anatomy, anatomy
from partitioner.anatomy.splits import split_points
from partitioner.early.attach import attach
from partitioner.early.places import choose_places
from partitioner.promise.parts import Parts, split_parts
from partitioner.samples import Samples
from partitioner.settings import AUTO, NONE, PartitionSettings
from sluice.wire.errors import PermanentError

LEAST_TO_TRAIN = 200
"""Samples below which `auto` attaches nothing: so few teach a new exit little."""


@dataclass(frozen=True, slots=True)
class Equipped:
    """The model with the early exits that may be used; `compulsory`: those that must be (indices)."""

    anatomy: Anatomy
    parts: Parts
    compulsory: tuple[int, ...]
    warnings: tuple[str, ...]


def equip(
    model: keras.Model,
    given: Anatomy,
    samples: Samples,
    settings: PartitionSettings,
    train: Samples | None,
    progress: Callable[[str, int, int], None],
) -> Equipped:
    """Split the samples, and find or make the exits that `settings` asks for.

    `train`: samples for attached exits; None: a part of `samples`. Raises `PermanentError` for a name that is neither
    an early exit nor a split point.
    """
    own = [one.name for one in given.exits[:-1]]
    kept, places, warnings = _asked_for(given, own, settings)
    to_train = bool(places) and train is None
    parts = split_parts(len(samples), samples.groups, settings.seed, train=to_train)
    learning = samples.rows(parts.train) if to_train else train
    if places and settings.exits == AUTO and (learning is None or len(learning) < LEAST_TO_TRAIN):
        have = 0 if learning is None else len(learning)
        warnings.append(
            f"{have} samples are too few to train early exits on ({LEAST_TO_TRAIN} at least): none attached"
        )
        places = []
        parts = split_parts(len(samples), samples.groups, settings.seed, train=False)
    if places:
        assert learning is not None
        names = dict(zip(learning.inputs, given.inputs, strict=True))
        model = attach(
            model,
            places,
            {names[crossing]: array for crossing, array in learning.inputs.items()},
            learning.y,
            head=settings.head,
            train=settings.train_exits,
            seed=settings.seed,
            progress=progress,
        )
    if places:
        given = anatomy(model, given.task)
        kept += [one.name for one in given.exits[:-1] if one.name not in own]
    found = given if len(kept) == len(given.exits[:-1]) else anatomy(model, given.task, keep=kept)
    early = range(max(0, len(found.exits) - 1))
    compulsory = tuple(early) if settings.exits != AUTO or _fixed(settings) else ()
    return Equipped(found, parts, compulsory, tuple(warnings))


def _fixed(settings: PartitionSettings) -> bool:
    """Whether the exits are settled by other settings: thresholds name one each, a placement each segment."""
    return settings.thresholds is not None or settings.placement is not None


def _asked_for(
    given: Anatomy, own: Sequence[str], settings: PartitionSettings
) -> tuple[list[str], list[str], list[str]]:
    """Own exits to keep, places to attach new ones at, warnings."""
    if settings.exits == NONE:
        return [], [], []
    if not given.exits:
        if settings.exits != AUTO:
            raise PermanentError(
                "the model does not classify into single labels, so it can have no early exits: give it an output of "
                "(batch, classes), softmax or logits; two classes are two units"
            )
        return [], [], ["the model does not classify into single labels: it is cut, and has no early exits"]
    if settings.exits == AUTO:
        return list(own), [] if own or _fixed(settings) else choose_places(given), []
    names = [settings.exits] if isinstance(settings.exits, str) else list(settings.exits)
    points = split_points(given)
    places = [name for name in names if name not in own]
    known = [point.name for point in points]
    for place in places:
        if place.partition(":")[0] not in known and place not in known:
            near = difflib.get_close_matches(place, [*own, *known], n=1, cutoff=0.0)
            raise PermanentError(
                f"no early exit and no split point is called {place[:80]!r}; the nearest name is {near[0]!r}"
            )
    return [name for name in own if name in names], places, []
