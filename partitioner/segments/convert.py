"""A Keras model as a TFLite file: float32, float16 weights, or int8.

The converter (TensorFlow 2.21) has traps that this module keeps to itself. It may write a file without its weights and
say nothing, so a file that reads variables is refused. It quantises answers to 256 steps, so the operation that makes
an exit's logits or a result stays in float. When it cannot express something it names operations that nobody wrote, so
the layer is found by converting each alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray
from tensorflow.lite.python.convert import mlir_quantize
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2_as_graph

from partitioner.anatomy.graph import Graph, Key, Node, rebuild, walk
from partitioner.quiet import held
from partitioner.segments.blocked import blocked
from partitioner.segments.tflite import File
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Quantize

Array = NDArray[np.generic]

FEW_CHANNELS = 4
"""A convolution that reads fewer stays in float under int8: the runtime's int8 kernels work on 4 or 8 channels at once
and fill up with zeros. Measured on x86-64 with AVX-512: 1 channel 6 times, 3 channels 3 times slower than in float."""
LARGE_HEAD = 1_000_000
"""Weights from which on the last operation of an exit is quantised as well: then its 4 bytes a weight cost more than
the resolution of its logits is worth."""
PREPROCESSING = (
    *("CAST", "ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "PAD", "RESHAPE"),
    *("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"),
)
"""Operations that stay in float as long as they read nothing else but inputs: each channel of a sensor may have a size
of its own until it is normalised."""
WEIGHTLESS = ("RESHAPE", "SQUEEZE", "LOGISTIC", "SOFTMAX", "TANH", "RELU")
"""Operations at the end of an answer whose own input decides how fine it is."""
CALIBRATION_BATCH = 16


@held()
def convert(
    model: keras.Model,
    what: str,
    quantize: Quantize = "float32",
    samples: Mapping[str, Array] | None = None,
    answers: Iterable[str] = (),
) -> bytes:
    """`model` (inputs a list, outputs a dict) as a TFLite file with an open batch dimension and float32 outputs.

    `what` names it in errors. For int8: `samples` (name: (n, *shape)) are the inputs that it takes its ranges from,
    `answers` the outputs that are no tensors for another segment and shall not be quantised. Raises `PermanentError`,
    naming the layer where it can be found, when the model does not convert.
    """
    try:
        content = _converted(_rewritten(model), quantize, samples or {}, answers)
    except Exception as error:
        cause = " ".join(str(error).split())
        culprit = _culprit(model, cause)
        if culprit is None:
            raise PermanentError(f"{what} does not convert to TFLite: {cause[:300]}") from error
        raise PermanentError(
            f"{what} does not convert to TFLite: it cannot express layer {culprit.path!r} "
            f"({type(culprit.operation).__name__}); use other layers, or do this to the data before the model"
        ) from error
    for operation in File(content).everywhere:
        if operation.name in ("VAR_HANDLE", "READ_VARIABLE"):
            raise PermanentError(f"{what} was converted without its weights ({operation.name})")
        if operation.custom:
            raise PermanentError(f"{what} needs the operation {operation.name!r}, which no device's runtime has")
    return content


def _converted(model: keras.Model, quantize: Quantize, samples: Mapping[str, Array], answers: Iterable[str]) -> bytes:
    converter: Any = tf.lite.TFLiteConverter.from_keras_model(_frozen(model))
    if quantize != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize != "int8":
        return bytes(converter.convert())
    names = [tensor.name for tensor in model.inputs]
    converter.representative_dataset = lambda: _batches({name: samples[name] for name in names})
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]
    converter._experimental_calibrate_only = True
    calibrated = bytes(converter.convert())
    file = File(calibrated)
    return bytes(
        mlir_quantize(
            calibrated,
            denylisted_nodes=_in_float(file, answers),
            # tflite-runtime 2.14 crashes on ARM for one that is quantised by channel and has no bias
            disable_per_channel_for_dense_layers=any(
                operation.name == "FULLY_CONNECTED" and len(operation.inputs) < 3 for operation in file.operations
            ),
        )
    )


def _frozen(model: keras.Model) -> tf.Module:
    """`model` as one function of its inputs, with its weights as constants.

    The converter takes it like a model, and is done in a half to a quarter of the time: what Keras would write for it
    keeps track of each layer and variable.
    """
    inputs = [tf.TensorSpec(tensor.shape, tensor.dtype, name=tensor.name) for tensor in model.inputs]
    traced = tf.function(lambda *values: model(list(values), training=False)).get_concrete_function(*inputs)
    frozen, graph = convert_variables_to_constants_v2_as_graph(traced, lower_control_flow=False)
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        for node in nodes:
            node.attr.pop("_gradient_op_type", None)  # of swish: it cannot be saved, and nobody trains this
    names = sorted(traced.structured_outputs)
    read, made = [tensor.name for tensor in frozen.inputs], [tensor.name for tensor in frozen.outputs]

    def serve(*values: Any) -> dict[str, Any]:
        given = dict(zip(read, values, strict=True))
        return dict(zip(names, tf.graph_util.import_graph_def(graph, given, made, name=""), strict=True))

    module = tf.Module()
    module.serve = tf.function(serve, input_signature=inputs)
    return module


def _batches(samples: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """All of one size, the last overlapping: the converter resizes one input after the other, and fails in between."""
    n = len(next(iter(samples.values())))
    size = min(n, CALIBRATION_BATCH)
    for i in [*range(0, n - size, size), n - size]:
        yield {name: array[i : i + size] for name, array in samples.items()}


def _in_float(file: File, answers: Iterable[str]) -> set[str]:
    """Names of the operations that stay in float under int8: preprocessing, what makes the answers, `FEW_CHANNELS`."""
    kept = set()
    early = set(file.inputs.values())
    for operation in file.operations:
        if operation.name in PREPROCESSING and early.issuperset(file.variable(operation)):
            kept.add(operation)
            early |= set(operation.outputs)
        if operation.name == "CONV_2D" and file.shape(operation.inputs[1])[3] < FEW_CHANNELS:
            kept.add(operation)
    for name in answers:
        last = file.maker(file.outputs[name])
        while last is not None and file.weights(last) < LARGE_HEAD:
            kept.add(last)
            last = file.maker(last.inputs[0]) if last.name in WEIGHTLESS else None
    return {file.name(operation.outputs[0]) for operation in kept}


def _rewritten(model: keras.Model) -> keras.Model:
    """`model` as the runtimes do it faster: a first convolution in blocks (`blocked.py`), Flatten and Reshape to a
    constant shape. Else that shape is computed anew at each run, which costs three operations and splits what the
    runtime could take as a whole."""
    graph, inputs, outputs = _parts(model)
    blocks = {id(graph.nodes[index]): make for index, make in blocked(graph).items()}

    def replace(node: Node, values: list[Any]) -> Any:
        if id(node) in blocks:
            return blocks[id(node)](values[0])
        if isinstance(node.operation, layers.Flatten | layers.Reshape):
            return keras.ops.reshape(values[0], (-1, *graph.shape(node.outputs[0])))
        return None

    return rebuild(graph, inputs, outputs, replace)


def _parts(model: Any) -> tuple[Graph, dict[str, Key], dict[str, Key]]:
    graph = walk(model)
    names = {id(tensor): name for name, tensor in model._outputs_struct.items()}
    outputs = {names[id(t)]: key for t, key in zip(model.outputs, graph.outputs, strict=True)}
    return graph, dict(graph.inputs), outputs


def _culprit(model: keras.Model, cause: str) -> Node | None:
    """The node that does not convert even by itself; those that the converter's message names are tried first."""
    graph, _, _ = _parts(model)
    nodes = [node for node in graph.nodes if not node.is_input]
    nodes.sort(key=lambda node: not re.search(rf"\b{re.escape(node.name)}\b", cause))
    for node in nodes:
        inputs = {f"i{k}": key for k, key in enumerate(node.inputs)}
        outputs = {f"o{k}": key for k, key in enumerate(node.outputs)}
        try:
            _converted(rebuild(graph, inputs, outputs), "float32", {}, ())
        except Exception:
            return node
    return None
