"""Hard samples: which offloads carry one at all, which are wanted, and each of them once."""

from typing import Any

import numpy as np
import pytest

from sluice.doors.kafka import KafkaCluster, KafkaWriter
from sluice.doors.kafka_topics import EmbeddedKafka, ensure_topics
from sluice.streams.harvest import Counts, Picker, Told, harvest
from sluice.streams.reader import load_stream
from sluice.wire import names
from sluice.wire.codec import encode_tensor
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Manifest
from sluice.wire.messages import Audit, encode
from tests.unit import wire_support
from tests.unit.wire_support import DIGEST, EPOCH


def without_passing() -> Manifest:
    """The example, but that its input crosses no further than into segment 0."""
    plain = wire_support.manifest_dict()
    for segment in plain["segments"]:
        segment["passes"] = []
    plain["segments"][2]["inputs"] = plain["segments"][2]["inputs"][:1]
    return Manifest.model_validate(plain)


MANIFEST = without_passing()
(INPUT,) = MANIFEST.inputs
OTHER = "cd" * 32


def manifest_of(digest: str) -> Manifest:
    if digest != DIGEST:
        raise PermanentError("there is no such bundle")
    return MANIFEST


def raw(seq: int, value: float = 0.5, **changes: Any) -> bytes:
    tensor = encode_tensor(np.full(INPUT.shape, value, INPUT.dtype), INPUT, "raw")
    return encode(wire_support.offload(seq=seq, next_segment=0, tensors=(tensor,), **changes))


def key(seq: int) -> tuple[str, str, int]:
    return ("pi-1", EPOCH, seq)


def picked(picker: Picker, payloads: list[bytes]) -> list[tuple[float, int | None]]:
    found = [picker.pick(payload) for payload in payloads]
    for one in found:
        assert one is None or one[0].shape == tuple(INPUT.shape)
    return [(float(one[0].flat[0]), one[1]) for one in found if one is not None]


OFFLOADS = [
    raw(1, 1.0),
    raw(1, 1.0),  # sent again
    raw(2, 2.0),
    encode(wire_support.offload(seq=3)),  # a tensor from the middle
    raw(90, 4.0, audit=Audit(of=4, exit=0, label=1)),
    raw(5, 5.0, bundle=OTHER),
    raw(6)[:-3],
    encode(wire_support.prediction()),
]


def test_what_travelled_up_is_taken_once() -> None:
    picker = Picker(manifest_of, {key(2): Told(1, True), key(4): Told(2, False)})
    assert picked(picker, OFFLOADS) == [(1.0, None), (2.0, 1)]
    assert picker.counts == Counts(
        offloads=8, taken=2, labelled=1, without_input=1, not_wanted=1, repeated=1, other=1, bad=2
    )
    assert picker.first == MANIFEST


def test_what_was_answered_wrongly_may_be_an_audit() -> None:
    told = {key(1): Told(0, True), key(2): Told(None, None), key(4): Told(2, False)}
    assert picked(Picker(manifest_of, told, "wrong"), OFFLOADS) == [(4.0, 2)]


def test_only_those_with_a_label() -> None:
    assert picked(Picker(manifest_of, {key(1): Told(0, False)}, labelled_only=True), OFFLOADS) == [(1.0, 0)]


def test_a_tensor_that_is_not_the_input_is_bad() -> None:
    (wrong,) = wire_support.offload().tensors
    picker = Picker(manifest_of, {})
    assert picker.pick(encode(wire_support.offload(next_segment=0, tensors=(wrong,)))) is None
    assert picker.pick(encode(wire_support.offload(next_segment=99))) is None
    assert picker.counts.bad == 2


def test_they_become_a_stream_to_train_on() -> None:
    server = EmbeddedKafka()
    cluster = KafkaCluster(bootstrap=server.bootstrap)
    topic = names.offload_topic("fog", "gate")
    ensure_topics(cluster, {topic: 2})
    KafkaWriter("test", cluster).write_all(topic, [(f"pi-{i}", raw(i, float(i))) for i in range(20)], 10.0)
    picker = Picker(manifest_of, {key(seq): Told(seq % 2, False) for seq in range(0, 20, 3)}, "wrong")
    said = harvest(cluster, "gate", picker, "hard", stream_id="hard-1", validation_rate=0.5)
    assert (said.count, said.stream_id, said.validation_rate) == (7, "hard-1", 0.5)
    x, y = load_stream(cluster, said)
    found = sorted((float(sample.flat[0]), int(label)) for sample, label in zip(x, y, strict=True))
    assert found == [(float(seq), seq % 2) for seq in range(0, 20, 3)]
    with pytest.raises(PermanentError, match=r"of 20 offloads none is wanted .* 20 are not wanted"):
        harvest(cluster, "gate", Picker(manifest_of, {}, "wrong"), "none", stream_id="none")


def test_an_input_that_is_not_finite_is_bad() -> None:
    picker = Picker(manifest_of, {})
    assert picker.pick(raw(1, float("nan"))) is None
    assert picker.counts.bad == 1


def test_an_input_that_crosses_with_the_rest_is_one_too() -> None:
    passing = wire_support.manifest()
    tensors = tuple(encode_tensor(np.full(spec.shape, 7, np.float32), spec, "raw") for spec in passing.crossing(2))
    assert {spec.name for spec in passing.crossing(2)} == {"h1", "x"}
    payload = encode(wire_support.offload(next_segment=2, tensors=tensors))
    assert picked(Picker(lambda _digest: passing, {}), [payload]) == [(7.0, None)]
