"""The graph of a functional Keras model: its nodes in topological order, and pieces of it as models of their own.

A node is one call of one layer or operation; a tensor is known by the node that made it and its place there. The walk
goes back from the model's outputs over `tensor._keras_history`, and a piece is rebuilt by calling the same operations
again (weights are shared, not copied) on new inputs. This leans on attributes that Keras does not promise:
`pyproject.toml` pins its version, and `tests/unit/test_partitioner_graph.py` holds them to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from partitioner.macs import macs_of
from sluice.wire.errors import PermanentError

Key = tuple[int, int, int]
"""A tensor: id of its operation, number of the call, number of the output."""


@dataclass(frozen=True, slots=True)
class Node:
    """One call of an operation. `inputs` without repeats; `macs` for one sample."""

    operation: Any
    call: Any
    inputs: tuple[Key, ...]
    outputs: tuple[Key, ...]
    macs: int

    @property
    def name(self) -> str:
        """The operation's name, for people."""
        return str(self.operation.name)

    @property
    def is_input(self) -> bool:
        """Whether this is one of the model's inputs."""
        return not self.inputs


@dataclass(frozen=True, slots=True)
class Graph:
    """All nodes that the outputs need, each after the nodes that it needs itself."""

    nodes: tuple[Node, ...]
    tensors: Mapping[Key, Any]
    """The symbolic tensor of each key."""
    maker: Mapping[Key, int]
    """Index of the node that makes it."""

    def ancestors(self, keys: Iterable[Key]) -> set[int]:
        """Indices of the nodes that are needed to make `keys`."""
        found: set[int] = set()
        waiting = [self.maker[key] for key in keys]
        while waiting:
            index = waiting.pop()
            if index not in found:
                found.add(index)
                waiting += [self.maker[key] for key in self.nodes[index].inputs]
        return found

    def shape(self, key: Key) -> tuple[int, ...]:
        """Shape of one sample; `PermanentError` when a dimension besides the batch is open."""
        shape = tuple(self.tensors[key].shape)[1:]
        if any(size is None for size in shape):
            name = self.nodes[self.maker[key]].name
            raise PermanentError(f"output of {name!r} has the open shape {list(shape)}: give Input a fixed shape")
        return shape


def key_of(tensor: Any) -> Key:
    """The key of a symbolic tensor."""
    history = tensor._keras_history
    return id(history.operation), history.node_index, history.tensor_index


def walk(outputs: Iterable[Any]) -> Graph:
    """The graph behind the symbolic tensors `outputs`."""
    nodes: list[Node] = []
    tensors: dict[Key, Any] = {}
    maker: dict[Key, int] = {}
    stack = [(tensor, False) for tensor in outputs]
    while stack:
        tensor, ready = stack.pop()
        if key_of(tensor) in maker:
            continue
        history = tensor._keras_history
        call = history.operation._inbound_nodes[history.node_index]
        if not ready:
            stack.append((tensor, True))
            stack += [(needed, False) for needed in reversed(call.input_tensors)]
            continue
        made = {key_of(t): t for t in call.output_tensors}
        inputs = tuple(dict.fromkeys(key_of(t) for t in call.input_tensors))
        macs = macs_of(history.operation, call.input_tensors, call.output_tensors)
        maker |= dict.fromkeys(made, len(nodes))
        tensors |= made
        nodes.append(Node(history.operation, call, inputs, tuple(made), macs))
    return Graph(tuple(nodes), tensors, maker)


def split_points(graph: Graph) -> list[tuple[int, Key]]:
    """Where one tensor alone crosses: (index of the node before the cut, key of the tensor), in order.

    The last node is left out: nothing follows it.
    """
    last_use = {key: index for index, node in enumerate(graph.nodes) for key in node.inputs}
    live: set[Key] = set()
    points = []
    for index, node in enumerate(graph.nodes[:-1]):
        live = {key for key in (*live, *node.outputs) if last_use.get(key, -1) > index}
        waiting = any(later.is_input for later in graph.nodes[index + 1 :])
        if len(live) == 1 and not waiting:
            points.append((index, next(iter(live))))
    return points


Replace = Callable[[Node, list[Any]], Any]


def rebuild(
    graph: Graph,
    inputs: Mapping[str, Key],
    outputs: Mapping[str, Key],
    replace: Replace | None = None,
) -> keras.Model:
    """The piece of `graph` between `inputs` and `outputs` as a model: inputs as a list, outputs as a dict.

    The names become the names of the TFLite signature. `replace(node, inputs)` may return something else than the
    operation's own outputs, or None. Raises `PermanentError` naming the operation when a needed tensor is not among
    `inputs`.
    """
    values: dict[Key, Any] = {
        key: keras.Input(graph.shape(key), dtype=graph.tensors[key].dtype, name=name) for name, key in inputs.items()
    }
    new_inputs = [values[key] for key in inputs.values()]
    needed = _needed(graph, set(inputs.values()), outputs.values())
    for index in sorted(needed):
        node = graph.nodes[index]
        if node.is_input:
            reader = next(graph.nodes[i].name for i in sorted(needed) if node.outputs[0] in graph.nodes[i].inputs)
            raise PermanentError(f"the cut misses a connection: {reader!r} still reads input {node.name!r}")
        made = replace(node, [values[key] for key in node.inputs]) if replace else None
        if made is None:
            known = {id(t): values[key_of(t)] for t in node.call.input_tensors}
            args, kwargs = node.call.arguments.fill_in(known)
            made = node.operation(*args, **kwargs)
        values |= zip(node.outputs, keras.tree.flatten(made), strict=True)
    return keras.Model(new_inputs, {name: values[key] for name, key in outputs.items()})


def _needed(graph: Graph, given: set[Key], wanted: Iterable[Key]) -> set[int]:
    """Indices of the nodes to call again, walking back from `wanted` as far as `given`."""
    found: set[int] = set()
    waiting = [key for key in wanted if key not in given]
    while waiting:
        index = graph.maker[waiting.pop()]
        if index not in found:
            found.add(index)
            waiting += [key for key in graph.nodes[index].inputs if key not in given]
    return found
