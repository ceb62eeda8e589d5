"""A first convolution on one channel and the pooling after it, written down so that a runtime does them faster.

Runtimes multiply matrices: so many input channels at a time by so many output channels (16 floats with AVX-512). A
convolution of few filters on a picture of one channel leaves most of both empty, and takes a fifth of LeNet's time for
a tenth of its multiplications. The same sums come from fewer and fuller steps when one kernel, larger by a block of
neighbouring places, makes all values of that block as channels; and if the pooling takes its maximum over places of one
block, it becomes one over neighbouring channels. Measured on x86-64 for LeNet's first block: 14.3 µs become 9.8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from partitioner.anatomy.graph import Graph, Key, Node

FULL = 64
"""Output channels up to which larger blocks pay."""

Make = Callable[[Any], Any]
"""From a node's only input to what takes its output's place."""


def blocked(graph: Graph) -> dict[int, Make]:
    """What to make of some nodes instead of their own outputs, by their place in `graph`.

    These come in pairs: a `Conv2D` whose output only a `MaxPooling2D` reads, and that pooling. The first makes
    something that the second alone understands; the second's output is what it was, but for the order of sums.
    """
    readers: dict[Key, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        for key in node.inputs:
            readers.setdefault(key, []).append(index)
    made: dict[int, Make] = {}
    for index, node in enumerate(graph.nodes):
        only = [readers.get(key, []) for key in node.outputs if key not in graph.outputs]
        if not _is_narrow(graph, node) or len(only) != 1 or len(only[0]) != 1:
            continue
        (pooling,) = only[0]
        high, wide, filters = graph.shape(node.outputs[0])
        width = _block_width(wide, filters)
        if high % 2 or width is None or not _is_pooling(graph.nodes[pooling]):
            continue
        made[index] = _convolution(node.operation, width)
        made[pooling] = _pooling((high // 2, wide // 2, filters))
    return made


def _is_narrow(graph: Graph, node: Node) -> bool:
    layer = node.operation
    return (
        isinstance(layer, layers.Conv2D)
        and graph.shape(node.reads[0])[-1] == 1
        and layer.data_format == "channels_last"
        and layer.strides == layer.dilation_rate == (1, 1)
        and layer.groups == 1
        and layer.padding in ("valid", "same")
    )


def _is_pooling(node: Node) -> bool:
    layer = node.operation
    return (
        isinstance(layer, layers.MaxPooling2D)
        and layer.data_format == "channels_last"
        and layer.pool_size == layer.strides == (2, 2)
    )


def _block_width(wide: int, filters: int) -> int | None:
    """Columns of a block of two rows, even and a divisor of `wide`; None if not even two columns pay."""
    fitting = [width for width in range(2, wide + 1, 2) if not wide % width and 2 * width * filters <= FULL]
    return max(fitting, default=None)


def _convolution(layer: Any, width: int) -> Make:
    """All values of each block of 2 x `width` places as channels: for each pair of columns its four places in turn."""
    kernel, *bias = (np.asarray(weight) for weight in layer.get_weights())
    high, wide, _, filters = kernel.shape
    large = np.zeros((high + 1, wide + width - 1, 1, width // 2, 2, 2, filters), np.float32)
    for pair, down, right in np.ndindex(width // 2, 2, 2):
        left = 2 * pair + right
        large[down : down + high, left : left + wide, :, pair, down, right] = kernel
    weights: list[NDArray[np.float32]] = [large.reshape(*large.shape[:3], -1)]
    weights += [np.tile(one, 2 * width) for one in bias]

    def make(tensor: Any) -> Any:
        if layer.padding == "same":
            around = [((size - 1) // 2, size // 2) for size in (high, wide)]
            tensor = layers.ZeroPadding2D(tuple(around))(tensor)
        convolution = layers.Conv2D(
            2 * width * filters,
            large.shape[:2],
            strides=(2, width),
            activation=layer.activation,
            use_bias=bool(bias),
            dtype=layer.dtype_policy,
        )
        made = convolution(tensor)
        convolution.set_weights(weights)
        return made

    return make


def _pooling(shape: tuple[int, int, int]) -> Make:
    def make(tensor: Any) -> Any:
        groups = ops.reshape(tensor, (-1, math.prod(shape[:2]), 4, shape[2]))
        return ops.reshape(layers.MaxPooling2D((1, 4))(groups), (-1, *shape))

    return make
