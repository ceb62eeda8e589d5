"""A model cut into segments: where each ends, what it makes, and what crosses to the next.

A segment does the trunk from the end before it to its own, and its exit's head, if it ends in one. What later segments
still need then crosses, skip connections too; a tensor that a segment does not make but a later one reads passes it by
untouched. Heads of exits that no segment ends in are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from partitioner.anatomy.calls import parts_of
from partitioner.anatomy.exits import Anatomy, logits_of
from partitioner.anatomy.graph import Graph, Key, Node, Replace, rebuild
from partitioner.anatomy.splits import Crossing, SplitPoint, crossing_of, input_crossings
from sluice.wire.errors import PermanentError
from sluice.wire.messages import MAX_MESSAGE_BYTES

LOGITS = "logits"
"""Name of an exit's output in every segment."""
ENVELOPE_BYTES = 2_000
"""Room for everything in an `Offload` that is not a tensor's data."""


@dataclass(frozen=True, slots=True)
class End:
    """Where a segment ends: `position` on the trunk, and which of the anatomy's exits it ends in, if any."""

    position: int
    exit: int | None
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A segment to be: what it reads, makes for later ones and passes on, where its logits are, its MACs.

    The last piece of a model that does not classify has no exit; its `outputs` are the model's results.
    """

    name: str
    """Where it ends: the exit, or the layer before the split point."""
    exit: str | None
    inputs: tuple[Crossing, ...]
    outputs: tuple[Crossing, ...]
    passes: tuple[str, ...]
    logits: Key | None
    dense: Node | None
    """The Dense that applies softmax itself, if that is how the exit ends."""
    macs: int
    crossing: tuple[Crossing, ...]
    """All that crosses from this segment to the next: outputs and what passes."""


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A model, cut: its inputs as they cross into segment 0, and its pieces in order."""

    graph: Graph
    inputs: tuple[Crossing, ...]
    pieces: tuple[Piece, ...]


def ends_of(model: Anatomy, exits: Iterable[int], points: Iterable[SplitPoint] = ()) -> list[End]:
    """Where segments end for these early exits (indices) and split points, in order; the end of the trunk is the last.

    An exit and a split point at one position become one end; the final exit is always there. The split point at the
    raw input cuts nothing off (that the first segment need not be on the device is for its placement to say).
    """
    last = len(model.exits) - 1 if model.exits else None
    early = sorted({k for k in exits if k != last}, key=lambda k: (model.position(k), k))
    ends = [End(model.position(k), k, model.exits[k].name) for k in early]
    taken = {end.position for end in ends} | {0, len(model.trunk)}
    ends += [End(point.position, None, point.name) for point in points if point.position not in taken]
    ends.sort(key=lambda end: end.position)
    name = model.graph.nodes[model.trunk[-1]].name if last is None else model.exits[last].name
    return [*ends, End(len(model.trunk), last, name)]


def cut(model: Anatomy, ends: Sequence[End]) -> Cut:
    """Cut `model` at `ends`, in order of position, the end of the trunk last; one piece an end.

    Raises `PermanentError` for what cannot cross (an open shape, an unknown dtype, other rows than samples), and for
    an end without an exit that leaves its segment nothing to do.
    """
    graph = model.graph
    exits = [None if end.exit is None else model.exits[end.exit] for end in ends]
    logits = [logits_of(graph, one.output) if one else (None, None) for one in exits]
    wanted = [set() if key is None else {key} for key, _ in logits]
    wanted[-1] |= set() if model.exits else set(model.results.values())
    shares = _shares(model, ends, wanted)
    made = [{key for i in share for key in graph.nodes[i].outputs} for share in shares]
    reads = [
        ({key for i in share for key in graph.nodes[i].reads} | want) - makes
        for share, want, makes in zip(shares, wanted, made, strict=True)
    ]
    needs = [*_needs(reads, made), set()]

    before = input_crossings(model)
    names = (f"h{i}" for i in range(len(graph.tensors)))
    pieces = []
    for k, end in enumerate(ends):
        new = tuple(crossing_of(graph, key, next(names)) for key in sorted(made[k] & needs[k + 1]))
        kept = tuple(crossing for crossing in before if crossing.key in needs[k + 1] - made[k])
        key, dense = logits[k]
        pieces.append(
            Piece(
                name=end.name,
                exit=exits[k].name if exits[k] else None,
                inputs=tuple(crossing for crossing in before if crossing.key in reads[k]),
                outputs=new if k < len(ends) - 1 else _results(model),
                passes=tuple(crossing.name for crossing in kept),
                logits=key,
                dense=dense,
                macs=sum(graph.nodes[i].macs for i in shares[k]),
                crossing=(*new, *kept),
            )
        )
        before = pieces[-1].crossing
    return Cut(graph, input_crossings(model), tuple(pieces))


def cut_at_exits(model: Anatomy, codec: str = "int8-zstd") -> Cut:
    """Cut `model` after each of its exits and nowhere else; `PermanentError` as from `cut` and `check_size`."""
    made = cut(model, ends_of(model, range(len(model.exits))))
    for piece in made.pieces:
        check_size(piece, codec)
    return made


def check_size(piece: Piece, codec: str) -> None:
    """`PermanentError` when more bytes would cross after `piece` (by `codec`, uncompressed) than a message holds."""
    size = sum(crossing.nbytes(codec) for crossing in piece.crossing)
    if size > MAX_MESSAGE_BYTES - ENVELOPE_BYTES:
        raise PermanentError(
            f"{size} bytes would cross after {piece.name!r}, a message holds {MAX_MESSAGE_BYTES}: "
            "cut elsewhere, or add a bottleneck (a 1x1 convolution or pooling) before"
        )


def piece_model(cut: Cut, piece: Piece) -> keras.Model:
    """`piece` as a Keras model: inputs by their crossing names, outputs by theirs and `logits`, if it has an exit."""
    inputs = {crossing.name: crossing.key for crossing in piece.inputs}
    outputs = {crossing.name: crossing.key for crossing in piece.outputs}
    if piece.logits is not None:
        outputs[LOGITS] = piece.logits
    return rebuild(cut.graph, inputs, outputs, _plainly([piece]))


def logits_model(cut: Cut) -> keras.Model:
    """The full model with logits instead of probabilities: inputs as a list, `logits{k}` of each piece k that has an
    exit; of a model that does not classify the results, named as the last piece's outputs."""
    inputs = {crossing.name: crossing.key for crossing in cut.inputs}
    outputs = {f"{LOGITS}{k}": piece.logits for k, piece in enumerate(cut.pieces) if piece.logits is not None}
    outputs |= {crossing.name: crossing.key for crossing in cut.pieces[-1].outputs}
    return rebuild(cut.graph, inputs, outputs, _plainly(cut.pieces))


def _plainly(pieces: Sequence[Piece]) -> Replace:
    """What the operations of `pieces` become where only answers count: a Dense without its softmax; a recurrent layer
    with its steps one by one, the only way that TFLite knows; resizing of floats, as `fit` and `predict` do it (called
    alone Keras rounds resized integers, and so does TFLite, not always to the same side)."""
    dense = {id(piece.dense) for piece in pieces if piece.dense is not None}

    def replace(node: Node, values: list[Any]) -> Any:
        operation = node.operation
        if id(node) in dense:
            return type(operation).from_config(operation.get_config() | {"activation": None})
        if any(not getattr(layer, "unroll", True) for layer in parts_of(operation)):
            return type(operation).from_config(_unrolled(operation.get_config()))
        if isinstance(operation, layers.Resizing):
            return operation(keras.ops.cast(values[0], operation.compute_dtype))
        return None

    return replace


def _unrolled(config: Any) -> Any:
    """A layer's configuration, with `unroll` set in it and in those of layers inside."""
    if isinstance(config, dict):
        return {name: True if name == "unroll" else _unrolled(value) for name, value in config.items()}
    return [_unrolled(value) for value in config] if isinstance(config, list) else config


def _shares(model: Anatomy, ends: Sequence[End], wanted: Sequence[Iterable[Key]]) -> list[set[int]]:
    """Node indices of each segment, without the model's inputs.

    What a head needs of the trunk beyond its position (preprocessing) is done in its segment and again on the trunk.
    """
    shares = []
    done: set[int] = set()
    for end, keys in zip(ends, wanted, strict=True):
        needed = {i for i in model.graph.ancestors(keys) if not model.graph.nodes[i].is_input}
        share = (set(model.trunk[: end.position]) | needed) - done
        if not share and end.exit is None:
            raise PermanentError(f"the segment that ends at {end.name!r} has nothing to do: leave that end out")
        shares.append(share)
        done |= share - set(model.trunk[end.position :])
    return shares


def _needs(reads: Sequence[set[Key]], made: Sequence[set[Key]]) -> list[set[Key]]:
    """What has to cross into each segment, for itself and for later ones."""
    needs: list[set[Key]] = []
    after: set[Key] = set()
    for read, makes in zip(reversed(reads), reversed(made), strict=True):
        after = read | (after - makes)
        needs.append(after)
    return needs[::-1]


def _results(model: Anatomy) -> tuple[Crossing, ...]:
    """The results of a model that does not classify, named `y`, or `y0`, `y1`, …"""
    if model.exits:
        return ()
    single = len(model.results) == 1
    keys = model.results.values()
    return tuple(crossing_of(model.graph, key, "y" if single else f"y{i}") for i, key in enumerate(keys))
