"""The agent's main loop: sensor, window, segments, answer or offload.

One thread owns all state; the two broker clients and the updater only put events into the mailbox. One turn: take
what has come; run what is complete; commit it in one transaction; then acknowledge and publish. So nothing is
acknowledged that could be lost, and nothing is published that a power cut could make a second, different sample.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from edge_agent.asking import Asked, Asker
from edge_agent.changes import Changes
from edge_agent.intake import Complete, Intake
from edge_agent.mailbox import Mailbox, Refused, TooLarge
from edge_agent.outbox import Outbox
from edge_agent.reports import Reports
from edge_agent.running import Model, Models
from edge_agent.sensor import too_large
from edge_agent.settings import EdgeSettings
from edge_agent.store import Store
from edge_agent.updates import Report, Updater
from sluice.daemon.life import READY, run
from sluice.daemon.watchdog import Watchdog
from sluice.doors.mqtt import Incoming, MqttDoor
from sluice.stage.audit import audits
from sluice.stage.segment import profile
from sluice.stage.step import Stage, Work, share_of, step
from sluice.wire import messages, metrics
from sluice.wire.codec import encode_tensor
from sluice.wire.errors import PermanentError, TemporaryError, UnknownSchemaError
from sluice.wire.messages import Offload, Outcome, Prediction
from sluice.wire.names import MqttTopics
from sluice.wire.state import DeviceStatus, Receipt, Reported, parse_state

log = logging.getLogger(__name__)

LAZY_COMMIT_S = 0.3
"""Longest time that deletions wait for a transaction to go along with."""
STOP_WITHIN_S = 5.0
BEGUN_BYTES = 1000
"""What is kept of a reading that is too large, for its dead letter."""
DRAIN_S = 2.0
"""Longest time that work goes on after the agent was told to stop."""
VERSION = version("sluice")


def serve(settings: EdgeSettings) -> int:
    """The daemon's life, from its start until it is told to stop; the exit code."""
    return run("edge-agent", settings, lambda stop: Agent(settings).run(stop), stop_within_s=STOP_WITHIN_S)


class Agent:
    """One device. `run` is the main loop; everything else is called from it."""

    def __init__(self, settings: EdgeSettings) -> None:
        self.settings = settings
        device, topics = settings.device_id, MqttTopics(settings.topic_prefix)
        self.topics = topics
        self.store = Store(settings.data if settings.store == "disk" else None)
        self.intake = Intake(settings, self.store)
        self.mail = Mailbox(settings.readings_most, settings.readings_bytes)
        self._reading_bytes = max(sensor.limit_bytes for sensor in settings.sensors_by_name.values())
        self.sensor = MqttDoor(
            "sensor",
            settings.sensor_broker,
            f"{device}-sensor",
            subscriptions=[(wanted, 1) for wanted in self.intake.subscriptions],
            on_message=self._from_sensor,
            on_published=self.mail.put_published,
            on_refused=self.mail.put_refused,
            retained_once=True,
        )
        self.uplink = MqttDoor(
            "uplink",
            settings.uplink,
            f"{device}-uplink",
            subscriptions=[(topics.of(device, kind), 1) for kind in ("receipt", "inbox", "desired")],
            on_message=self._from_uplink,
            on_up=lambda: self.mail.put("up"),
            will=(topics.of(device, "status"), self._status("offline")),
        )
        self.outbox = Outbox(settings, self.store, self.sensor, self.uplink)
        self.reports = Reports(settings, self.store, self.uplink)
        self.models = Models(self.store)
        self.updater = Updater(settings, self.mail.put)
        self.changes = Changes(settings, self.store, self.models, self.reports, self.updater, self._commit)
        self.asker = Asker(settings, self.store.epoch, self.mail.put)
        self.watchdog = Watchdog()
        self._to_ack: list[Incoming] = []
        self._tidied = 0
        self._committed = time.monotonic()
        self._stop = threading.Event()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, then leave in good order."""
        self._stop = stop
        self.changes.take_up()
        self.sensor.start()
        self.uplink.start()
        log.info(READY, extra={"device_id": self.settings.device_id})
        self.watchdog.ready()
        while not stop.is_set():
            self.watchdog.alive()
            timeout = min(self.outbox.next_due() - time.monotonic(), self._until_commit())
            runs, stuck = self.models.any_runs, self.outbox.waits_for_notices
            for event in self.mail.take(timeout, or_reading=runs, or_lazy=stuck):
                self._handle(event)
            if self.models.any_runs:
                self._infer(self.mail.take_readings(self.settings.batch_most))
            self.outbox.tick()
            if self.asker.idle:
                self.asker.ask(self.outbox.overdue())
            if self._until_commit() <= 0:
                self._commit()
            if not self.store.dirty:
                self._after_commit()
        self.watchdog.stopping()
        self._drain()
        self.updater.close()
        self.asker.close()
        self.uplink.publish(self.topics.of(self.settings.device_id, "status"), self._status("offline"), retain=True)
        self.sensor.stop()
        self.uplink.stop()
        self.store.close()

    def _drain(self) -> None:
        """Work on the readings that are here already; make durable, acknowledge and tell what came of all of them.

        What cannot be made durable comes again, but for readings of QoS 0: those come only once.
        """
        self.mail.close()
        until = time.monotonic() + DRAIN_S
        try:
            self.store.commit()
            while self.models.any_runs and time.monotonic() < until:
                readings = self.mail.take_readings(self.settings.batch_most)
                if not readings:
                    break
                self._infer(readings)
            self.models.stop()
            self.store.commit()
        except TemporaryError as error:
            log.error("stopping: %s; what is not durable comes again", error)
            return
        self._after_commit()
        while self.outbox.tells and self.sensor.up.is_set() and (left := until - time.monotonic()) > 0:
            for event in self.mail.take(left, or_reading=False, or_lazy=True):
                if isinstance(event, int | Refused):
                    self._handle(event)

    def _until_commit(self) -> float:
        """Seconds until what was done so far is to be made durable."""
        interval = self.settings.commit_interval_s
        return self._committed + (interval if self.store.dirty else max(LAZY_COMMIT_S, interval)) - time.monotonic()

    def _commit(self) -> None:
        """Make what was done so far durable. Where that cannot be, nothing goes on, and nobody is told anything."""
        waits = False
        while not self._stop.is_set():
            try:
                self.store.commit()
                break
            except TemporaryError as error:
                if not waits:
                    waits = True
                    log.error("waiting, nothing is taken in: %s", error)
                    self.reports.fault(f"waiting, nothing is taken in: {error}")
                    self._report()
                self.watchdog.alive()
                self._stop.wait(error.delay)
        if waits and not self._stop.is_set():
            log.info("the store can be written again")
            self.reports.last_error, self.reports.due = None, True
        self._committed = time.monotonic()

    def _from_sensor(self, incoming: Incoming) -> None:
        """A reading arrives, in the thread of that broker's client; of one that nobody will read little is kept."""
        if (nbytes := len(incoming.payload)) > self._reading_bytes:
            self.mail.put(TooLarge(replace(incoming, payload=incoming.payload[:BEGUN_BYTES]), nbytes))
        else:
            self.mail.put_reading(incoming)

    def _from_uplink(self, incoming: Incoming) -> None:
        """A message from above arrives, in the thread of that broker's client."""
        self.mail.put(incoming, lazily=incoming.topic.endswith("/receipt"))

    def _infer(self, readings: list[Incoming]) -> None:
        """From readings to outcomes, in the outbox: the samples of each model are a batch."""
        if not readings:
            return
        inputs, works = self.models.inputs(), dict[str, list[Work]]()
        for incoming in readings:
            self._to_ack.append(incoming)
            try:
                made = self.intake.take(incoming, inputs)
            except PermanentError as error:
                self._refuse_reading(str(error), incoming)
                continue
            for one in made:
                works.setdefault(one.model, []).append(Work(self._offload(one), one.tensors))
        for name, batch in works.items():
            for refused in self.outbox.add(self._outcomes(self.models[name], batch)):
                self._refuse(*refused)
            self.changes.judge(name)

    def _offload(self, complete: Complete) -> Offload:
        """A new sample at the beginning of its way."""
        model = self.models[complete.model]
        assert model.stage is not None
        return Offload(
            device_id=self.settings.device_id,
            epoch=self.store.epoch,
            seq=self.store.new_seq(),
            source_id=complete.source_id,
            model=complete.model,
            bundle=model.stage.digest,
            operating_point=model.point.id,
            tier=model.point.placement[0],
            next_segment=0,
            tensors=(),
            beliefs=(),
            captured_at=time.time_ns() // 1000,
            ttl_ms=int(self.settings.sample_ttl_s * 1000),
        )

    def _outcomes(self, model: Model, works: list[Work]) -> list[Outcome]:
        """What comes of a batch of one model. Whatever its run raises is an error of that run, and no one else's."""
        assert model.stage is not None
        begun = time.perf_counter_ns()
        try:
            outcomes = _work(model.stage, works)
        except Exception as error:
            failed = f"{type(error).__name__}: {error}"
        else:
            ms = (time.perf_counter_ns() - begun) / 1e6 / len(works)
            for outcome in outcomes:
                model.note(exited=isinstance(outcome, Prediction), ms=ms)
            return outcomes + self._audits(model, works, outcomes)
        # the exception is gone by now, and with it its hold on the runtime's memory
        if len(works) > 1:
            return [outcome for work in works for outcome in self._outcomes(model, [work])]
        model.note(failed=True)
        return self._without_run(model, works[0], failed)

    def _audits(self, model: Model, works: list[Work], outcomes: list[Outcome]) -> list[Outcome]:
        """The audits of a batch. One that fails takes nothing from the samples, which are answered."""
        assert model.stage is not None
        try:
            share = self.settings.audit_share
            made = audits(model.stage, works, outcomes, share, lambda _: self.store.new_seq())
            return [outcome for _, outcome in made]
        except Exception as error:
            model.note(failed=True)
            self.reports.fault(f"{works[0].offload.model}: an audit failed: {type(error).__name__}: {error}")
            return []

    def _without_run(self, model: Model, work: Work, failed: str) -> list[Outcome]:
        """A sample that its run cannot work on is the run before's, if that is at hand, or a dead letter."""
        offload = work.offload
        before = model.for_before(work)
        if before is not None and model.ready is not None:
            try:
                return _work(model.ready, [before])
            except Exception as error:
                failed += f"; the run before: {type(error).__name__}: {error}"
        reason = f"{offload.model} at revision {model.revision} cannot work on sample {offload.seq}: {failed}"
        data = b"".join(tensor.tobytes() for tensor in work.tensors.values())
        self._refuse(reason, f"{offload.model} {offload.source_id or ''}".strip(), data)
        return []

    def _handle(self, event: object) -> None:
        """One event that is not a reading."""
        if isinstance(event, int):
            self.outbox.published(event)
        elif isinstance(event, Refused):  # there is nobody else to tell it to: counted, said, and done with
            self.outbox.counters["answers_refused"] += 1
            self.reports.last_error = f"the sensor broker refuses answers: {event.reason}"
            self.outbox.published(event.mid)
        elif isinstance(event, TooLarge):
            self._to_ack.append(event.begun)
            self._refuse_reading(too_large(event.nbytes, self._reading_bytes), event.begun)
        elif isinstance(event, Asked):
            self.outbox.asked(event)
        elif isinstance(event, Report):
            self.changes.take(event)
        elif event == "up":
            self.uplink.publish(self.topics.of(self.settings.device_id, "status"), self._status("online"), retain=True)
            self.outbox.link_is_up()
            self.reports.due = True
        elif isinstance(event, Incoming):
            try:
                self._from_above(event)
            except PermanentError as error:
                self._refuse(str(error), event.topic, event.payload)
                self.uplink.ack(event)
            except UnknownSchemaError as error:  # the results have it; it is asked for until this agent can read it
                log.error("an answer is left for later: %s", error)
                self.outbox.counters["answers_left"] += 1
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
            self.changes.desire(incoming.payload)
        self.uplink.ack(incoming)

    def _refuse_reading(self, reason: str, incoming: Incoming) -> None:
        metrics.EDGE_BAD_READINGS.inc()
        self._refuse(reason, incoming.topic, incoming.payload)

    def _refuse(self, reason: str, origin: str, data: bytes) -> None:
        """Bad input: it is sent up as a dead letter and reported, and the next one is served."""
        self.outbox.counters["refused"] += 1
        self.reports.refuse(reason, origin, data)

    def _after_commit(self) -> None:
        """What was made durable may be seen now, answers first: somebody waits for them."""
        self.outbox.after_commit()
        for incoming in self._to_ack:
            self.sensor.ack(incoming)
        self._tidied += len(self._to_ack)
        self._to_ack.clear()
        self.changes.after_commit()
        self._report()
        if self._tidied >= 1000:
            self._tidied = 0
            self.store.forget_seen(self.settings.source_ids_kept)

    def _report(self) -> None:
        """Say what runs and how it goes, if it is time to."""
        self.reports.after_commit(self._reported, lambda: {**self.outbox.counters, **self.intake.counters})

    def _reported(self, counters: dict[str, int]) -> Reported:
        return Reported(
            device_id=self.settings.device_id,
            revision=self.changes.revision,
            runs=self.models.told(),
            last_error=self.reports.last_error,
            agent_version=VERSION,
            profile=profile(),
            measured=self.changes.measured,
            counters=counters | {"store_writes": self.store.writes},
        )

    def _status(self, status: Any) -> bytes:
        return DeviceStatus(device_id=self.settings.device_id, status=status).model_dump_json().encode()


def _work(stage: Stage, works: list[Work]) -> list[Outcome]:
    """One step of the device; where no segment is placed on it, the raw input, offloaded."""
    point = stage.route(works[0].offload.operating_point).point
    if share_of(point, "edge"):
        return step(stage, works)
    return [
        replace(
            work.offload,
            tensors=tuple(encode_tensor(work.tensors[s.name], s, point.codec) for s in stage.manifest.inputs),
        )
        for work in works
    ]
