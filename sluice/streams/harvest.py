"""Hard samples, gathered from what travelled: the raw inputs on a model's offload topics, as far as they are there.

An offload carries what crosses a cut. That is the model's own input where the first segment runs above the device, or
where the input crosses with the rest (an exit at the input itself); else it is some tensor in the middle, nobody can
train on that, and it is counted and left out. A sample that was answered on the device and not audited left nothing at
all. What a lossy codec lost on the way up is lost here too. `Picker` decides on each offload, `harvest` does all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sluice.doors.kafka import KafkaCluster, KafkaReader
from sluice.streams.reader import read_slices
from sluice.streams.samples import Array
from sluice.streams.send import Sender
from sluice.wire import names
from sluice.wire.codec import decode_tensor
from sluice.wire.errors import PermanentError, UnknownSchemaError
from sluice.wire.manifest import Manifest
from sluice.wire.messages import Offload, SampleKey, decode
from sluice.wire.slices import Slice
from sluice.wire.state import Announcement

Which = Literal["up", "wrong"]
"""`up`: samples that no exit of the device was certain of. `wrong`: those that were answered wrongly, by label."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a label says of a sample: its class as the bundle numbers it, None if it has no such class; and whether the
    answer was right, None if nobody can say."""

    label: int | None
    right: bool | None


@dataclass(slots=True)
class Counts:
    """What became of the offloads."""

    offloads: int = 0
    taken: int = 0
    labelled: int = 0
    """Of those taken."""
    without_input: int = 0
    """Carried a tensor from the middle of the model."""
    not_wanted: int = 0
    repeated: int = 0
    other: int = 0
    """Of a bundle whose input or classes are not those of the first one, or that the control plane does not have."""
    bad: int = 0
    """Could not be read."""


class Picker:
    """Picks samples; `first` is the manifest that input and classes are of, once there was one.

    `manifest_of` gives the manifest of a bundle or raises `PermanentError`; `told` has the labels of samples.
    """

    def __init__(
        self,
        manifest_of: Callable[[str], Manifest],
        told: Mapping[SampleKey, Told],
        which: Which = "up",
        labelled_only: bool = False,
    ) -> None:
        self.counts = Counts()
        self.first: Manifest | None = None
        self._manifest_of = manifest_of
        self._manifests: dict[str, Manifest | None] = {}
        self._told = told
        self._which = which
        self._labelled_only = labelled_only
        self._seen: set[SampleKey] = set()

    def pick(self, payload: bytes) -> tuple[Array, int | None] | None:
        """The input (of the manifest's shape) and label of an offload, if it is wanted and has them, the first time."""
        self.counts.offloads += 1
        try:
            offload = decode(payload)
            if not isinstance(offload, Offload):
                raise PermanentError("a prediction has no place among offloads")
            manifest = self._manifest(offload.bundle)
            if manifest is None:
                self.counts.other += 1
                return None
            array = input_of(offload, manifest)
            if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
                raise PermanentError("the input has values that are not finite")
        except (PermanentError, UnknownSchemaError):
            self.counts.bad += 1
            return None
        if array is None:
            self.counts.without_input += 1
            return None
        key = (offload.device_id, offload.epoch, offload.audit.of if offload.audit else offload.seq)
        told = self._told.get(key, Told(None, None))
        hard = told.right is False if self._which == "wrong" else offload.audit is None
        if not hard or (self._labelled_only and told.label is None):
            self.counts.not_wanted += 1
            return None
        if key in self._seen:
            self.counts.repeated += 1
            return None
        self._seen.add(key)
        self.counts.taken += 1
        self.counts.labelled += told.label is not None
        return array, told.label

    def _manifest(self, digest: str) -> Manifest | None:
        """The manifest of a bundle; None if it does not fit the first one, or nobody has it."""
        if digest not in self._manifests:
            try:
                found: Manifest | None = self._manifest_of(digest)
            except PermanentError:
                found = None
            if found is not None and self.first is None:
                if len(found.inputs) != 1:
                    raise PermanentError(f"model {found.model!r} has {len(found.inputs)} inputs: streams carry one")
                self.first = found
            fits = found is not None and self.first is not None and _same_kind(found, self.first)
            self._manifests[digest] = found if fits else None
        return self._manifests[digest]


def _same_kind(one: Manifest, other: Manifest) -> bool:
    def kind(manifest: Manifest) -> tuple[object, ...]:
        return tuple((spec.dtype, spec.shape) for spec in manifest.inputs), manifest.labels

    return kind(one) == kind(other)


def input_of(offload: Offload, manifest: Manifest) -> Array | None:
    """The model's input as an offload carries it, of the manifest's shape and dtype; None if it does not.

    Raises `PermanentError` when the tensor is not what the manifest says.
    """
    (spec,) = manifest.inputs
    if offload.next_segment >= len(manifest.segments):
        raise PermanentError(f"next_segment {offload.next_segment} of {len(manifest.segments)} segments")
    if spec not in manifest.crossing(offload.next_segment):
        return None
    for tensor in offload.tensors:
        if tensor.name == spec.name:
            return decode_tensor(tensor, spec)
    raise PermanentError(f"the input {spec.name!r} should cross into segment {offload.next_segment} and does not")


def offloads(cluster: KafkaCluster, model: str) -> Iterator[bytes]:
    """What is on the offload topics of `model` now, topic partition by topic partition, nearest tier first.

    Raises `PermanentError` if there is no such topic, or retention takes records while they are read.
    """
    slices, found = [], False
    reader = KafkaReader("harvest", cluster, "sluice-harvest")
    try:
        for tier in names.TIERS[1:]:
            topic = names.offload_topic(tier, model)
            try:
                partitions = reader.partitions(topic)
            except PermanentError:
                continue
            found = True
            for partition in range(partitions):
                begin, end = reader.watermarks((topic, partition))
                if begin < end:
                    slices.append(Slice(topic, partition, begin, end - begin))
    finally:
        reader.close()
    if not found:
        raise PermanentError(f"model {model!r} has no offload topic: nothing of it ever travelled up")
    for records in read_slices(cluster, slices):
        for record in records:
            yield record.value


def harvest(
    cluster: KafkaCluster,
    model: str,
    picker: Picker,
    topic: str,
    *,
    stream_id: str,
    progress: Callable[[int], None] = lambda _offloads: None,
    **settings: Any,
) -> Announcement:
    """Send what `picker` picks of the model's offloads to `topic`, and announce it; `settings` are those of `Sender`.

    Raises as `offloads` and `Sender` do; `PermanentError` when there is nothing to send.
    """
    sender: Sender | None = None
    for payload in offloads(cluster, model):
        found = picker.pick(payload)
        progress(picker.counts.offloads)
        if found is None:
            continue
        sample, label = found
        if sender is None:
            assert picker.first is not None
            kind: dict[str, Any] = {"shape": sample.shape, "dtype": sample.dtype.name, "labels": picker.first.labels}
            sender = Sender(cluster, topic, stream_id=stream_id, **kind, **settings)
        sender.send(sample, label)
    if sender is None:
        counts = picker.counts
        raise PermanentError(
            f"of {counts.offloads} offloads none is wanted and carries a raw input: {counts.without_input} carry a "
            f"tensor from the middle of the model, {counts.not_wanted} are not wanted, {counts.bad} cannot be read"
        )
    return sender.announce()
