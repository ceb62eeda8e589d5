"""Multiply-accumulates of a layer for one sample, from the shapes of its inputs, outputs and weights.

What multiplies matrices is counted: dense, convolution, recurrent and attention layers and their operations. Others
(elementwise, pooling, normalisation, resizing) count as 0: next to those they cost time but few multiplications.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import layers
from keras.src.ops import numpy as operations

Shape = tuple[int, ...]


def macs_of(operation: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """MACs of one call of `operation` on symbolic tensors (batch, *shape); open dimensions count as 1."""
    if not inputs or not outputs:
        return 0
    reads = [_sample(tensor.shape) for tensor in inputs]
    made = [_sample(tensor.shape) for tensor in outputs]
    if isinstance(operation, keras.Model):
        return _model(operation)
    for kinds, count in _COUNTS:
        if isinstance(operation, kinds):
            return count(operation, reads, made)
    return 0


def _sample(shape: Sequence[int | None]) -> Shape:
    return tuple(size or 1 for size in shape[1:])


def _dense(_: Any, reads: Sequence[Shape], made: Sequence[Shape]) -> int:
    return math.prod(made[0]) * reads[0][-1]


def _einsum_dense(layer: Any, _: Sequence[Shape], made: Sequence[Shape]) -> int:
    return math.prod(made[0]) * _contracted(layer.equation, layer.kernel.shape)


def _contracted(equation: str, kernel: Sequence[int]) -> int:
    """Over how many products each value of an einsum is summed, from the axes of its second operand."""
    operands, result = equation.replace(" ", "").split("->")
    axes = operands.split(",")[1]
    return math.prod(size for axis, size in zip(axes, kernel, strict=True) if axis not in result)


def _channels(layer: Any, shape: Shape) -> int:
    return shape[0 if layer.data_format == "channels_first" else -1]


def _conv(layer: Any, reads: Sequence[Shape], made: Sequence[Shape]) -> int:
    return math.prod(made[0]) * math.prod(layer.kernel_size) * _channels(layer, reads[0]) // layer.groups


def _transposed(layer: Any, reads: Sequence[Shape], _: Sequence[Shape]) -> int:
    """Each value that is read goes through the whole kernel."""
    return math.prod(reads[0]) * math.prod(layer.kernel_size) * layer.filters


def _depthwise(layer: Any, _: Sequence[Shape], made: Sequence[Shape]) -> int:
    return math.prod(made[0]) * math.prod(layer.kernel_size)


def _separable(layer: Any, reads: Sequence[Shape], made: Sequence[Shape]) -> int:
    wide = _channels(layer, reads[0]) * layer.depth_multiplier
    return math.prod(made[0]) // layer.filters * wide * (math.prod(layer.kernel_size) + layer.filters)


def _recurrent(layer: Any, reads: Sequence[Shape], made: Sequence[Shape]) -> int:
    """Every kernel once a step; those of a convolution at each place of its output."""
    kernels = [weight for weight in layer.weights if weight.name.endswith("kernel")]
    one = getattr(layer, "forward_layer", layer)
    places = 1
    if isinstance(one, layers.ConvLSTM1D | layers.ConvLSTM2D | layers.ConvLSTM3D):
        shape = made[0][1:] if one.return_sequences else made[0]
        places = math.prod(shape) // _channels(one, shape)
    return reads[0][0] * places * sum(math.prod(kernel.shape) for kernel in kernels)


def _attention(layer: Any, reads: Sequence[Shape], _: Sequence[Shape]) -> int:
    """Projections of query, key and value, scores, weighted values, and the projection of the result."""
    query, value = reads[0], reads[1]
    key = reads[2] if len(reads) > 2 else value
    asked, known = math.prod(query[:-1]), math.prod(value[:-1])
    ask, answer = layer._query_dense.kernel.shape, layer._value_dense.kernel.shape
    projected = (math.prod(ask) + math.prod(layer._output_dense.kernel.shape)) * asked
    projected += math.prod(layer._key_dense.kernel.shape) * math.prod(key[:-1]) + math.prod(answer) * known
    return int(projected + ask[-2] * asked * known * (ask[-1] + answer[-1]))


def _dot_attention(_: Any, reads: Sequence[Shape], __: Sequence[Shape]) -> int:
    query, value = reads[0], reads[1]
    key = reads[2] if len(reads) > 2 else value
    return query[0] * value[0] * (key[-1] + value[-1])


def _wrapper(layer: Any, reads: Sequence[Shape], made: Sequence[Shape]) -> int:
    """A layer at each step."""
    step, result = keras.KerasTensor((None, *reads[0][1:])), keras.KerasTensor((None, *made[0][1:]))
    return reads[0][0] * macs_of(layer.layer, [step], [result])


def _dot(layer: Any, reads: Sequence[Shape], made: Sequence[Shape]) -> int:
    axis = layer.axes if isinstance(layer.axes, int) else layer.axes[0]
    return math.prod(made[0]) * (reads[0][axis - 1] if axis > 0 else reads[0][axis])


def _matmul(_: Any, reads: Sequence[Shape], made: Sequence[Shape]) -> int:
    return math.prod(made[0]) * reads[0][-1]


def _einsum(operation: Any, reads: Sequence[Shape], made: Sequence[Shape]) -> int:
    """All axes multiplied; the batch, which the shapes leave out, is 1."""
    operands, result = operation.subscripts.replace(" ", "").split("->")
    sizes: dict[str, int] = {}
    for axes, shape in zip([*operands.split(",")[: len(reads)], result], [*reads, made[0]], strict=True):
        sizes |= zip(axes.replace("...", "")[::-1], (1, *shape)[::-1], strict=False)
    return math.prod(sizes.values())


def _model(model: Any) -> int:
    """A nested model: the sum over its own graph."""
    functional = getattr(model, "_functional", None) or model
    levels = getattr(functional, "_nodes_by_depth", {}).values()
    nodes = [node for level in levels for node in level]
    return sum(macs_of(node.operation, node.input_tensors, node.output_tensors) for node in nodes)


_COUNTS: tuple[tuple[Any, Callable[[Any, Sequence[Shape], Sequence[Shape]], int]], ...] = (
    (layers.Dense, _dense),
    (layers.EinsumDense, _einsum_dense),
    ((layers.SeparableConv1D, layers.SeparableConv2D), _separable),
    ((layers.DepthwiseConv1D, layers.DepthwiseConv2D), _depthwise),
    ((layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose), _transposed),
    ((layers.Conv1D, layers.Conv2D, layers.Conv3D), _conv),
    ((layers.RNN, layers.Bidirectional), _recurrent),
    ((layers.MultiHeadAttention, layers.GroupQueryAttention), _attention),
    (layers.Attention, _dot_attention),
    (layers.TimeDistributed, _wrapper),
    (layers.Dot, _dot),
    ((operations.Matmul, operations.Dot), _matmul),
    (operations.Einsum, _einsum),
)
