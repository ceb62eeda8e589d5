"""New early exits for a model that has none where they are wanted, trained and attached.

An exit hangs at a split point: its head (`heads.py`) reads what the layer before the cut made. At `input` the head is
a small net of its own on the raw input, after the model's own preprocessing, which is called a second time so that the
raw input is what crosses. `frozen` leaves the model as it is and learns on stored features; `joint` then goes on to
train a copy of everything, its final exit held to what the original said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from partitioner import heads
from partitioner.exits import Anatomy, anatomy, gives_logits
from partitioner.graph import Graph, Key, Node, rebuild
from partitioner.splits import INPUT, SplitPoint, find_split, split_points
from partitioner.teach import Array, Floats, targets, teach
from sluice.wire.errors import PermanentError

Progress = Callable[[str, int, int], None]
Train = Literal["frozen", "joint"]

AUTO = "auto"
MOST = 3
"""Exits that `choose_places` chooses at most."""
TARGETS = (0.2, 0.5)
"""Shares of the model's MACs after which an exit is wanted."""
NEAR = 0.15
"""How far from its target an exit may be."""
HEAD_SHARE = 0.15
"""Largest share that a head's MACs should be of those that it saves."""
AT_MOST = 0.5
"""The same where an exit is asked for and no design is that cheap."""
INPUT_SIZE = 64 * 64 * 3
"""Values of an input above which a small net of its own is not tried by itself."""
FEATURE_BYTES = 2**29
"""Most memory for stored features; with more samples than fit, some are picked by chance."""
BATCH = 256
HEAD_TRAINING, JOINT_TRAINING = (3e-3, 8000), (1e-3, 1500)
"""Learning rate and steps for a head alone, and for everything, which is dearer and begins near its end."""
FITTED = 1000
"""Samples to which a head's scaling is fitted."""
MODEST = 3.0
"""Mean and spread up to which values are taken as they are; so are spreads down to its inverse squared."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an exit is to hang, what it reads there, the head's design, and the exit's name."""

    point: SplitPoint
    key: Key
    head: str
    name: str


def attach(
    model: keras.Model,
    places: Sequence[str],
    x: Mapping[str, Array],
    y: NDArray[np.int64] | None = None,
    *,
    head: str = AUTO,
    train: Train = "frozen",
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> keras.Model:
    """`model` with trained early exits at `places`, named `exit-<place>`; its own outputs keep their names.

    A place is `input` or a split point's name; `place:design` chooses another head than `head` there, and lets several
    exits hang at one place. `x`: the model's inputs by name, (n, *shape) each; `y` (n,) labels, if known. The model
    returned is functional, gives a dict, and shares its weights with `model` if `train` is `frozen`; the original is
    not changed. Raises `PermanentError` for an unknown place or design, and for data that nothing can be learnt from.
    """
    given = anatomy(model)
    found = _places(given, places, head)
    inputs, y = _checked(given, x, y)
    if train == "joint":
        model = _copy(model)
        given = anatomy(model)
        found = _places(given, places, head)
    backbone = rebuild(given.graph, given.inputs, _features(found) | given.results)
    features, wanted, rows = _asked(backbone, given, found, inputs, seed)
    _check_classes(wanted, y)
    wanted = targets(wanted, None if y is None else y[rows])
    trained = []
    for number, place in enumerate(found):
        values = inputs[0][rows] if place.point.name == INPUT else features[place.name]
        exit_head = _head(given, place, values, seed + number)
        what = f"training {place.name}"
        _learn(exit_head, [values], wanted, {place.name: True}, HEAD_TRAINING, seed, what, progress)
        trained.append(exit_head)
    made = _joined(given, backbone, found, trained)
    if anatomy(made).exits[-1].name != given.exits[-1].name:
        raise PermanentError(
            f"{found[-1].name}: its head takes more than what is left of the model: go to an earlier place"
        )
    if train == "joint":
        own = {one.name: gives_logits(given.graph, one.output) for one in given.exits}
        outputs = dict.fromkeys((place.name for place in found), True) | own
        _learn(
            made,
            [a[rows] for a in inputs],
            wanted,
            outputs,
            JOINT_TRAINING,
            seed,
            "training all of the model",
            progress,
        )
    return made


def choose_places(model: Anatomy) -> list[str]:
    """Where exits seem worth their cost: maybe the input, and block ends after a fifth and a half of the MACs.

    None of them where even the cheapest sensible head would cost more than `HEAD_SHARE` of what it saves.
    """
    if not model.exits:
        return []
    points = split_points(model)
    raw = points[0]
    total = raw.macs_after
    chosen = [INPUT] if _input_is_small(model, raw) and _fitting(model, raw, raw.keys[0]) else []
    ends = [point for point in points if point.block_end and point.position and _feature(model, point) is not None]
    for target in TARGETS:
        near = [
            point
            for point in ends
            if abs(point.macs_before / total - target) <= NEAR
            and point.name not in chosen
            and _fitting(model, point, _feature(model, point))
        ]
        if near:
            size = max(1, raw.nbytes("raw"))
            best = min(near, key=lambda p: abs(p.macs_before / total - target) + 0.1 * min(p.nbytes("raw") / size, 1.0))
            chosen.append(best.name)
    return chosen[:MOST]


def _input_is_small(model: Anatomy, raw: SplitPoint) -> bool:
    (first, *others) = raw.tensors
    known = first.dtype.startswith("float") or first.dtype in ("uint8", "int8")
    return not others and known and len(model.inputs) == 1 and math.prod(first.shape) <= INPUT_SIZE


def _fitting(model: Anatomy, point: SplitPoint, key: Key, share: float = HEAD_SHARE) -> str | None:
    """The most accurate head for that share of what follows; at the input itself only one that is a net of its own."""
    found = heads.choose(model.graph.shape(key), model.classes, share * point.macs_after)
    return found if point.position or found in heads.NETS else None


def _places(model: Anatomy, places: Sequence[str], head: str) -> list[_Place]:
    """`places` looked up; `PermanentError` for what is not there."""
    if not model.exits:
        raise PermanentError("the model does not classify into single labels: no exit can be attached")
    if not places:
        raise PermanentError("no place to attach an exit at was named")
    points = split_points(model)
    names = {point.name for point in points}
    found: list[_Place] = []
    for place in places:
        where, colon, design = (place, "", "") if place in names else place.rpartition(":")
        if not colon:
            where, design = place, head
        if design != AUTO and design not in heads.HEADS:
            raise PermanentError(f"head {design[:40]!r} is unknown; known: {AUTO}, {', '.join(heads.HEADS)}")
        point = find_split(points, where)
        key = _feature(model, point)
        if key is None:
            many = "several inputs cross" if len(point.keys) > 1 else "nothing that a head could read crosses"
            raise PermanentError(f"no exit can be attached at {where!r}: {many} there; choose a later place")
        if design == AUTO:
            design = _fitting(model, point, key) or _fitting(model, point, key, AT_MOST) or "linear"
        name = "exit-" + place.replace(":", "-").replace("/", "-")
        if name in model.results or name in [other.name for other in found]:
            raise PermanentError(
                f"there would be two exits called {name!r}: choose another place, or another head there"
            )
        found.append(_Place(point, key, design, name))
    return found


def _feature(model: Anatomy, point: SplitPoint) -> Key | None:
    """What a head reads at `point`: the input, if it is the only one, or else what the last layer made."""
    inputs = set(model.inputs.values())
    made = [tensor for tensor in point.tensors if tensor.key not in inputs and tensor.dtype.startswith("float")]
    if made:
        return max(made, key=lambda tensor: tensor.key).key
    return point.keys[0] if point.position == 0 and len(point.keys) == 1 else None


def _features(places: Sequence[_Place]) -> dict[str, Key]:
    return {place.name: place.key for place in places if place.point.name != INPUT}


def _checked(
    model: Anatomy, x: Mapping[str, Array], y: NDArray[np.int64] | None
) -> tuple[list[Array], NDArray[np.int64] | None]:
    """The inputs in the model's order, and the labels; `PermanentError` for what cannot be learnt from."""
    if missing := model.inputs.keys() - x.keys():
        given = ", ".join(sorted(x)) or "none"
        raise PermanentError(f"the data have no array {min(missing)!r}, an input of the model; there are: {given}")
    inputs = []
    for name, key in model.inputs.items():
        array, shape = x[name], model.graph.shape(key)
        if array.shape[1:] != shape:
            raise PermanentError(f"{name}: samples have shape {list(array.shape[1:])}, the model takes {list(shape)}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise PermanentError(f"{name}: there are NaN or infinite values among the samples to train exits on")
        inputs.append(array.astype(model.graph.dtype(key), copy=False))
    n = len(inputs[0])
    if n < model.classes:
        raise PermanentError(f"{n} samples cannot train an exit of {model.classes} classes: give more")
    if y is None:
        return inputs, None
    if y.shape != (n,) or y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= model.classes:
        raise PermanentError(f"y: {n} labels from 0 to {model.classes - 1} are needed to train exits")
    return inputs, y.astype(np.int64)


def _check_classes(probabilities: Floats, y: NDArray[np.int64] | None) -> None:
    if not np.isfinite(probabilities).all():
        raise PermanentError("the model answers NaN or infinity on the samples to train exits on")
    labels = probabilities.argmax(axis=1) if y is None else y
    if len(np.unique(labels)) < 2:
        whose = "the model answers" if y is None else "y says"
        raise PermanentError(f"{whose} {labels[0]} for all samples: an exit cannot learn from one class only")


def _asked(
    backbone: keras.Model, model: Anatomy, places: Sequence[_Place], inputs: Sequence[Array], seed: int
) -> tuple[dict[str, Floats], Floats, NDArray[np.int64]]:
    """What the model makes of the samples: features by place, (n, classes) probabilities, and the rows they are of.

    All rows, unless their features would take more than `FEATURE_BYTES`.
    """
    size = sum(4 * math.prod(model.graph.shape(key)) for key in _features(places).values())
    rows = np.arange(len(inputs[0]))
    if size * len(rows) > FEATURE_BYTES:
        most = max(BATCH, FEATURE_BYTES // size)
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:most])
    wanted = [*_features(places), model.exits[-1].name]
    parts: dict[str, list[Floats]] = {name: [] for name in wanted}
    for i in range(0, len(rows), BATCH):
        made = backbone([array[rows[i : i + BATCH]] for array in inputs], training=False)
        for name, some in parts.items():
            some.append(np.asarray(made[name]).astype(np.float32))
    made = {name: np.concatenate(some) for name, some in parts.items()}
    answers = made.pop(model.exits[-1].name)
    if gives_logits(model.graph, model.exits[-1].output):
        powers = np.exp(answers - answers.max(axis=1, keepdims=True))
        answers = powers / powers.sum(axis=1, keepdims=True)
    return made, answers, rows


def _head(model: Anatomy, place: _Place, values: Array, seed: int) -> keras.Model:
    """The head as a model of its own, from what crosses to logits, not trained yet."""
    given = keras.Input(values.shape[1:], dtype=str(values.dtype))
    tensor = given
    if place.point.name == INPUT:
        for node in _preprocessing(model):
            args, kwargs = node.call.arguments.fill_in({id(node.call.input_tensors[0]): tensor})
            tensor = node.operation(*args, **kwargs)
    some = values[:: max(1, len(values) // FITTED)]
    seen = some if tensor is given else np.asarray(keras.Model(given, tensor)(some, training=False))
    tensor = _scaled(tensor, seen)
    return keras.Model([given], {place.name: heads.HEADS[place.head](tensor, model.classes, seed)}, name=place.name)


def _preprocessing(model: Anatomy) -> list[Node]:
    """The nodes at the start of the trunk that scale the only input, value by value and without learnt weights."""
    graph: Graph = model.graph
    (last,) = model.inputs.values()
    found = []
    for index in model.trunk:
        node = graph.nodes[index]
        own = isinstance(node.operation, layers.Layer)
        scales = isinstance(node.operation, layers.Rescaling | layers.Normalization) if own else not node.macs
        (made, *more) = node.outputs
        if not scales or node.reads != (last,) or more or graph.shape(made) != graph.shape(last):
            break
        found.append(node)
        last = made
    return found


def _scaled(tensor: Any, seen: Array) -> Any:
    """`tensor` brought to a modest mean and spread, fitted on the values `seen`, if it is not so already: images as a
    whole, sequences and flat inputs channel by channel."""
    values = seen.astype(np.float64).reshape(-1, 1 if seen.ndim == 4 else seen.shape[-1])
    mean, spread = values.mean(axis=0), values.std(axis=0)
    modest = np.abs(mean).max() <= MODEST and MODEST**-2 <= spread.max() <= MODEST and seen.dtype.kind == "f"
    if modest:
        return tensor
    spread = np.where(spread > 1e-6 * max(1.0, float(spread.max())), spread, 1.0)
    if len(mean) == 1:
        return layers.Rescaling(1 / float(spread[0]), -float(mean[0] / spread[0]))(tensor)
    return layers.Normalization(mean=mean, variance=spread**2)(tensor)


def _joined(
    model: Anatomy, backbone: keras.Model, places: Sequence[_Place], trained: Sequence[keras.Model]
) -> keras.Model:
    """Backbone and heads as one model on inputs of the same names."""
    inputs = [
        keras.Input(model.graph.shape(key), dtype=model.graph.dtype(key), name=name)
        for name, key in model.inputs.items()
    ]
    made = backbone(inputs)
    early = {}
    for place, exit_head in zip(places, trained, strict=True):
        early |= exit_head([inputs[0] if place.point.name == INPUT else made[place.name]])
    return keras.Model(inputs, early | {name: made[name] for name in model.results})


def _copy(model: keras.Model) -> keras.Model:
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def _learn(
    model: keras.Model,
    inputs: Sequence[Array],
    wanted: Floats,
    outputs: Mapping[str, bool],
    training: tuple[float, int],
    seed: int,
    what: str,
    progress: Progress,
) -> None:
    def told(done: int, total: int) -> None:
        progress(what, done, total)

    rate, steps = training
    teach(model, inputs, wanted, from_logits=outputs, learning_rate=rate, steps=steps, seed=seed, told=told)
