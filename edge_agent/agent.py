"""The agent's main loop: sensor, window, segments, answer or offload.

One thread owns all state; the two broker clients and the updater only put events into the mailbox. One turn: take
what has come; run what is complete; commit it in one transaction; then acknowledge and publish. So nothing is
acknowledged that could be lost, and nothing is published that a power cut could make a second, different sample.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from edge_agent.asking import Asked, Asker
from edge_agent.audit import audits
from edge_agent.intake import Complete, Intake
from edge_agent.mailbox import Mailbox
from edge_agent.outbox import Outbox
from edge_agent.settings import EdgeSettings
from edge_agent.store import Store
from edge_agent.updates import Measured, Prepared, Updater, keep_only, prepare_local
from sluice.daemon.life import READY
from sluice.daemon.watchdog import Watchdog
from sluice.doors.mqtt import Incoming, MqttDoor
from sluice.stage.segment import profile
from sluice.stage.step import Stage, Work, share_of, step
from sluice.wire import messages, metrics
from sluice.wire.codec import encode_tensor
from sluice.wire.errors import PermanentError, UnknownSchemaError
from sluice.wire.messages import Offload, Outcome, Prediction
from sluice.wire.names import LETTER_KIND, MqttTopics
from sluice.wire.profile import Profile, parse_profile
from sluice.wire.state import (
    MAX_STATE_BYTES,
    DeadLetter,
    Desired,
    DeviceStatus,
    Receipt,
    Reported,
    parse_state,
    unseal,
)

log = logging.getLogger(__name__)

LAZY_COMMIT_S = 0.3
"""Longest time that deletions wait for a transaction to go along with."""
LETTER_DATA_BYTES = (MAX_STATE_BYTES - 10_000) * 3 // 4
"""Bytes of a bad payload that go into a dead letter, which is state in its size: base64, reason and origin fit too."""
LETTERS_MOST = 200
"""Dead letters that are kept in memory while the link is down."""
VERSION = version("sluice")


class Agent:
    """One device. `run` is the main loop; everything else is called from it."""

    def __init__(self, settings: EdgeSettings) -> None:
        self.settings = settings
        device, topics = settings.device_id, MqttTopics(settings.topic_prefix)
        self.topics = topics
        self.store = Store(settings.data)
        self.intake = Intake(settings, self.store)
        self.mail = Mailbox(settings.readings_most)
        self.sensor = MqttDoor(
            "sensor",
            settings.sensor_broker,
            f"{device}-sensor",
            subscriptions=[(wanted, 1) for wanted in self.intake.subscriptions],
            on_message=self.mail.put_reading,
            on_published=self.mail.put_published,
        )
        self.uplink = MqttDoor(
            "uplink",
            settings.uplink,
            f"{device}-uplink",
            subscriptions=[(topics.of(device, kind), 1) for kind in ("receipt", "inbox", "desired")],
            on_message=self.mail.put,
            on_up=lambda: self.mail.put("up"),
            will=(topics.of(device, "status"), self._status("offline")),
        )
        self.outbox = Outbox(settings, self.store, self.sensor, self.uplink)
        self.updater = Updater(settings, self.mail.put)
        self.asker = Asker(settings, self.store.epoch, self.mail.put)
        self.desired: Desired | None = None
        self.stage: Stage | None = None
        self.watchdog = Watchdog()
        self.revision = int(self.store.fact("revision") or b"0")
        self.since_us = 0
        self.last_error: str | None = None
        self.measured: Profile | None = None
        self._to_ack: list[Incoming] = []
        self._letters: list[DeadLetter] = []
        self._report_due = False
        self._next_report = 0.0
        self._told_counters = self._counters()
        self._tidied = 0

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, then leave in good order."""
        self._take_up()
        self.sensor.start()
        self.uplink.start()
        log.info(READY, extra={"device_id": self.settings.device_id})
        self.watchdog.ready()
        committed = time.monotonic()
        while not stop.is_set():
            self.watchdog.alive()
            timeout = min(self.outbox.next_due() - time.monotonic(), LAZY_COMMIT_S)
            for event in self.mail.take(timeout, or_reading=self.stage is not None):
                self._handle(event)
            if self.stage is not None:
                self._infer(self.stage, self.mail.take_readings(self.settings.batch_most))
            self.outbox.tick()
            if self.asker.idle:
                self.asker.ask(self.outbox.overdue())
            if self.store.dirty or time.monotonic() - committed >= LAZY_COMMIT_S:
                self.store.commit()
                committed = time.monotonic()
            self._after_commit()
        self.watchdog.stopping()
        self.mail.close()
        self.updater.close()
        self.asker.close()
        self.uplink.publish(self.topics.of(self.settings.device_id, "status"), self._status("offline"), retain=True)
        self.sensor.stop()
        self.uplink.stop()
        self.store.close()

    def _infer(self, stage: Stage, readings: list[Incoming]) -> None:
        """From readings to outcomes, in the outbox."""
        inputs = {stage.manifest.model: stage.manifest.inputs}
        works: list[Work] = []
        for incoming in readings:
            self._to_ack.append(incoming)
            try:
                made = self.intake.take(incoming, inputs)
            except PermanentError as error:
                metrics.EDGE_BAD_READINGS.inc()
                self._refuse(str(error), incoming)
                continue
            works += [Work(self._offload(stage, one), one.tensors) for one in made]
        if not works:
            return
        assert self.desired is not None
        point = stage.manifest.operating_point(self.desired.operating_point)
        if share_of(point, "edge"):
            outcomes = step(stage, works)
            audited = audits(stage, works, outcomes, self.settings.audit_share, self.store.new_seq)
            self.outbox.add(outcomes + audited)
        else:
            self.outbox.add(self._raw(stage, work) for work in works)

    def _offload(self, stage: Stage, complete: Complete) -> Offload:
        """A new sample at the beginning of its way."""
        assert self.desired is not None
        point = stage.manifest.operating_point(self.desired.operating_point)
        return Offload(
            device_id=self.settings.device_id,
            epoch=self.store.epoch,
            seq=self.store.new_seq(),
            source_id=complete.source_id,
            model=stage.manifest.model,
            bundle=stage.digest,
            operating_point=point.id,
            tier=point.placement[0],
            next_segment=0,
            tensors=(),
            beliefs=(),
            captured_at=time.time_ns() // 1000,
            ttl_ms=int(self.settings.sample_ttl_s * 1000),
        )

    def _raw(self, stage: Stage, work: Work) -> Outcome:
        """The raw input, offloaded: no segment is placed on the edge."""
        point = stage.manifest.operating_point(work.offload.operating_point)
        specs = stage.manifest.inputs
        return replace(work.offload, tensors=tuple(encode_tensor(work.tensors[s.name], s, point.codec) for s in specs))

    def _handle(self, event: object) -> None:
        """One event that is not a reading."""
        if isinstance(event, int):
            self.outbox.published(event)
        elif isinstance(event, Prepared):
            self._prepared(event)
        elif isinstance(event, Measured):
            self._take_measured(event)
        elif isinstance(event, Asked):
            self.outbox.asked(event)
        elif event == "up":
            self.uplink.publish(self.topics.of(self.settings.device_id, "status"), self._status("online"), retain=True)
            self.outbox.link_is_up()
            self._report_due = True
        elif isinstance(event, Incoming):
            try:
                self._from_above(event)
            except (PermanentError, UnknownSchemaError) as error:
                self._refuse(str(error), event)
                self.uplink.ack(event)

    def _from_above(self, incoming: Incoming) -> None:
        _, kind = self.topics.split(incoming.topic)
        if kind == "inbox":
            prediction = messages.decode(incoming.payload, self.settings.message_limit_bytes)
            if not isinstance(prediction, Prediction) or prediction.device_id != self.settings.device_id:
                raise PermanentError("inbox holds what is no answer for this device")
            self.outbox.answer(prediction, incoming)  # acknowledged when it was told
            return
        if kind == "receipt":
            receipt = parse_state(Receipt, incoming.payload)
            if receipt.epoch == self.store.epoch:
                self.outbox.receipt(receipt.seqs)
        elif kind == "desired" and incoming.payload:
            self._desire(incoming.payload)
        self.uplink.ack(incoming)

    def _desire(self, envelope: bytes) -> None:
        """A desired state arrived: order it if it is ours, signed, and newer than what was looked at."""
        desired = unseal(envelope, self.settings.device_id, self.settings.public_keys)
        if desired.revision == self.revision:
            return
        if desired.revision < self.revision:
            raise PermanentError(f"desired revision {desired.revision} is older than {self.revision}")
        self.updater.order(desired, envelope)

    def _prepared(self, result: Prepared) -> None:
        """The updater is through with a desired state: switch, or say why not and go on as before."""
        self._report_due = True
        if not result.final:
            self.last_error = result.error
            return
        self.revision = max(self.revision, result.desired.revision)
        self.store.set_fact("revision", str(self.revision).encode())
        self.store.dirty = True
        if result.stage is None:
            self.last_error = f"revision {result.desired.revision} refused: {result.error}"
            log.error(self.last_error)
            return
        before = self.desired
        self.stage, self.desired, self.last_error = result.stage, result.desired, None
        self.since_us = time.time_ns() // 1000
        self.store.set_fact("desired", result.envelope)
        kept = {result.desired.bundle, before.bundle if before else "", self.updater.ordered}
        keep_only(self.settings.data, kept)
        log.info(
            "runs bundle %s… at operating point %s",
            result.desired.bundle[:12],
            result.desired.operating_point,
            extra={"device_id": self.settings.device_id, "model": result.desired.model},
        )
        answered = self.measured.request if self.measured else None
        if result.desired.profile not in (None, answered):
            self.updater.measure(result.desired)

    def _take_measured(self, result: Measured) -> None:
        """The updater has measured the segments, or could not."""
        self._report_due = True
        if result.profile is None:
            self.last_error = f"profile {result.desired.profile}: {result.error}"
            log.error(self.last_error)
            return
        self.measured = result.profile
        self.store.set_fact("measured", result.profile.model_dump_json().encode())
        self.store.dirty = True
        log.info("measured %d segments", len(result.profile.segments), extra={"model": result.desired.model})

    def _take_up(self) -> None:
        """Run what ran before the restart, from what is on the device."""
        measured = self.store.fact("measured")
        if measured is not None:
            try:
                self.measured = parse_profile(measured)
            except PermanentError as error:
                log.warning("what was measured before cannot be read: %s", error)
        envelope = self.store.fact("desired")
        if envelope is None:
            return
        try:
            desired = unseal(envelope, self.settings.device_id, self.settings.public_keys)
            self._prepared(Prepared(desired, envelope, prepare_local(self.settings, desired)))
        except PermanentError as error:
            self.last_error = f"what ran before cannot be taken up: {error}"
            log.error(self.last_error)
            self.revision = max(0, self.revision - 1)  # what was looked at last is looked at again, nothing older
            self._report_due = True

    def _refuse(self, reason: str, incoming: Incoming) -> None:
        """Bad input: it is sent up as a dead letter and reported, and the next one is served."""
        log.error("refused: %s", reason, extra={"topic": incoming.topic})
        self.outbox.counters["refused"] += 1
        self.last_error = reason[:500]
        self._report_due = True
        data = base64.b64encode(incoming.payload[:LETTER_DATA_BYTES]).decode()
        self._letters.append(DeadLetter(reason=reason[:1000], origin=incoming.topic[:300], data=data))

    def _after_commit(self) -> None:
        """What was made durable may be seen now."""
        for incoming in self._to_ack:
            self.sensor.ack(incoming)
        self._tidied += len(self._to_ack)
        self._to_ack.clear()
        self.outbox.after_commit()
        device = self.settings.device_id
        if self.uplink.up.is_set():
            for letter in self._letters:
                self.uplink.publish(self.topics.of(device, LETTER_KIND), letter.model_dump_json().encode())
            self._letters.clear()
            now = time.monotonic()
            if now >= self._next_report and self._counters() != self._told_counters:
                self._report_due = True
            if self._report_due:
                self._report_due = False
                self._told_counters = self._counters()
                self._next_report = now + self.settings.report_interval_s
                self.uplink.publish(
                    self.topics.of(device, "reported"),
                    self._reported().model_dump_json().encode(),
                    retain=True,
                )
        elif len(self._letters) > LETTERS_MOST:
            del self._letters[:-LETTERS_MOST]
        if self._tidied >= 1000:
            self._tidied = 0
            self.store.forget_seen(self.settings.source_ids_kept)

    def _counters(self) -> dict[str, int]:
        return {**self.outbox.counters, **self.intake.counters}

    def _reported(self) -> Reported:
        desired = self.desired
        return Reported(
            device_id=self.settings.device_id,
            revision=self.revision,
            model=desired.model if desired else None,
            bundle=desired.bundle if desired else None,
            operating_point=desired.operating_point if desired else None,
            since_us=self.since_us,
            last_error=self.last_error,
            agent_version=VERSION,
            profile=profile(),
            measured=self.measured,
            counters=self._counters() | {"store_commits": self.store.commits},
        )

    def _status(self, status: Any) -> bytes:
        return DeviceStatus(device_id=self.settings.device_id, status=status).model_dump_json().encode()
