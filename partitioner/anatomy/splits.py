"""Where a model can be cut, and what crosses there.

Every position on the trunk is a split point, as long as what crosses can travel: all tensors that the nodes done have
made and others still read, skip connections too, and inputs that are read later. Most lie inside of what a runtime
fuses into one step (convolution, batch norm, activation); block ends are those that do not.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from keras import layers

from partitioner.anatomy.exits import Anatomy, logits_of
from partitioner.anatomy.graph import Graph, Key, Node
from sluice.wire.errors import PermanentError

INPUT = "input"
"""Name of the split point before anything is done."""
DTYPES = ("float32", "float16", "int8", "uint8", "int32", "int64", "bool")
"""What can cross a cut."""
ENOUGH_BLOCK_ENDS = 4
"""Block ends with fewer tensors that make ones with more unnecessary."""
MOST_TENSORS = 4
"""Tensors that cross a block end."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """A tensor at a cut: its short name (it travels with every message), its key, dtype and shape of one sample."""

    name: str
    key: Key
    dtype: str
    shape: tuple[int, ...]

    def nbytes(self, codec: str) -> int:
        """Bytes of one sample by `codec` before compression; coarse at most, since it may have 16 levels."""
        size = math.prod(self.shape)
        if self.dtype.startswith("float"):
            if codec.startswith("int8"):
                return size
            if codec.startswith("float16"):
                return 2 * size
            if codec == "coarse":
                return (size + 1) // 2
        return size * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class SplitPoint:
    """A position on the trunk: `name` of the layer before it, what crosses, MACs of one sample on each side."""

    name: str
    position: int
    tensors: tuple[Crossing, ...]
    """Named as if the model were cut here alone."""
    macs_before: int
    macs_after: int
    block_end: bool

    @property
    def keys(self) -> tuple[Key, ...]:
        """What crosses."""
        return tuple(tensor.key for tensor in self.tensors)

    def nbytes(self, codec: str) -> int:
        """Bytes of one sample by `codec` before compression."""
        return sum(tensor.nbytes(codec) for tensor in self.tensors)


def crossing_of(graph: Graph, key: Key, name: str) -> Crossing:
    """`key` as it crosses; `PermanentError` for an open shape, a dtype that cannot, or other rows than samples."""
    dtype = graph.dtype(key)
    if dtype not in DTYPES:
        raise PermanentError(
            f"output of {graph.maker(key).path!r} is {dtype}, which cannot cross a cut: {', '.join(DTYPES)} can"
        )
    if key not in graph.rows:
        raise PermanentError(
            f"output of {graph.maker(key).path!r} does not have one row a sample: it cannot cross a cut"
        )
    return Crossing(name, key, dtype, graph.shape(key))


def input_crossings(model: Anatomy) -> tuple[Crossing, ...]:
    """The model's inputs as they cross into the first segment: `x`, or `x0`, `x1`, …"""
    single = len(model.inputs) == 1
    return tuple(
        crossing_of(model.graph, key, "x" if single else f"x{i}") for i, key in enumerate(model.inputs.values())
    )


def split_points(model: Anatomy) -> list[SplitPoint]:
    """All split points in order, the raw input first; the end of the trunk is none."""
    graph = model.graph
    named = {tensor.key: tensor for tensor in input_crossings(model)}
    names = _names(model)
    macs = [graph.nodes[index].macs for index in model.trunk]
    last_use = {key: at for at, index in enumerate(model.trunk) for key in graph.nodes[index].reads}
    if not model.exits:
        last_use |= dict.fromkeys(model.results.values(), len(macs))
    points = []
    live = list(named)
    before = 0
    for position, name in enumerate(names):
        if position:
            done = graph.nodes[model.trunk[position - 1]]
            before += done.macs
            live = [key for key in (*done.outputs, *live) if last_use.get(key, -1) >= position]
        tensors = _tensors(graph, live, named)
        if tensors is not None:
            points.append(SplitPoint(name, position, tensors, before, sum(macs) - before, False))
    return _with_block_ends(model, points)


def find_split(points: Sequence[SplitPoint], name: str) -> SplitPoint:
    """The point called `name`; `PermanentError` with the nearest name if there is none."""
    for point in points:
        if point.name == name:
            return point
    near = difflib.get_close_matches(name, [point.name for point in points], n=1, cutoff=0.0)
    raise PermanentError(f"no split point {name[:80]!r}; the nearest name is {near[0]!r}")


def as_rows(points: Iterable[SplitPoint]) -> list[dict[str, Any]]:
    """The points as plain data: name, tensors, bytes (float32: as they are; int8), MACs before and after, block end."""
    return [
        {
            "name": point.name,
            "tensors": [{"name": t.name, "shape": list(t.shape), "dtype": t.dtype} for t in point.tensors],
            "bytes": {"float32": point.nbytes("raw"), "int8": point.nbytes("int8")},
            "macs_before": point.macs_before,
            "macs_after": point.macs_after,
            "block_end": point.block_end,
        }
        for point in points
    ]


def _names(model: Anatomy) -> list[str]:
    """One for each position but the last: the layer's name, with @2, @3, … when it comes again (a layer called twice,
    or one of the same name in a nested model)."""
    names: dict[str, None] = {INPUT: None}
    for index in model.trunk[:-1]:
        name = model.graph.nodes[index].name
        again = 2
        while name in names:
            name = f"{model.graph.nodes[index].name}@{again}"
            again += 1
        names[name] = None
    return list(names)


def _tensors(graph: Graph, live: Iterable[Key], inputs: dict[Key, Crossing]) -> tuple[Crossing, ...] | None:
    """`live` as it crosses, or None when one of them cannot."""
    made: list[Crossing] = []
    for key in live:
        if key in inputs:
            made.append(inputs[key])
            continue
        try:
            made.append(crossing_of(graph, key, f"h{sum(one.key not in inputs for one in made)}"))
        except PermanentError:
            return None
    return tuple(made)


FOLDED = (
    layers.BatchNormalization,
    layers.Activation,
    layers.ReLU,
    layers.LeakyReLU,
    layers.PReLU,
    layers.ELU,
    layers.Softmax,
    layers.Rescaling,
    layers.Normalization,
    layers.Add,
    layers.Multiply,
)
"""Layers that a runtime does in one step with the one before."""
LEADING = (
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.AlphaDropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.ActivityRegularization,
    layers.Identity,
    layers.Flatten,
    layers.Reshape,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.ZeroPadding3D,
)
"""Layers that do nothing at inference, or belong to the one that follows."""


def _with_block_ends(model: Anatomy, points: list[SplitPoint]) -> list[SplitPoint]:
    """`points` with their block ends told: where one tensor crosses, or a few if that leaves too few of them."""
    graph = model.graph
    readers: dict[Key, list[Node]] = {}
    for index in model.trunk:
        for key in graph.nodes[index].inputs:
            readers.setdefault(key, []).append(graph.nodes[index])
    raw = points[0].nbytes("raw")
    ends = [logits_of(graph, model.exits[-1].output)[0]] if model.exits else model.results.values()
    made = sum(crossing_of(graph, key, "").nbytes("raw") for key in ends)

    def is_folded(key: Key) -> bool:
        """Whether the only node that reads `key` would be done in one step with the node that makes it."""
        if len(readers.get(key, ())) != 1:
            return False
        (node,) = readers[key]
        if isinstance(node.operation, LEADING):
            return is_folded(node.outputs[0])
        if isinstance(node.operation, layers.Layer):
            return isinstance(node.operation, FOLDED)
        # an operation such as relu or add, that computes element by element
        return not node.macs and graph.tensors[node.outputs[0]].shape in [
            graph.tensors[one].shape for one in node.reads
        ]

    def ends_a_block(point: SplitPoint) -> bool:
        if not point.position:
            return True
        node = graph.nodes[model.trunk[point.position - 1]]
        nbytes = point.nbytes("raw")
        idle = (not point.macs_before and nbytes >= raw) or (not point.macs_after and nbytes >= made)
        if idle or isinstance(node.operation, LEADING):
            return False
        new = [key for key in point.keys if key in node.outputs]
        return bool(new) and not any(is_folded(key) for key in new)

    found = [point for point in points if len(point.keys) <= MOST_TENSORS and ends_a_block(point)]
    chosen: set[int] = set()
    for tensors in range(1, MOST_TENSORS + 1):
        chosen |= {point.position for point in found if len(point.keys) == tensors}
        if len(chosen) > ENOUGH_BLOCK_ENDS:
            break
    return [replace(point, block_end=point.position in chosen) for point in points]
