"""The graph of a Keras model: its nodes in topological order, and pieces of it as models of their own.

A node is one call of one layer or operation. The walk goes back from the model's outputs over `tensor._keras_history`;
a model used as a layer is replaced by its own nodes, as often as it is called. A piece is rebuilt by calling the same
operations again (weights are shared, not copied) on new inputs. This leans on attributes that Keras does not promise:
`pyproject.toml` pins its version, and `tests/unit/test_partitioner_graph.py` holds them to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import keras
from keras import layers
from keras.src.backend.common.masking import get_keras_mask

from partitioner.anatomy.calls import (
    ROWS,
    functional_of,
    given_to,
    masked_arguments,
    output_names,
    output_shapes,
)
from partitioner.anatomy.macs import macs_of
from sluice.wire.errors import PermanentError


class Key(NamedTuple):
    """A tensor: index of the node that makes it, and which of the node's outputs it is."""

    node: int
    output: int


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One call of an operation; `macs` for one sample."""

    operation: Any
    name: str
    path: str
    """The name after those of the models that it is nested in."""
    call: Any
    """Keras' record of the call, with its arguments."""
    reads: tuple[Key, ...]
    """One for each of the call's tensors, in its order; then the masks that come with them."""
    masks: Mapping[str, Any]
    """Arguments of the call that take masks: indices into `reads`, nested as the call wants them, None for no mask."""
    outputs: tuple[Key, ...]
    macs: int
    training: bool | None
    """What a nested model was told when it was called."""

    @property
    def inputs(self) -> tuple[Key, ...]:
        """What it reads, without repeats."""
        return tuple(dict.fromkeys(self.reads))

    @property
    def is_input(self) -> bool:
        """Whether this is one of the model's inputs."""
        return not self.reads


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """All nodes that the outputs need, each after the nodes that it needs itself."""

    nodes: tuple[Node, ...]
    tensors: Mapping[Key, Any]
    """The symbolic tensor of each key."""
    rows: frozenset[Key]
    """The tensors whose first axis is the batch: one row a sample."""
    inputs: Mapping[str, Key]
    """The model's inputs by name, in its order."""
    outputs: tuple[Key, ...]
    """The model's outputs, flattened."""
    output_names: tuple[str, ...]

    def ancestors(self, keys: Iterable[Key]) -> set[int]:
        """Indices of the nodes that are needed to make `keys`."""
        found: set[int] = set()
        waiting = [key.node for key in keys]
        while waiting:
            index = waiting.pop()
            if index not in found:
                found.add(index)
                waiting += [key.node for key in self.nodes[index].reads]
        return found

    def maker(self, key: Key) -> Node:
        """The node that makes `key`."""
        return self.nodes[key.node]

    def shape(self, key: Key) -> tuple[int, ...]:
        """Shape of one sample; `PermanentError` when a dimension besides the batch is open."""
        shape = tuple(self.tensors[key].shape)[1:]
        if any(size is None for size in shape):
            name = self.maker(key).name
            raise PermanentError(f"output of {name!r} has the open shape {list(shape)}: give Input a fixed shape")
        return shape

    def dtype(self, key: Key) -> str:
        """The tensor's dtype as NumPy calls it."""
        return str(keras.backend.standardize_dtype(self.tensors[key].dtype))


def walk(model: Any) -> Graph:
    """The graph behind the outputs of the functional `model`; `PermanentError` for an input that nothing reads."""
    trace = _Trace()
    outputs = trace.back_from(model.outputs, {}, "", None)
    made = {_place(trace.tensors[key]): key for node in trace.nodes if node.is_input for key in node.outputs}
    inputs = {tensor._keras_history.operation.name: made.get(_place(tensor)) for tensor in model.inputs}
    if unused := next((name for name, key in inputs.items() if key is None), None):
        raise PermanentError(f"input {unused!r} is not used by any output: leave it out")
    rows = _rows(trace.nodes, trace.tensors)
    names = tuple(output_names(model))
    return Graph(tuple(trace.nodes), trace.tensors, rows, inputs, tuple(outputs), names)


_Place = tuple[int, int, int]


def _place(tensor: Any) -> _Place:
    """What tells a symbolic tensor from others: its operation, the number of the call, the number of the output."""
    history = tensor._keras_history
    return id(history.operation), history.node_index, history.tensor_index


@dataclass(frozen=True, slots=True)
class _Trace:
    """The nodes found so far, their tensors, and the masks of those tensors."""

    nodes: list[Node] = field(default_factory=list)
    tensors: dict[Key, Any] = field(default_factory=dict)
    masks: dict[Key, Key] = field(default_factory=dict)

    def back_from(self, outputs: Sequence[Any], keys: dict[_Place, Key], path: str, training: bool | None) -> list[Key]:
        """The keys of `outputs`, symbolic tensors of one model; `keys` are those known in it, and become more."""
        stack = [(tensor, False) for tensor in reversed(outputs)]
        while stack:
            tensor, ready = stack.pop()
            if _place(tensor) in keys:
                continue
            history = tensor._keras_history
            call = history.operation._inbound_nodes[history.node_index]
            if not ready:
                stack.append((tensor, True))
                stack += [(needed, False) for needed in reversed(call.input_tensors)]
                continue
            reads = [keys[_place(needed)] for needed in call.input_tensors]
            inner = functional_of(history.operation)
            if inner is not None and self.can_enter(call, inner, reads):
                made = self.enter(call, inner, reads, path, training)
                keys |= zip(map(_place, call.output_tensors), made, strict=True)
                continue
            made = self.add(call, reads, path, training)
            keys |= zip(map(_place, call.output_tensors), made, strict=True)
            for key, output in zip(made, call.output_tensors, strict=True):
                mask = get_keras_mask(output)
                if mask is not None and inner is None:
                    (self.masks[key],) = self.back_from([mask], keys, path, training)
        return [keys[_place(tensor)] for tensor in outputs]

    def add(self, call: Any, reads: Sequence[Key], path: str, training: bool | None) -> list[Key]:
        """The outputs of one more node, which reads `reads`, one for each of the call's tensors."""
        index = len(self.nodes)
        made = [Key(index, i) for i in range(len(call.output_tensors))]
        self.tensors.update(zip(made, call.output_tensors, strict=True))
        name = str(call.operation.name)
        masks, more = self.masks_for(call, reads)
        self.nodes.append(
            Node(
                operation=call.operation,
                name=name,
                path=f"{path}{name}",
                call=call,
                reads=(*reads, *more),
                masks=masks,
                outputs=tuple(made),
                macs=macs_of(call.operation, call.input_tensors, call.output_tensors),
                training=training,
            )
        )
        return made

    def masks_for(self, call: Any, reads: Sequence[Key]) -> tuple[dict[str, Any], list[Key]]:
        """`Node.masks`, and the masks that it counts after `reads`."""
        if not self.masks:
            return {}, []
        known = {id(tensor): self.masks.get(key) for tensor, key in zip(call.input_tensors, reads, strict=True)}
        more = list(dict.fromkeys(mask for mask in known.values() if mask is not None))

        def index_of(tensor: Any) -> int | None:
            mask = known.get(id(tensor))
            return None if mask is None else len(reads) + more.index(mask)

        wanted = {name: keras.tree.map_structure(index_of, value) for name, value in masked_arguments(call).items()}
        masks = {name: value for name, value in wanted.items() if any(i is not None for i in keras.tree.flatten(value))}
        return masks, more if masks else []

    def can_enter(self, call: Any, inner: Any, reads: Sequence[Key]) -> bool:
        """Whether a nested model can be replaced by its nodes: those do not know of masks that come from outside, and
        do not convert a tensor's rank, as the model does."""
        tensors, _ = given_to(inner, call)
        masked = len(tensors) < len(call.input_tensors) or bool(self.masks.keys() & set(reads))
        ranks = [len(tensor.shape) for tensor in tensors if tensor is not None]
        return not masked and ranks == [len(one.shape) for one in inner.inputs]

    def enter(self, call: Any, inner: Any, reads: Sequence[Key], path: str, training: bool | None) -> list[Key]:
        """The outputs of the nested model `inner` at one of its calls."""
        key_of = {id(tensor): key for tensor, key in zip(call.input_tensors, reads, strict=True)}
        tensors, told = given_to(inner, call)
        path = f"{path}{call.operation.name}/"
        given = {
            _place(wanted): self.converted(key_of[id(tensor)], wanted, path)
            for tensor, wanted in zip(tensors, inner.inputs, strict=True)
        }
        return self.back_from(inner.outputs, given, path, training if told is None else told)

    def converted(self, key: Key, wanted: Any, path: str) -> Key:
        """`key` in the dtype of a nested model's input."""
        tensor = keras.KerasTensor(self.tensors[key].shape, self.tensors[key].dtype)
        if tensor.dtype == wanted.dtype:
            return key
        history = keras.ops.cast(tensor, wanted.dtype)._keras_history
        (made,) = self.add(history.operation._inbound_nodes[history.node_index], [key], path, None)
        return made


def _rows(nodes: Sequence[Node], tensors: Mapping[Key, Any]) -> frozenset[Key]:
    """See `Graph.rows`. Layers keep the batch; what operations do to it shows with a batch of `ROWS`."""
    shapes: dict[Key, tuple[int | None, ...]] = {}
    for node in nodes:
        known = [shapes[key] for key in node.reads[: len(node.call.input_tensors)]]
        keeps = node.is_input or isinstance(node.operation, layers.Layer)
        made = None
        if not keeps or not all(shape[:1] == (ROWS,) for shape in known):
            made = output_shapes(node.call, known) or [(None,)] * len(node.outputs)
        for at, key in enumerate(node.outputs):
            shapes[key] = made[at] if made else (ROWS, *tensors[key].shape[1:])
    return frozenset(key for key, shape in shapes.items() if shape[:1] == (ROWS,))


Replace = Callable[[Node, list[Any]], Any]


def rebuild(
    graph: Graph,
    inputs: Mapping[str, Key],
    outputs: Mapping[str, Key],
    replace: Replace | None = None,
) -> keras.Model:
    """The piece of `graph` between `inputs` and `outputs` as a model: inputs as a list, outputs as a dict.

    The names become the names of the TFLite signature. `replace(node, inputs)` may return what to take for the
    operation's outputs, or another operation to call in its place (which is given its weights), or None. Raises
    `PermanentError` naming the operation when a needed tensor is not among `inputs`.
    """
    values: dict[Key, Any] = {
        key: keras.Input(graph.shape(key), dtype=graph.dtype(key), name=name) for name, key in inputs.items()
    }
    new_inputs = [values[key] for key in inputs.values()]
    needed = sorted(_needed(graph, set(inputs.values()), outputs.values()))
    for index in needed:
        node = graph.nodes[index]
        if node.is_input:
            reader = next(graph.nodes[i].name for i in needed if node.outputs[0] in graph.nodes[i].reads)
            raise PermanentError(f"the cut misses a connection: {reader!r} still reads input {node.name!r}")
        other = replace(node, [values[key] for key in node.inputs]) if replace else None
        made = _call_again(node, values, other) if other is None or isinstance(other, keras.Operation) else other
        values |= zip(node.outputs, keras.tree.flatten(made), strict=True)
    made = {name: values[key] for name, key in outputs.items()}
    with _names_of_their_own(new_inputs, made.values()):
        return keras.Model(new_inputs, made)


def _call_again(node: Node, values: Mapping[Key, Any], other: Any) -> Any:
    known = {id(tensor): values[key] for tensor, key in zip(node.call.input_tensors, node.reads, strict=False)}
    args, kwargs = node.call.arguments.fill_in(known)
    kwargs = dict(kwargs)
    for name, indices in node.masks.items():
        kwargs[name] = keras.tree.map_structure(lambda at: None if at is None else values[node.reads[at]], indices)
    if node.training is not None and "training" in getattr(node.operation, "_call_context_args", ()):
        kwargs["training"] = node.training
    if other is None:
        return node.operation(*args, **kwargs)
    made = other(*args, **kwargs)
    other.set_weights(node.operation.get_weights())
    return made


@contextlib.contextmanager
def _names_of_their_own(inputs: Iterable[Any], outputs: Iterable[Any]) -> Iterator[None]:
    """Keras wants unique names in a model, and nested models bring names that others have: those are changed for as
    long as this lasts; the inputs keep theirs."""
    operations = {id(one): one for one in _operations_between(inputs, outputs)}
    before = {key: operation.name for key, operation in operations.items()}
    taken: set[str] = set()
    for key, operation in operations.items():
        if operation.name in taken:
            operation.name = f"{operation.name}__{key}"
        taken.add(operation.name)
    try:
        yield
    finally:
        for key, operation in operations.items():
            operation.name = before[key]


def _operations_between(inputs: Iterable[Any], outputs: Iterable[Any]) -> Iterator[Any]:
    """All operations that make `outputs`, those of `inputs` first; some come more than once."""
    seen: set[_Place] = set()
    waiting = [*outputs, *inputs]
    while waiting:
        tensor = waiting.pop()
        if _place(tensor) not in seen:
            seen.add(_place(tensor))
            history = tensor._keras_history
            yield history.operation
            waiting += history.operation._inbound_nodes[history.node_index].input_tensors


def _needed(graph: Graph, given: set[Key], wanted: Iterable[Key]) -> set[int]:
    """Indices of the nodes to call again, walking back from `wanted` as far as `given`."""
    found: set[int] = set()
    waiting = [key for key in wanted if key not in given]
    while waiting:
        index = waiting.pop().node
        if index not in found:
            found.add(index)
            waiting += [key for key in graph.nodes[index].reads if key not in given]
    return found
