"""New early exits for a model that has none where they are wanted, trained and attached.

An exit hangs at a split point: its head (`heads.py`) reads what the layer before the cut made. At `input` the head is
a small net of its own on the raw input, after the model's own preprocessing, which is called a second time so that the
raw input is what crosses. `frozen` leaves the model as it is and learns on stored features; `joint` then goes on to
train a copy of everything, its final exit held to what the original said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from partitioner.anatomy.exits import Anatomy, anatomy, gives_logits
from partitioner.anatomy.graph import Graph, Key, Node, rebuild
from partitioner.anatomy.splits import INPUT
from partitioner.early import heads
from partitioner.early.places import AUTO, Place, find_places
from partitioner.early.teach import Array, Floats, targets, teach
from sluice.wire.errors import PermanentError

Progress = Callable[[str, int, int], None]
Train = Literal["frozen", "joint"]

FEATURE_BYTES = 2**29
"""Most memory for stored features; with more samples than fit, some are picked by chance."""
BATCH = 256
HEAD_TRAINING, JOINT_TRAINING = (3e-3, 8000), (1e-3, 1500)
"""Learning rate and steps for a head alone, and for everything, which is dearer and begins near its end."""
FITTED = 1000
"""Samples to which a head's scaling is fitted."""
MODEST = 3.0
"""Mean and spread up to which values are taken as they are; so are spreads down to its inverse squared."""


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
    found = find_places(given, places, head)
    inputs, y = _checked(given, x, y)
    if train == "joint":
        model = _copy(model)
        given = anatomy(model)
        found = find_places(given, places, head)
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
        what = "training all of the model"
        _learn(made, [a[rows] for a in inputs], wanted, outputs, JOINT_TRAINING, seed, what, progress)
    return made


def _features(places: Sequence[Place]) -> dict[str, Key]:
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
    backbone: keras.Model, model: Anatomy, places: Sequence[Place], inputs: Sequence[Array], seed: int
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


def _head(model: Anatomy, place: Place, values: Array, seed: int) -> keras.Model:
    """The head as a model of its own, from what crosses to logits, not trained yet."""
    given = keras.Input(values.shape[1:], dtype=str(values.dtype))
    tensor = given
    if place.point.name == INPUT:
        for node in _preprocessing(model):
            args, kwargs = node.call.arguments.fill_in({id(node.call.input_tensors[0]): tensor})
            tensor = _again(node.operation)(*args, **kwargs)
    some = values[:: max(1, len(values) // FITTED)]
    seen = some if tensor is given else np.asarray(keras.Model(given, tensor)(some, training=False))
    tensor = _scaled(tensor, seen)
    return keras.Model(given, {place.name: heads.HEADS[place.head](tensor, model.classes, seed)}, name=place.name)


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


def _again(operation: Any) -> Any:
    """A layer anew, with its weights: Keras cannot save one that is in two nested models. Others need no copy."""
    if not isinstance(operation, layers.Layer):
        return operation
    copy = type(operation).from_config(operation.get_config())
    if operation.weights:
        copy.build(operation.get_build_config()["input_shape"])
        copy.set_weights(operation.get_weights())
        copy.finalize_state()
    return copy


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
    model: Anatomy, backbone: keras.Model, places: Sequence[Place], trained: Sequence[keras.Model]
) -> keras.Model:
    """Backbone and heads as one model on inputs of the same names."""
    inputs = [
        keras.Input(model.graph.shape(key), dtype=model.graph.dtype(key), name=name)
        for name, key in model.inputs.items()
    ]
    made = backbone(inputs)
    early = {}
    for place, exit_head in zip(places, trained, strict=True):
        early |= exit_head(inputs[0] if place.point.name == INPUT else made[place.name])
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], early | {name: made[name] for name in model.results})


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
