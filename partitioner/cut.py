"""Where a model is cut for its own exits, and what crosses.

Segment k makes what exit k needs and no earlier segment made: the trunk up to where the exit branches off, and the
exit's classifier. What later segments still need then crosses, skip connections too; a tensor that a segment does
not read itself but a later one does passes it by untouched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from partitioner.exits import Anatomy, linear_copy, logits_of
from partitioner.graph import Graph, Key, Node, Replace, rebuild
from sluice.wire.errors import PermanentError
from sluice.wire.messages import MAX_MESSAGE_BYTES

LOGITS = "logits"
"""Name of an exit's output in every segment."""
ENVELOPE_BYTES = 2_000
"""Room for everything in an `Offload` that is not a tensor's data."""
DTYPES = ("float32", "float16", "int8", "uint8", "int32", "int64", "bool")


@dataclass(frozen=True, slots=True)
class Crossing:
    """A tensor at a cut: its short name (it travels with every message), its key, dtype and shape of one sample."""

    name: str
    key: Key
    dtype: str
    shape: tuple[int, ...]

    def nbytes(self, codec: str) -> int:
        """Bytes of one sample before compression: floats as one byte each with the int8 codecs."""
        if self.dtype.startswith("float") and codec.startswith("int8"):
            return math.prod(self.shape)
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Cut:
    """A model, cut: its inputs as they cross into segment 0, and its pieces in order."""

    graph: Graph
    inputs: tuple[Crossing, ...]
    pieces: tuple[Piece, ...]


def cut_at_exits(model: Anatomy, codec: str = "int8-zstd") -> Cut:
    """Cut `model` after each of its exits; one segment an exit.

    Raises `PermanentError` for what cannot cross: an open shape, an unknown dtype, or more bytes (by `codec`, before
    compression) than a message holds.
    """
    graph = model.graph
    ends = [logits_of(graph, one.output) for one in model.exits]
    for key, dense in ends:
        if dense is not None and any(key in node.inputs for node in graph.nodes):
            raise PermanentError(
                f"the probabilities of {dense.name!r} are used further: give it a Softmax layer of its own"
            )
    shares = _shares(graph, [key for key, _ in ends])
    made_in = {key: k for k, share in enumerate(shares) for i in share for key in graph.nodes[i].outputs}
    # an input is there from the start, whichever segment first reads it
    made_in |= dict.fromkeys(model.inputs.values(), -1)
    last_use = {key: k for k, share in enumerate(shares) for i in share for key in graph.nodes[i].inputs}
    single = len(model.inputs) == 1
    named: dict[Key, Crossing] = {}
    for i, key in enumerate(model.inputs.values()):
        named[key] = _crossing(graph, key, "x" if single else f"x{i}")

    pieces = []
    before = list(model.inputs.values())
    for k, share in enumerate(shares):
        reads = {key for i in share for key in graph.nodes[i].inputs}
        inputs = [key for key in before if key in reads]
        new = [key for key, at in made_in.items() if at == k and last_use.get(key, k) > k]
        for key in new:
            named[key] = _crossing(graph, key, f"h{len(named) - len(model.inputs)}")
        kept = [key for key in before if last_use.get(key, k) > k]
        logits, dense = ends[k]
        pieces.append(
            Piece(
                name=model.exits[k].name,
                exit=model.exits[k].name,
                inputs=tuple(named[key] for key in inputs),
                outputs=tuple(named[key] for key in new),
                passes=tuple(named[key].name for key in kept),
                logits=logits,
                dense=dense,
                macs=sum(graph.nodes[i].macs for i in share),
                crossing=tuple(named[key] for key in (*new, *kept)),
            )
        )
        before = [*new, *kept]
    for piece in pieces:
        _check_size(piece, codec)
    return Cut(graph, tuple(named[key] for key in model.inputs.values()), tuple(pieces))


def piece_model(cut: Cut, piece: Piece) -> keras.Model:
    """`piece` as a Keras model: inputs by their crossing names, outputs by theirs and `logits`."""
    inputs = {crossing.name: crossing.key for crossing in piece.inputs}
    outputs = {crossing.name: crossing.key for crossing in piece.outputs} | {LOGITS: piece.logits}
    return rebuild(cut.graph, inputs, outputs, _stripping([piece]))


def logits_model(cut: Cut) -> keras.Model:
    """The full model with logits instead of probabilities: inputs as a list, outputs in the order of the exits,
    named `logits0`, `logits1`, …"""
    inputs = {crossing.name: crossing.key for crossing in cut.inputs}
    outputs = {f"{LOGITS}{k}": piece.logits for k, piece in enumerate(cut.pieces)}
    return rebuild(cut.graph, inputs, outputs, _stripping(cut.pieces))


def _stripping(pieces: Sequence[Piece]) -> Replace:
    dense = {id(piece.dense) for piece in pieces if piece.dense is not None}

    def replace(node: Node, values: list[object]) -> object:
        return linear_copy(node.operation, values[0]) if id(node) in dense else None

    return replace


def _shares(graph: Graph, ends: list[Key]) -> list[list[int]]:
    """Node indices of each segment, without the model's inputs; `PermanentError` when one would be empty."""
    shares = []
    done: set[int] = set()
    for end in ends:
        share = sorted(i for i in graph.ancestors([end]) - done if not graph.nodes[i].is_input)
        if not share:
            raise PermanentError(f"exit at {graph.nodes[graph.maker[end]].name!r} adds nothing to the one before it")
        shares.append(share)
        done |= set(share)
    return shares


def _crossing(graph: Graph, key: Key, name: str) -> Crossing:
    tensor = graph.tensors[key]
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if dtype not in DTYPES:
        maker = graph.nodes[graph.maker[key]].name
        raise PermanentError(f"output of {maker!r} is {dtype}, which cannot cross a cut: {', '.join(DTYPES)} can")
    return Crossing(name, key, dtype, graph.shape(key))


def _check_size(piece: Piece, codec: str) -> None:
    size = sum(crossing.nbytes(codec) for crossing in piece.crossing)
    if size > MAX_MESSAGE_BYTES - ENVELOPE_BYTES:
        raise PermanentError(
            f"{size} bytes would cross after exit {piece.exit!r}, a message holds {MAX_MESSAGE_BYTES}: "
            "add a bottleneck (a 1x1 convolution or pooling) before the exit branches off"
        )
