"""Multiply-accumulates of a layer for one sample, from the shapes of its inputs and outputs.

Dense and convolution layers are counted, other operations count as 0: next to those they cost time but few
multiplications. Recurrent and attention layers are not counted yet, so their models look cheaper than they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers


def macs_of(operation: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """MACs of one call of `operation` on symbolic tensors (batch, *shape); open dimensions count as 1."""
    if isinstance(operation, keras.Model):
        return _of_model(operation)
    if not isinstance(operation, layers.Layer) or not inputs:
        return 0
    made = _size(outputs[0].shape[1:])
    first = getattr(operation, "data_format", "") == "channels_first"
    return _of_layer(operation, made, inputs[0].shape[1 if first else -1] or 1)


def _of_layer(layer: Any, made: int, channels: int) -> int:
    """From the number of values that `layer` makes and the channels that it reads."""
    if isinstance(layer, layers.Dense):
        return made * channels
    if isinstance(layer, layers.SeparableConv1D | layers.SeparableConv2D):
        wide = channels * layer.depth_multiplier
        return made // layer.filters * wide * (math.prod(layer.kernel_size) + layer.filters)
    if isinstance(layer, layers.DepthwiseConv1D | layers.DepthwiseConv2D):
        return made * math.prod(layer.kernel_size)
    if isinstance(layer, layers.Conv1D | layers.Conv2D | layers.Conv3D):
        return made * math.prod(layer.kernel_size) * channels // layer.groups
    return 0


def _of_model(model: Any) -> int:
    """A nested model: the sum over its own graph."""
    functional = getattr(model, "_functional", None) or model
    levels = getattr(functional, "_nodes_by_depth", {}).values()
    nodes = [node for level in levels for node in level]
    return sum(macs_of(node.operation, node.input_tensors, node.output_tensors) for node in nodes)


def _size(shape: Sequence[int | None]) -> int:
    return math.prod(size or 1 for size in shape)
