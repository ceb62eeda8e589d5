"""Designs of exit heads: a table of small classifiers, each written down as a list of layers.

What a head costs is decided by its first layer. On the runtimes a convolution with few input channels, at full
resolution, takes several times longer than its multiplications say, and each operation costs a third of a microsecond.
So every design begins by shrinking: one pooling, one dense layer, or one convolution with a large stride. Images keep a
small grid, since where something is tells much (digits at the first exit of a small CNN: .99, and .85 after averaging
over the whole image); of a sequence only the strongest response of each filter is kept, since a window may begin
anywhere (UCI HAR: 1 point better on new people than the mean over time, or than all places kept).

Heads give logits, and use nothing but operations that TFLite has and int8 takes well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from partitioner.anatomy.graph import walk

Shape = tuple[int, ...]
Step = tuple[type[layers.Layer], dict[str, Any]]
Head = Callable[[Any, int, int], Any]
"""From a symbolic tensor (batch, *shape), the number of classes and a seed to logits (batch, classes)."""

FLAT = 2048
"""Values up to which a tensor is flattened as it is."""
LARGE_IMAGE = 64
"""Pixels a side from which on an image is first averaged down."""
DROPPED = 0.1
"""Share of a head's last features that training leaves out; nothing at inference."""

_POOL = {1: layers.AveragePooling1D, 2: layers.AveragePooling2D}
_MEAN = {1: layers.GlobalAveragePooling1D, 2: layers.GlobalAveragePooling2D}
_CONV = {1: layers.Conv1D, 2: layers.Conv2D}
_RELU = {"activation": "relu"}


def linear(shape: Shape) -> list[Step]:
    """One dense layer on all values, or on the mean of each channel where there are many: the cheapest, the weakest."""
    return _flat(shape) if math.prod(shape) <= FLAT or not _space(shape) else [(_MEAN[_space(shape)], {})]


def pool(shape: Shape) -> list[Step]:
    """Averages over a 4x4 grid (8 steps of a sequence), then dense: much better than over the whole, as cheap."""
    space = _space(shape)
    if not space:
        return linear(shape)
    size = tuple(math.ceil(n / (4 if space == 2 else 8)) for n in shape[:-1])
    return [*_averaged(size), *_flat(())]


def mlp(shape: Shape) -> list[Step]:
    """All values (averaged down where they are many) through 64 hidden ones: a matrix is what runtimes do fastest,
    though it has the most weights. Good for small images and flat inputs."""
    size = _down_to(shape, FLAT)
    return [*_averaged(size), *_flat(()), (layers.Dense, {"units": 64, **_RELU})]


def conv(shape: Shape) -> list[Step]:
    """One convolution with a stride about its size, to a grid of 7x7 (16 steps of a sequence)."""
    if not _space(shape):
        return mlp(shape)
    steps, shape = _shrunk(shape)
    first, places = _strided(shape, 32)
    return [*steps, first, *_ended(places)]


def deep(shape: Shape) -> list[Step]:
    """`conv` and one more convolution: a net of its own, of 30k to 200k MACs on small inputs. The most accurate."""
    space = _space(shape)
    if not space:
        return [*_flat(shape), (layers.Dense, {"units": 64, **_RELU}), (layers.Dense, {"units": 32, **_RELU})]
    steps, shape = _shrunk(shape)
    first, places = _strided(shape, 24 if space == 2 else 32)
    stride = 2 if space == 2 else 1
    second = {"filters": 32, "kernel_size": 3, "strides": stride, "padding": "same", **_RELU}
    return [*steps, first, (_CONV[space], second), *_ended(tuple(math.ceil(n / stride) for n in places))]


DESIGNS: dict[str, Callable[[Shape], list[Step]]] = {
    "linear": linear,
    "pool": pool,
    "mlp": mlp,
    "conv": conv,
    "deep": deep,
}
"""What comes before the last dense layer, for a tensor of some shape (without the batch axis)."""


def _head(design: Callable[[Shape], list[Step]]) -> Head:
    def build(tensor: Any, classes: int, seed: int) -> Any:
        steps = [*design(tuple(tensor.shape)[1:]), (layers.Dropout, {"rate": DROPPED, "seed": seed})]
        for number, (kind, settings) in enumerate([*steps, (layers.Dense, {"units": classes})]):
            if issubclass(kind, layers.Dense | layers.Conv1D | layers.Conv2D):
                settings = settings | {"kernel_initializer": keras.initializers.GlorotUniform(seed + number)}
            tensor = kind(**settings)(tensor)
        return tensor

    return build


HEADS: dict[str, Head] = {name: _head(design) for name, design in DESIGNS.items()}

ACCURATE_FIRST = ("deep", "conv", "pool", "linear")
"""What `choose` tries, in order."""
NETS = ("deep", "conv")
"""Those that are a net of their own, fit for the raw input."""


def macs(name: str, shape: Shape, classes: int) -> int:
    """MACs of one sample in the head `name` on a tensor of `shape`."""
    given = keras.Input(shape)
    return sum(node.macs for node in walk(keras.Model(given, HEADS[name](given, classes, 0))).nodes)


def choose(shape: Shape, classes: int, budget: float) -> str | None:
    """The most accurate design of at most `budget` MACs; None if even the cheapest costs more."""
    return next((name for name in ACCURATE_FIRST if macs(name, shape, classes) <= budget), None)


def _space(shape: Shape) -> int:
    """2 for an image (height, width, channels), 1 for a sequence (steps, channels), 0 for whatever is taken as flat."""
    return len(shape) - 1 if len(shape) in (2, 3) else 0


def _flat(shape: Shape) -> list[Step]:
    return [] if len(shape) == 1 else [(layers.Flatten, {})]


def _averaged(size: Shape) -> list[Step]:
    return [(_POOL[len(size)], {"pool_size": size, "padding": "same"})] if any(n > 1 for n in size) else []


def _down_to(shape: Shape, values: int) -> Shape:
    """The least size of pooling after which no more than `values` are left."""
    if not _space(shape):
        return ()
    factor = 1
    while math.prod(math.ceil(n / factor) for n in shape[:-1]) * shape[-1] > values and factor < max(shape[:-1]):
        factor += 1
    return tuple(min(factor, n) for n in shape[:-1])


def _shrunk(shape: Shape) -> tuple[list[Step], Shape]:
    """A large image averaged down to `LARGE_IMAGE`, and its shape then."""
    size = tuple(math.ceil(n / LARGE_IMAGE) for n in shape[:-1]) if _space(shape) == 2 else ()
    steps = _averaged(size)
    return steps, (*(math.ceil(n / by) for n, by in zip(shape, size, strict=False)), shape[-1]) if steps else shape


def _strided(shape: Shape, filters: int) -> tuple[Step, Shape]:
    """A convolution to at most 7 places a side (16 of a sequence), and the places. With one input channel patches do
    not overlap: there each weight of the kernel costs a step of its own."""
    space = _space(shape)
    strides = tuple(math.ceil(n / (7 if space == 2 else 16)) for n in shape[:-1])
    wide = shape[-1] > 1
    size = tuple(max(3, (2 * by if space == 1 else by + 1) if wide else by) for by in strides)
    settings = {"filters": filters, "kernel_size": size, "strides": strides, "padding": "same", **_RELU}
    return (_CONV[space], settings), tuple(math.ceil(n / by) for n, by in zip(shape, strides, strict=False))


def _ended(places: Shape) -> list[Step]:
    """All places of an image; of a sequence the largest value of each channel."""
    return _flat(()) if len(places) == 2 else [(layers.MaxPooling1D, {"pool_size": places[0]}), *_flat(())]
