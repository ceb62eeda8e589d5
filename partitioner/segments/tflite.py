"""What a TFLite file says of itself: its operations, its signature, and how its tensors are quantised.

TensorFlow brings the file's schema; this module is the few questions that the partitioner asks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tensorflow.lite.python import schema_py_generated as schema

_NAMES = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: its builtin name (of a custom one its own), the numbers of the tensors that it reads and makes."""

    name: str
    custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class File:
    """A TFLite file with one signature.

    `inputs`, `outputs`: tensor numbers by their names in the signature; `operations`: those of its graph, in order;
    `everywhere`: those of all graphs, the bodies of loops too.
    """

    def __init__(self, content: bytes) -> None:
        model: Any = schema.Model.GetRootAsModel(content, 0)
        signature = model.SignatureDefs(0)
        self._graph: Any = model.Subgraphs(signature.SubgraphIndex())
        self._filled = [model.Buffers(i).DataLength() > 0 for i in range(model.BuffersLength())]
        inputs = [signature.Inputs(i) for i in range(signature.InputsLength())]
        outputs = [signature.Outputs(i) for i in range(signature.OutputsLength())]
        self.inputs = {each.Name().decode(): each.TensorIndex() for each in inputs}
        self.outputs = {each.Name().decode(): each.TensorIndex() for each in outputs}
        self.operations = _operations(model, self._graph)
        self.everywhere = [o for i in range(model.SubgraphsLength()) for o in _operations(model, model.Subgraphs(i))]
        self._maker = {tensor: operation for operation in self.operations for tensor in operation.outputs}

    def maker(self, tensor: int) -> Operation | None:
        """The operation that makes a tensor; None for an input or a constant."""
        return self._maker.get(tensor)

    def name(self, tensor: int) -> str:
        """The tensor's name in the file."""
        return str(self._graph.Tensors(tensor).Name().decode())

    def shape(self, tensor: int) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self._graph.Tensors(tensor).ShapeAsNumpy().tolist())

    def weights(self, operation: Operation) -> int:
        """How many values its constant inputs hold."""
        constant = set(operation.inputs) - self.variable(operation)
        return sum(math.prod(self.shape(tensor)) for tensor in constant)

    def variable(self, operation: Operation) -> set[int]:
        """Its inputs that are no constants."""
        return {tensor for tensor in operation.inputs if not self._filled[self._graph.Tensors(tensor).Buffer()]}

    def scale(self, tensor: int) -> tuple[float, int] | None:
        """(scale, zero point) of the int8 tensor that a float one was dequantised from; None if there is none."""
        maker = self.maker(tensor)
        if maker is None or maker.name != "DEQUANTIZE":
            return None
        source = self._graph.Tensors(maker.inputs[0])
        found = source.Quantization()
        if source.Type() != schema.TensorType.INT8 or found is None or found.ScaleLength() != 1:
            return None
        return float(found.Scale(0)), int(found.ZeroPoint(0))


def _operations(model: Any, graph: Any) -> list[Operation]:
    return [_operation(model, graph.Operators(i)) for i in range(graph.OperatorsLength())]


def _operation(model: Any, found: Any) -> Operation:
    code = model.OperatorCodes(found.OpcodeIndex())
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    custom = number == schema.BuiltinOperator.CUSTOM
    name = code.CustomCode().decode() if custom else _NAMES[number]
    inputs: Sequence[int] = [found.Inputs(i) for i in range(found.InputsLength())]
    outputs: Sequence[int] = [found.Outputs(i) for i in range(found.OutputsLength())]
    return Operation(name, custom, tuple(t for t in inputs if t >= 0), tuple(outputs))  # -1 is one left out
