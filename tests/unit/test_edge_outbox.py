"""The outbox: nothing leaves before it may, nothing is told twice, nothing is told provisionally after it was final."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_agent import outbox as outbox_module
from sluice.wire import messages
from sluice.wire.messages import Audit, Offload, Prediction, Tensor
from tests.unit.edge_stand_ins import Clock, Device, answer_to

Make = Callable[..., Device]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(outbox_module, "monotonic", clock)
    return clock


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[Make]:
    made: list[Device] = []

    def build(**settings: Any) -> Device:
        made.append(Device(tmp_path, clock, **settings))
        return made[-1]

    yield build
    for device in made:
        device.store._db.close()


def seqs(outcomes: list[Any]) -> list[int]:
    return [outcome.seq for outcome in outcomes]


@pytest.mark.parametrize("first", ["told", "receipted"])
def test_an_own_answer_leaves_when_it_is_told_and_receipted(make: Make, first: str) -> None:
    device = make()
    own = device.own_final()
    device.add(own)
    assert device.uplink.take() == [own]
    steps: list[Callable[[], object]] = [device.sensor_takes, lambda: device.outbox.receipt([own.seq])]
    for step in steps if first == "told" else reversed(steps):
        assert device.kept() == [(own.seq, "prediction")]
        step()
        device.turn()
    assert device.kept() == [] and len(device.outbox) == 0 and device.outbox.bytes == 0


@pytest.mark.parametrize("mode", ["each", "changes"])
@pytest.mark.parametrize("restarted", [False, True])
def test_an_audit_leaves_with_its_receipt_and_is_never_told(
    make: Make, clock: Clock, mode: str, restarted: bool
) -> None:
    """No link, no answer in time, its time over: it is sent until it is receipted, as it is, and that is all."""
    device = make(predictions={"mode": mode})
    own = device.own_final()
    audit = device.offload(audit=Audit(of=own.seq, exit=0, label=own.label))
    device.uplink.up.clear()
    device.add(own, audit)
    assert device.outbox.counters["audits"] == 1
    if restarted:
        device = device.restart()
    assert device.sensor_takes() == [own] or restarted
    clock.forward(device.settings.sample_ttl_s + 1)
    device.uplink.up.set()
    device.turn()
    device.sensor_takes()
    sent = device.uplink.take()
    assert [(type(o), o.seq, o.audit) for o in sent[1:]] == [(Offload, audit.seq, audit.audit)]
    clock.forward(device.settings.receipt_timeout_s + 1)
    device.turn()
    assert seqs(device.uplink.take()) == [own.seq, audit.seq], "sent again"
    device.hear(answer_to(audit, audit=audit.audit))  # an older gateway may pass it on
    device.outbox.receipt([own.seq, audit.seq])
    device.turn()
    assert device.kept() == [] and device.outbox.bytes == 0
    assert device.sensor.sent == [] and device.outbox.counters["expired"] == 0


def test_an_audit_does_not_make_a_label_go_up_again(make: Make) -> None:
    device = make(predictions={"mode": "changes"})
    first = device.own_final()
    device.add(first, device.offload(audit=Audit(of=first.seq, exit=0, label=first.label)))
    device.uplink.take()
    device.add(device.own_final())
    assert device.uplink.take() == []


def test_nothing_is_published_before_it_is_committed(make: Make) -> None:
    device = make()
    device.outbox.add([device.own_final(), device.offload()])
    assert device.uplink.sent == device.sensor.sent == []
    device.turn()
    assert len(device.uplink.sent) == 2 and len(device.sensor.sent) == 1


def test_an_offload_waits_for_its_answer(make: Make) -> None:
    device = make()
    hard = device.offload()
    device.add(hard)
    assert device.uplink.take() == [hard]
    device.outbox.receipt([hard.seq])
    device.turn()
    assert device.kept() == [(hard.seq, "offload")] and device.sensor.sent == []
    answer = answer_to(hard)
    incoming = device.hear(answer)
    device.turn()
    assert device.kept() == [(hard.seq, "offload")] and device.uplink.acked == []
    assert device.sensor_takes() == [answer]
    device.turn()
    assert device.kept() == [] and device.uplink.acked == [incoming]


def test_an_answer_is_acknowledged_only_when_its_sample_has_left_the_store_for_good(make: Make) -> None:
    """Else a power cut would leave a sample that waits for an answer which nobody will bring again."""
    device = make()
    hard = device.offload()
    device.add(hard)
    device.outbox.receipt([hard.seq])
    device.hear(answer_to(hard))
    device.turn()
    device.sensor_takes()
    device.outbox.after_commit()  # a turn that had nothing to commit
    assert device.uplink.acked == []
    again = device.restart()
    assert again.kept() == [(hard.seq, "offload")]
    incoming = again.hear(answer_to(hard))
    again.turn()
    assert seqs(again.sensor_takes()) == [hard.seq]
    again.turn()
    assert again.uplink.acked == [incoming] and again.kept() == []
    again.store.close()


def test_many_answers_hurry_the_commit(make: Make) -> None:
    """The broker has a window of unacknowledged messages: it must not stand still until the next lazy commit."""
    device = make()
    hard = [device.offload() for _ in range(outbox_module.ACKS_MOST)]
    device.add(*hard)
    for one in hard:
        device.hear(answer_to(one))
    device.turn()
    assert not device.store.dirty
    device.sensor_takes()
    assert device.store.dirty


def test_repeated_answers_are_counted_and_acknowledged_and_not_shown(make: Make) -> None:
    device = make()
    hard = device.offload()
    device.add(hard)
    first, second = device.hear(answer_to(hard)), device.hear(answer_to(hard, label=2))
    device.turn()
    assert [told.label for told in device.sensor_takes()] == [0]
    third = device.hear(answer_to(hard))
    stranger = device.hear(answer_to(device.offload()))
    of_another_life = device.hear(answer_to(hard, epoch="00" * 8))
    device.turn()
    assert device.sensor.sent == []
    assert device.outbox.counters["answers_repeated"] == 4
    assert sorted(m.mid for m in device.uplink.acked) == sorted(
        m.mid for m in (first, second, third, stranger, of_another_life)
    )


def test_an_answer_that_comes_again_while_it_is_being_told_is_not_acknowledged_early(make: Make) -> None:
    """The uplink came back and brings it again, the sensor broker is away: only the uplink broker has it for sure."""
    device = make()
    hard = device.offload()
    device.add(hard)
    device.hear(answer_to(hard))
    device.turn()
    again = device.hear(answer_to(hard))
    device.turn()
    assert device.uplink.acked == []
    assert len(device.sensor_takes()) == 1
    device.turn()
    assert again in device.uplink.acked


def test_a_receipt_after_the_answer_does_not_finish_what_is_still_being_told(make: Make) -> None:
    """A power cut now must leave the sample in the store, so that its answer, which comes again, is told."""
    device = make()
    hard = device.offload()
    device.add(hard)
    device.hear(answer_to(hard))
    device.outbox.receipt([hard.seq])
    device.turn()
    assert device.kept() == [(hard.seq, "offload")] and device.uplink.acked == []
    again = device.restart()
    again.hear(answer_to(hard))
    again.turn()
    assert seqs(again.sensor_takes()) == [hard.seq]
    again.store.close()


def test_an_answer_for_an_own_final_one_is_a_repeat(make: Make) -> None:
    device = make()
    own = device.own_final()
    device.add(own)
    device.hear(own)
    device.turn()
    assert len(device.sensor_takes()) == 1 and device.outbox.counters["answers_repeated"] == 1


def test_without_a_link_the_device_answers_provisionally_at_once(make: Make) -> None:
    device = make(up=False)
    hard = device.offload()
    device.add(hard)
    (told,) = device.sensor_takes()
    assert (told.seq, told.status, told.reason, told.label) == (hard.seq, "provisional", "offline", 1)
    assert device.uplink.sent == [] and device.kept() == [(hard.seq, "offload")]
    device.clock.forward(6)
    device.turn()
    assert device.sensor.sent == []  # once is enough


def test_with_a_link_the_device_answers_provisionally_when_time_is_up(make: Make) -> None:
    device = make()
    hard = device.offload()
    device.add(hard)
    assert device.sensor.sent == []
    device.clock.forward(5.1)
    device.turn()
    (told,) = device.sensor_takes()
    assert (told.status, told.reason) == ("provisional", "timeout")
    device.hear(answer_to(hard))
    device.turn()
    assert [told.status for told in device.sensor_takes()] == ["final"]


def test_nothing_provisional_after_a_final_answer(make: Make) -> None:
    device = make()
    hard = device.offload()
    device.add(hard)
    device.hear(answer_to(hard))
    device.turn()
    device.clock.forward(100)
    device.uplink.up.clear()
    device.turn()
    assert [told.status for told in device.sensor_takes()] == ["final"]
    device.turn()
    assert device.sensor.sent == []


def test_a_sample_without_any_belief_is_not_answered_from_nothing(make: Make) -> None:
    """The raw input, offloaded: no exit has thought of it."""
    device = make(up=False)
    raw = device.offload(beliefs=(), next_segment=0)
    device.add(raw)
    device.clock.forward(1000)
    device.turn()
    assert device.sensor.sent == [] and device.kept() == [(raw.seq, "offload")]


def test_what_was_never_receipted_expires_into_a_prediction_that_goes_up_in_its_stead(make: Make) -> None:
    device = make()
    hard = device.offload()
    device.add(hard)
    device.uplink.take()
    device.clock.forward(60.1)
    device.turn()
    assert [told.status for told in device.sensor_takes()] == ["provisional"]
    (up,) = device.uplink.take()
    assert isinstance(up, Prediction)
    assert (up.seq, up.tier, up.status, up.reason, up.label) == (hard.seq, "edge", "final", "expired", 1)
    assert device.kept() == [(hard.seq, "prediction")]
    device.outbox.receipt([hard.seq])
    device.turn()
    assert device.sensor.sent == [] and len(device.outbox) == 1  # whether it is final is said above
    device.hear(up)
    device.turn()
    assert device.sensor_takes() == [up]
    device.turn()
    assert device.kept() == [] and device.outbox.bytes == 0


def test_after_expiry_the_first_from_above_is_final_whoever_made_it(make: Make) -> None:
    """The offload had arrived after all, only its receipt was lost: the cloud was first in the order of the topic."""
    device = make()
    hard = device.offload()
    device.add(hard)
    device.clock.forward(60.1)
    device.turn()
    (expired,) = [outcome for outcome in device.uplink.take() if isinstance(outcome, Prediction)]
    device.sensor_takes()
    device.hear(answer_to(hard))
    device.hear(expired)
    device.turn()
    assert [(told.tier, told.reason) for told in device.sensor_takes()] == [("cloud", "last")]


def test_what_was_receipted_is_not_expired_by_the_device(make: Make) -> None:
    device = make()
    hard = device.offload()
    device.add(hard)
    device.uplink.take()
    device.outbox.receipt([hard.seq])
    device.clock.forward(1000)
    device.turn()
    assert device.uplink.sent == [] and device.kept() == [(hard.seq, "offload")]
    assert [told.status for told in device.sensor_takes()] == ["provisional"]


def test_what_has_no_receipt_is_sent_again_only_when_the_link_is_up(make: Make) -> None:
    device = make()
    own = device.own_final()
    device.add(own)
    assert seqs(device.uplink.take()) == [own.seq]
    device.uplink.up.clear()
    device.clock.forward(11)
    device.turn()
    assert device.uplink.sent == []
    device.uplink.up.set()
    device.outbox.link_is_up()
    device.turn()
    assert device.uplink.sent == []  # the client itself repeats what was under way
    device.clock.forward(10.1)
    device.turn()
    assert seqs(device.uplink.take()) == [own.seq] and device.outbox.counters["outcomes_sent_again"] == 1


def test_what_is_sent_again_keeps_its_order(make: Make) -> None:
    device = make()
    device.add(*(device.own_final() for _ in range(5)))
    sent = seqs(device.uplink.take())
    device.clock.forward(10.1)
    device.turn()
    assert seqs(device.uplink.take()) == sent == sorted(sent)


def test_what_is_in_flight_is_bounded(make: Make) -> None:
    device = make(uplink_in_flight=3)
    own = [device.own_final() for _ in range(8)]
    device.add(*own)
    device.turn()
    assert seqs(device.uplink.take()) == seqs(own[:3])
    device.outbox.receipt([own[1].seq])
    device.turn()
    assert seqs(device.uplink.take()) == [own[3].seq]
    device.sensor_takes()
    device.outbox.receipt(seqs(own[:4]))
    device.turn()
    assert seqs(device.uplink.take()) == seqs(own[4:7])


def test_what_is_being_told_is_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a long outage and a restart there may be more answers than an MQTT client has message ids."""
    monkeypatch.setattr(outbox_module, "TELLING_MOST", 4)
    device = make()
    own = [device.own_final() for _ in range(10)]
    device.add(*own)
    told = []
    while device.sensor.sent:
        assert len(device.sensor.sent) <= 4
        told += device.sensor_takes()
        device.turn()
    assert told == own


def test_beyond_its_bytes_the_oldest_are_dropped_and_counted(make: Make) -> None:
    device = make(up=False)
    device.add(device.offload())
    size = device.outbox.bytes
    device = device.restart()
    device.settings = device.settings.model_copy(update={"outbox_bytes": size * 4})
    device.outbox.settings = device.settings
    more = [device.offload() for _ in range(9)]
    device.add(*more)
    assert [seq for seq, _ in device.kept()] == seqs(more[-4:])
    assert device.outbox.counters["outbox_dropped"] == 6 and device.outbox.bytes <= size * 4
    device.uplink.up.set()
    device.outbox.link_is_up()
    device.turn()
    assert seqs(device.uplink.take()) == seqs(more[-4:])
    device.store.close()


def test_a_single_outcome_that_is_too_large_stays(make: Make) -> None:
    device = make(outbox_bytes=1)
    hard = device.offload()
    device.add(hard)
    assert device.uplink.take() == [hard] and device.outbox.counters["outbox_dropped"] == 0


def large(device: Device, size: int = 10_000) -> Offload:
    return device.offload(tensors=(Tensor("h", "int8", (size,), 0.0, 0, "raw", secrets.token_bytes(size)),))


@pytest.mark.parametrize("first", ["receipt", "timeout", "many"])
def test_of_what_is_receipted_only_what_is_still_needed_stays(make: Make, clock: Clock, first: str) -> None:
    """A stage is down, the gateway is not: what waits for its answer waits without its tensors."""
    device = make(outbox_bytes=15_000 if first == "many" else 100_000)
    hard = large(device)
    device.add(hard)
    if first == "timeout":
        clock.forward(5.1)
        device.turn()
    device.outbox.receipt([hard.seq])
    if first == "receipt":
        assert device.outbox.bytes > 10_000, "an answer may come at once: until then it is not worth the work"
        clock.forward(5.1)
    device.turn()
    again = device.restart()
    for one in (device, again):
        assert one.outbox.bytes < 1000
    (row,) = again.store.rows()
    assert row.receipted and messages.decode(row.payload) == replace(hard, tensors=())
    clock.forward(5.1)
    again.turn()
    (told,) = again.sensor_takes()
    assert (told.seq, told.status, told.label) == (hard.seq, "provisional", 1), "its exits' beliefs are still here"
    answer = answer_to(hard)
    again.hear(answer)
    again.turn()
    assert again.sensor_takes() == [answer] and again.uplink.sent == []
    again.turn()
    assert again.kept() == [] and again.outbox.bytes == 0
    again.store.close()


def test_what_waits_for_its_answer_is_bounded_too(make: Make) -> None:
    """The oldest go: it is in Kafka, so only the device misses its answer."""
    device = make(outbox_bytes=200_000, uplink_in_flight=1000)
    hard = [large(device) for _ in range(1000)]
    for one in hard:
        device.add(one)
        device.outbox.receipt([one.seq])
        assert device.outbox.bytes <= 200_000
    device.turn()
    kept = [seq for seq, _ in device.kept()]
    assert kept == seqs(hard)[-len(kept) :] and len(kept) > 100, "without their tensors many have room"
    assert device.outbox.counters["outbox_dropped"] == len(hard) - len(kept)
    assert (device.folder / "store.sqlite").stat().st_size < 1_000_000


def test_a_small_outcome_takes_more_room_than_its_bytes(make: Make) -> None:
    device = make(up=False, outbox_bytes=50_000)
    device.add(*(device.own_final() for _ in range(1000)))
    assert len(device.outbox) < 100


def test_a_short_time_to_live_does_not_wait_behind_a_longer_one(make: Make, clock: Clock) -> None:
    """As after a restart with another setting."""
    device = make(up=False)
    device.add(device.offload(ttl_ms=3_600_000), short := device.offload(ttl_ms=60_000))
    assert device.outbox.next_due() == pytest.approx(clock.now + 5)
    clock.forward(61)
    device.turn()
    assert device.kept()[1] == (short.seq, "prediction") and device.outbox.counters["expired"] == 1


def test_beyond_its_age_the_oldest_are_dropped_and_counted(make: Make) -> None:
    device = make(up=False, outbox_age_s=100.0, sample_ttl_s=100.0)
    old = device.offload(ttl_ms=1_000_000)
    device.add(old)
    device.clock.forward(60)
    young = device.offload(ttl_ms=1_000_000)
    device.add(young)
    device.clock.forward(60)
    device.turn()
    assert device.kept() == [(young.seq, "offload")] and device.outbox.counters["outbox_dropped"] == 1


def test_restarts_make_nothing_younger(make: Make, clock: Clock) -> None:
    """Time counts while the device runs: its clock may be wrong by years after a power cut."""
    device = make(up=False, outbox_age_s=100.0, sample_ttl_s=100.0)
    old = device.offload(ttl_ms=1_000_000)
    device.add(old)
    for _ in range(3):
        clock.forward(30)
        device.add(device.offload(ttl_ms=1_000_000))
        device = device.restart()
        assert device.kept()[0] == (old.seq, "offload")
    clock.forward(20)
    device.turn()
    assert old.seq not in seqs_kept(device) and len(device.kept()) == 3
    device.store.close()


def test_what_was_dropped_stays_counted_after_a_restart(make: Make, clock: Clock) -> None:
    device = make(up=False, outbox_age_s=100.0)
    device.add(*(device.own_final() for _ in range(3)))
    clock.forward(101)
    device.turn()
    again = device.restart()
    again.add(again.own_final())
    clock.forward(101)
    again.turn()
    assert again.restart().outbox.counters["outbox_dropped"] == 4


def seqs_kept(device: Device) -> list[int]:
    return [seq for seq, _ in device.kept()]


def test_after_a_restart_exactly_what_may_be_missing_is_told_and_sent(make: Make) -> None:
    device = make()
    fresh, told, receipted, both = (device.own_final() for _ in range(4))
    waiting, in_kafka, answered = (device.offload() for _ in range(3))
    device.add(told, receipted, both, waiting, in_kafka, answered)
    device.hear(answer_to(answered))
    device.turn()
    for mid, _, outcome in device.sensor.sent:
        if outcome.seq in (told.seq, both.seq, answered.seq):
            device.outbox.published(mid)
    device.outbox.receipt([receipted.seq, both.seq, in_kafka.seq])
    device.add(fresh)
    again = device.restart()
    again.turn()
    assert sorted(seqs(again.sensor_takes())) == sorted([fresh.seq, receipted.seq])
    assert sorted(seqs(again.uplink.take())) == sorted([fresh.seq, told.seq, waiting.seq])
    again.turn()
    assert sorted(again.kept()) == sorted(
        [(told.seq, "prediction"), (fresh.seq, "prediction"), (waiting.seq, "offload"), (in_kafka.seq, "offload")]
    )
    again.outbox.receipt([told.seq, fresh.seq])
    again.hear(answer_to(waiting))
    again.hear(answer_to(in_kafka))
    again.turn()
    again.sensor_takes()
    again.turn()
    assert again.kept() == [] and again.outbox.bytes == 0 and len(again.outbox) == 0
    again.store.close()


def test_an_expired_one_still_waits_for_its_word_after_a_restart(make: Make) -> None:
    device = make()
    hard = device.offload()
    device.add(hard)
    device.clock.forward(60.1)
    device.turn()
    again = device.restart()
    again.turn()
    assert again.sensor.sent == []
    (up,) = again.uplink.take()
    assert isinstance(up, Prediction) and up.reason == "expired"
    again.hear(up)
    again.turn()
    assert again.sensor_takes() == [up]
    again.store.close()


def test_the_time_left_falls_with_every_sending(make: Make) -> None:
    device = make(up=False)
    hard = device.offload()
    device.add(hard)
    device.clock.forward(20)
    device.uplink.up.set()
    device.turn()
    (first,) = device.uplink.take()
    device.clock.forward(15)
    device.turn()
    (second,) = device.uplink.take()
    assert isinstance(first, Offload) and isinstance(second, Offload)
    assert (first.ttl_ms, second.ttl_ms) == (40_000, 25_000)
    assert first.tensors == hard.tensors and first.beliefs == hard.beliefs


def test_the_next_thing_that_is_due(make: Make) -> None:
    device = make()
    assert device.outbox.next_due() == device.clock() + 1
    device.add(device.offload())
    assert device.outbox.next_due() == device.clock() + 5
    device.clock.forward(5.1)
    device.turn()
    assert device.outbox.next_due() == pytest.approx(device.clock() + 4.9)  # the receipt's timeout
    device.uplink.up.clear()
    assert device.outbox.next_due() == pytest.approx(device.clock() + 54.9)  # the end of its time


def test_predictions_go_up_together_by_count_by_size_and_by_time(make: Make, clock: Clock) -> None:
    device = make(predictions={"mode": "batches", "count": 3, "size_bytes": 100_000, "wait_s": 2})
    own = [device.own_final() for _ in range(8)]
    hard = device.offload()
    device.add(*own[:4], hard, *own[4:])
    assert device.uplink.messages() == [seqs(own[:3]), [hard.seq], seqs(own[3:6])], "an offload never waits"
    clock.forward(1.9)
    device.turn()
    assert device.uplink.messages() == [] and device.outbox.next_due() == pytest.approx(clock.now + 0.1)
    clock.forward(0.2)
    device.turn()
    assert device.uplink.messages() == [seqs(own[6:])]
    device.outbox.receipt(seqs(own))
    device.sensor_takes()
    device.turn()
    assert device.kept() == [(hard.seq, "offload")]


def test_a_batch_that_is_large_enough_goes(make: Make) -> None:
    device = make(predictions={"mode": "batches", "count": 100, "size_bytes": 150, "wait_s": 2})
    assert 75 < len(messages.encode(device.own_final())) < 150
    own = [device.own_final() for _ in range(4)]
    device.add(*own)
    assert [len(one) for one in device.uplink.messages()] == [2, 2]


def test_a_batch_is_kept_sent_again_and_bounded_like_anything_else(make: Make, clock: Clock) -> None:
    device = make(predictions={"mode": "batches", "count": 10, "wait_s": 1}, uplink_in_flight=4, receipt_timeout_s=5)
    own = [device.own_final() for _ in range(6)]
    device.add(*own)
    assert device.uplink.messages() == [seqs(own[:4])], "no more are waited for than may be in flight"
    device.outbox.receipt(seqs(own[:3]))
    clock.forward(1.5)
    device.turn()
    clock.forward(4.5)
    device.turn()
    assert device.uplink.messages() == [seqs([*own[4:], own[3]])], "one has waited for its receipt for too long"
    again = device.restart()
    again.turn()
    clock.forward(1.5)
    again.turn()
    assert again.uplink.messages() == [seqs(own[3:])]
    again.store.close()


def test_only_changes_go_up_and_the_others_are_told_and_counted(make: Make, clock: Clock) -> None:
    device = make(predictions={"mode": "changes", "refresh_s": 100})
    own = [device.own_final(label=label) for label in (1, 1, 2, 2, 2, 1)]
    device.add(*own)
    assert [one.seq for one in device.uplink.take()] == seqs([own[0], own[2], own[5]])
    assert device.outbox.counters["predictions_not_sent"] == 3
    assert seqs(device.sensor_takes()) == seqs(own), "the device tells all of them"
    device.turn()
    assert device.kept() == [(one.seq, "prediction") for one in (own[0], own[2], own[5])]
    device.outbox.receipt([own[0].seq, own[2].seq, own[5].seq])
    clock.forward(101)
    same = device.own_final(label=1)
    device.add(same)
    assert device.uplink.take() == [same], "after a while the same goes up again"


def test_after_an_offload_the_next_label_goes_up_whatever_it_is(make: Make) -> None:
    """Those above may have given the sample between another one."""
    device = make(predictions_by_model={"columns": {"mode": "changes"}})
    before, hard, after = device.own_final(label=1), device.offload(), device.own_final(label=1)
    device.add(before, hard, after)
    assert seqs(device.uplink.take()) == seqs([before, hard, after])
    other = device.own_final(label=1, model="rows")
    device.add(other, replace(other, seq=device.store.new_seq()))
    assert len(device.uplink.take()) == 2, "another model has another setting"


def test_what_did_not_go_up_is_not_sent_after_a_restart(make: Make) -> None:
    device = make(predictions={"mode": "changes"})
    own = [device.own_final(label=1) for _ in range(3)]
    device.add(*own)
    again = device.restart()
    again.turn()
    assert seqs(again.uplink.take()) == [own[0].seq]
    assert seqs(again.sensor_takes()) == seqs(own), "it may not have been told"
    again.store.close()


def test_what_may_have_changed_the_last_label_above_lets_the_next_one_through(make: Make, clock: Clock) -> None:
    device = make(predictions={"mode": "changes"}, answer_timeout_s=1)
    hard = device.offload(ttl_ms=5000)
    device.add(hard, device.own_final(label=1))
    device.uplink.take()
    device.hear(answer_to(hard, label=2))
    device.add(same := device.own_final(label=1))
    assert device.uplink.take() == [same], "an answer from above came between"

    late = device.offload(ttl_ms=5000)
    device.add(late, device.own_final(label=1))
    device.uplink.take()
    clock.forward(6)
    device.turn()
    device.add(again := device.own_final(label=1))
    assert again in device.uplink.take(), "an expired sample went up between"

    device.add(other := device.own_final(label=1, bundle="cd" * 32))
    assert device.uplink.take() == [other], "the same number of another bundle may mean something else"


def test_while_no_receipt_comes_at_all_it_is_sent_again_ever_more_rarely(make: Make, clock: Clock) -> None:
    """Kafka away behind a gateway for ten minutes; the first receipt after it brings back the usual patience.

    One more than usual goes up, since its receipt would show that the others are refused, each time.
    """
    device = make(uplink_in_flight=2, receipt_timeout_s=10)
    own = [device.own_final() for _ in range(5)]
    device.add(*own)
    assert seqs(device.uplink.take()) == [own[0].seq, own[1].seq]
    again = []
    for second in range(1, 601):
        clock.forward(1)
        device.turn()
        if found := seqs(device.uplink.take()):
            assert found == seqs(own[:3]), "the oldest, in order"
            again.append(second)
    assert again[:4] == [10, 30, 70, 130] and len(again) == 11
    device.outbox.receipt(seqs(own[:2]))
    device.turn()
    assert seqs(device.uplink.take()) == seqs(own[3:]), "in order"
    device.outbox.receipt([own[4].seq])
    clock.forward(10)
    device.turn()
    assert seqs(device.uplink.take()) == seqs(own[2:4])
    assert device.outbox.counters["outcomes_set_aside"] == 0


@pytest.mark.parametrize("limit", [2_000, 3_000_000])
def test_an_offload_that_is_too_large_is_answered_by_the_best_exit(make: Make, limit: int) -> None:
    """No gateway would take it. One that may be larger than messages commonly are is an offload like any other."""
    device = make(message_limit_bytes=limit, up=False)
    hard = large(device, 1_200_000)
    assert device.outbox.add([hard]) == []
    device.turn()
    device.clock.forward(1)
    device.uplink.up.set()
    if limit > 1_200_000:
        device.turn()
        assert device.uplink.take() == [replace(hard, ttl_ms=59_000)]
        device.outbox.receipt([hard.seq])
        device.clock.forward(5)
        device.turn()
        assert device.outbox.bytes < 1000
        return
    device.turn()
    (told,) = device.sensor_takes()
    assert (told.seq, told.status, told.label, told.tier) == (hard.seq, "final", 1, "edge")
    assert device.uplink.take() == [told] and device.outbox.counters["offloads_too_large"] == 1
    device.outbox.receipt([hard.seq])
    device.turn()
    assert device.kept() == [], "nobody above knows of it: there is nothing to wait for"


def test_what_is_too_large_and_knows_no_answer_is_refused(make: Make) -> None:
    device = make(message_limit_bytes=2_000)
    raw = replace(large(device), beliefs=(), next_segment=0)
    audit = replace(large(device), audit=Audit(of=1, exit=0, label=0))
    refused = device.outbox.add([raw, audit])
    assert [(origin, data) for _, origin, data in refused] == [("columns", messages.encode(o)) for o in (raw, audit)]
    assert all("over the limit of 2000" in reason for reason, _, _ in refused)
    device.turn()
    assert len(device.outbox) == 0 and device.kept() == [] and device.uplink.sent == device.sensor.sent == []


def test_an_own_answer_that_is_too_large_is_told_and_refused(make: Make) -> None:
    device = make(message_limit_bytes=2_000)
    own = device.own_final(outputs=bytes(10_000))
    ((reason, origin, _),) = device.outbox.add([own])
    assert "over the limit of 2000" in reason and origin == "columns"
    device.turn()
    assert device.uplink.sent == [] and device.sensor_takes() == [own]
    device.turn()
    assert device.kept() == []


def test_what_never_gets_its_receipt_though_others_do_holds_no_place_for_ever(make: Make, clock: Clock) -> None:
    """An old gateway refuses it each time and gives no receipt: it is kept, and sent ever more rarely."""
    device = make(uplink_in_flight=4, sample_ttl_s=3600.0)
    bad = [device.offload(beliefs=()) for _ in range(4)]
    device.add(*bad)
    sent, others = 0, 0
    for second in range(4 * 3600):
        if second % 10 == 0:
            device.outbox.add([device.own_final()])
        device.turn()
        device.sensor_takes()
        for one in device.uplink.take():
            if one.seq in seqs(bad):
                sent += 1
            else:
                others += 1
                device.outbox.receipt([one.seq])
        clock.forward(1)
    assert others > 4 * 360 - 60 and sent < 4 * 20
    assert device.outbox.counters["outcomes_set_aside"] == 4
    assert [seq for seq, _ in device.kept()][:4] == seqs(bad), "nothing is lost: the gateway may be mended"
    clock.forward(3600)
    device.turn()
    assert set(seqs(device.uplink.take())) >= set(seqs(bad))
    device.outbox.receipt(seqs(bad))
    device.turn()
    assert not {*seqs(bad)} & device.outbox._sent.keys()


def test_what_is_set_aside_expires_like_any_other(make: Make, clock: Clock) -> None:
    device = make(uplink_in_flight=2, sample_ttl_s=3600.0)
    bad = device.offload(ttl_ms=300_000)
    device.add(bad)
    while not device.outbox.counters["expired"]:
        device.outbox.add([own := device.own_final()])
        device.turn()
        device.sensor_takes()
        last = device.uplink.take()
        device.outbox.receipt([own.seq])
        clock.forward(5)
        if device.outbox.counters["outcomes_set_aside"]:
            assert own in last
    assert device.outbox.counters["outcomes_set_aside"] == 1
    assert [(o.seq, o.reason) for o in last if isinstance(o, Prediction) and o.reason == "expired"] == [
        (bad.seq, "expired")
    ]
