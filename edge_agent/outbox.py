"""The outbox: every outcome stays here until it is told on the device and receipted by the gateway.

An own final answer leaves when both happened. An offload leaves when its final answer came from above and was told;
meanwhile the device answers provisionally when the link is down or time is up. An offload that was never receipted
when its time is over becomes a prediction of its best exit, which goes up in its stead; the order of
`sluice.predictions` decides what is final, so the device tells it as final when it comes back from there. An audit
(`audit.py`) leaves with its receipt: nobody waits for an answer. What is receipted and still waits leaves its tensors
behind: it is never sent again, and a stage may be down for days.

An answer that was forgotten on its way down is asked for: `overdue` says of which samples, `asked` takes what was told.

Predictions may go up together, or only when their label changes: a setting by model. What goes up, alone or in company,
is receipted sample by sample; what does not go up at all counts as receipted from the beginning. What is too large is
not sent: an offload is answered by its best exit. What gets no receipt though others do is sent ever more rarely, and
holds no place meanwhile.

Everything here belongs to the main loop's thread. Most calls only change memory
and the store; `after_commit` is the only place that publishes.
"""

from __future__ import annotations

import heapq
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from time import monotonic

from edge_agent.asking import Asked, Late
from edge_agent.settings import EdgeSettings
from edge_agent.store import Store
from sluice.doors.mqtt import Incoming, MqttDoor
from sluice.stage.step import best_belief, predict
from sluice.wire import messages, metrics
from sluice.wire.messages import Offload, Outcome, Prediction, Reason
from sluice.wire.names import MqttTopics

log = logging.getLogger(__name__)

TELLING_MOST = 1000
"""Answers handed to the sensor broker and not taken by it yet; message ids are 16 bits, so there must be a bound."""
PATIENCE_MOST = 6
"""Times `receipt_timeout_s` after which an outcome is sent again at the latest. While Kafka is away a gateway gives no
receipts, and what is sent again meanwhile only waits at the broker, to come to Kafka as repeats."""
LATE_MOST = 5
"""Times that an outcome gets no receipt while others do; then it is set aside, each time for twice as long."""
ASIDE_MOST_S = 3600.0
"""Longest time that it is set aside."""
TTL_GRAIN_MS = 10
"""A wait that is shorter is not written into an offload, which would have to be decoded and encoded for it."""
ENTRY_BYTES = 500
"""What an outcome takes in memory beside its payload, roughly: many small ones are bounded as well."""
ACKS_MOST = 32
"""Answers from above that wait to be acknowledged until the store is durable; at this number it is made so at once."""
_outcomes, _answers = cache(metrics.EDGE_OUTCOMES.labels), cache(metrics.EDGE_ANSWERS.labels)
"""Looking up a metric by its labels takes several times as long as counting."""


@dataclass(slots=True)
class Entry:
    """One outcome: what is known of it in memory."""

    kind: str
    payload: bytes
    born: float
    """When its time to live began: when it was added, or this run of the agent began."""
    kept: float
    """When it was added; of what an earlier run left, long before this one began."""
    waits: bool
    """For an answer from above (else it is an own final answer)."""
    model: str
    receipted: bool = False
    told: bool = False
    """The final answer was taken by the sensor broker; for one from above: it is here and being told."""
    told_provisionally: bool = False
    lean: bool = False
    """The tensors are gone: what is left waits for its answer."""
    again: bool = False
    """It was sent more than once."""
    late: int = 0
    """Times that its receipt did not come though others did."""
    aside: bool = False

    @property
    def size(self) -> int:
        return len(self.payload) + ENTRY_BYTES


class Outbox:
    """Outcomes on their way, in memory and in the store."""

    def __init__(self, settings: EdgeSettings, store: Store, sensor: MqttDoor, uplink: MqttDoor) -> None:
        self.settings = settings
        self.store = store
        self.sensor = sensor
        self.uplink = uplink
        self.topics = MqttTopics(settings.topic_prefix)
        self.counters: Counter[str] = Counter()
        self.bytes = 0
        """What all of it takes, `ENTRY_BYTES` each beside its payload."""
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._unsent: deque[int] = deque()
        self._sent: OrderedDict[int, float] = OrderedDict()
        self._heard = 0.0
        """When the last receipt came."""
        self._aside: list[tuple[float, int]] = []
        """A heap: when what was set aside is sent again."""
        self._origin = 0.0
        """The monotonic time at which the device had not run yet: what came at it has `Row.born` 0."""
        self._say_again = 0.0
        """When drops are logged again: while it is full there is one for each sample."""
        self._patience_s = settings.receipt_timeout_s
        """How long a receipt is waited for: the longer, the longer none at all has come."""
        self._batch: list[int] = []
        """Predictions that wait for company."""
        self._batch_bytes = 0
        self._batch_due = 0.0
        self._last_up: dict[str, tuple[str, int, float]] = {}
        """Of each model: bundle and label that went up last, and when it is to go up again though it is the same.
        Nothing while anything else may be the last that is known above."""
        self._timeouts: deque[tuple[float, int]] = deque()
        self._expiries: list[tuple[float, int]] = []
        """A heap: what an earlier run left may have had longer."""
        self._late = Late(settings.ask_after_s)
        self._to_tell: deque[tuple[Prediction, bytes]] = deque()
        """Answers, and as they are encoded."""
        self._telling: dict[int, int | None] = {}
        """Message id: the sample whose final answer it is."""
        self._from_above: dict[int, list[Incoming]] = {}
        """The messages that brought the answer of a sample which is being told."""
        self._to_ack: deque[tuple[int, Incoming]] = deque()
        """(number of commits when its sample left, message from above): acknowledged after one more."""
        self._load()
        metrics.EDGE_OUTBOX.set_function(lambda: len(self._entries))
        metrics.EDGE_OUTBOX_BYTES.set_function(lambda: self.bytes)

    def _load(self) -> None:
        """Take up what an earlier run left: what may not have been told or receipted is told and sent again."""
        now = monotonic()
        self._origin = now - self.store.lived_s()
        self.counters["outbox_dropped"] = int(self.store.fact("outbox_dropped") or 0)
        for row in self.store.rows():
            outcome = messages.decode(row.payload, limit=len(row.payload))
            audit = outcome.audit is not None
            waits = not audit and (isinstance(outcome, Offload) or outcome.reason == "expired")
            told = row.told or audit
            kept = self._origin + row.born
            entry = Entry(row.kind, row.payload, now, kept, waits, outcome.model, row.receipted, told)
            self._entries[row.seq] = entry
            self.bytes += entry.size
            if not row.receipted:
                self._unsent.append(row.seq)
            if isinstance(outcome, Offload):
                entry.lean = not outcome.tensors
                self._expect(outcome, now)
            elif waits:
                self._late.add([row.seq], now)
            elif not row.told:
                self._to_tell.append((outcome, row.payload))

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, outcomes: Iterable[Outcome]) -> list[tuple[str, str, bytes]]:
        """New outcomes, each of a sample of its own.

        Returns what is to be refused, since it is too large to go up: (reason, model, the outcome as it is encoded).
        """
        now = monotonic()
        refused: list[tuple[str, str, bytes]] = []
        for outcome in outcomes:
            payload = messages.encode(outcome)
            fits = len(payload) <= self.settings.message_limit_bytes
            if not fits:
                limit = self.settings.message_limit_bytes
                reason = f"{outcome.model}: message of {len(payload)} bytes is over the limit of {limit}"
                instead = self._answer_instead(outcome, reason)
                if instead is None:
                    refused.append((reason, outcome.model, payload))
                    if isinstance(outcome, Offload):
                        continue
                else:
                    outcome, payload, fits = instead, messages.encode(instead), True
            audit = outcome.audit is not None
            if isinstance(outcome, Prediction):
                kind = "prediction"
                self._to_tell.append((outcome, payload))
            else:
                kind = "offload"
                self._expect(outcome, now)
            waits = kind == "offload" and not audit
            entry = Entry(kind, payload, now, now, waits, outcome.model, told=audit)
            self._entries[outcome.seq] = entry
            self.store.put(outcome.seq, kind, payload, now - self._origin)
            self.bytes += entry.size
            if fits and self._goes_up(outcome, now):
                self._unsent.append(outcome.seq)
            else:
                entry.receipted = True
                self.store.set_receipted(outcome.seq)
                self.counters["predictions_not_sent"] += 1
            _outcomes("audit" if audit else kind).inc()
            self.counters["audits"] += audit
            if kind == "offload" and not self.uplink.up.is_set():
                self._answer_provisionally(entry, "offline")
        self._bound(now)
        return refused

    def _answer_instead(self, outcome: Outcome, reason: str) -> Prediction | None:
        """What the best exit says of an offload that is too large to go up, if there is anything."""
        if not isinstance(outcome, Offload):
            return None
        if not self.counters["offloads_too_large"]:
            log.error("offloads are answered on the device: %s", reason)
        self.counters["offloads_too_large"] += 1
        belief = best_belief(outcome) if outcome.audit is None else None
        return None if belief is None else predict(outcome, belief, "edge", "final", "offline")

    def _expect(self, offload: Offload, now: float) -> None:
        """There is to be an answer in time, unless it is an audit."""
        if offload.audit is None:
            self._timeouts.append((now + self.settings.answer_timeout_s, offload.seq))
            heapq.heappush(self._expiries, (now + offload.ttl_ms / 1000, offload.seq))

    def _goes_up(self, outcome: Outcome, now: float) -> bool:
        """Whether anyone above is to hear of it."""
        up = self.settings.predictions_of(outcome.model)
        if up.mode != "changes" or outcome.audit is not None:
            return True
        if isinstance(outcome, Offload):
            self._last_up.pop(outcome.model, None)  # those above give it a label that is not known here yet
            return True
        bundle, label, again = self._last_up.get(outcome.model, ("", None, 0.0))
        if (outcome.bundle, outcome.label) == (bundle, label) and now < again:
            return False
        self._last_up[outcome.model] = (outcome.bundle, outcome.label, now + up.refresh_s)
        return True

    def receipt(self, seqs: Iterable[int]) -> None:
        """These samples' outcomes are in Kafka."""
        if self._patience_s > self.settings.receipt_timeout_s:
            self.link_is_up()  # the first receipt after a long time: those of the others are on their way
        self._heard = monotonic()
        overdue = self._heard - self.settings.answer_timeout_s
        for seq in seqs:
            self._sent.pop(seq, None)
            entry = self._entries.get(seq)
            if entry is None or entry.receipted:
                continue
            entry.receipted = True
            if entry.told and not entry.waits:  # one from above is only being told yet; `published` finishes it
                self._finish(seq)
                continue
            self.store.set_receipted(seq)
            if entry.born <= overdue or 2 * self.bytes > self.settings.outbox_bytes:
                self._make_lean(seq, entry)  # else when its answer is overdue: mostly it comes before

    def _make_lean(self, seq: int, entry: Entry) -> None:
        """Keep of an offload that is in Kafka what is still needed: whose it is, and what its exits thought."""
        if entry.kind != "offload" or entry.lean:
            return
        offload = _offload_of(entry)
        self.bytes -= entry.size
        entry.lean, entry.payload = True, messages.encode(replace(offload, tensors=()))
        self.bytes += entry.size
        self.store.set_payload(seq, entry.payload)

    def answer(self, prediction: Prediction, incoming: Incoming | None = None) -> None:
        """An answer from above; a repeat, or one for a sample that is finished, is counted and not shown.

        `incoming`, if it came by itself, is acknowledged when the sample has left the store for good: until then only
        the broker has it.
        """
        entry = self._entries.get(prediction.seq) if prediction.epoch == self.store.epoch else None
        if entry is None or not entry.waits or prediction.status != "final":
            self._repeated()
            if incoming is not None:
                self._acknowledge(incoming)
            return
        if incoming is not None:
            self._from_above.setdefault(prediction.seq, []).append(incoming)
        if entry.told:
            self._repeated()
            return
        entry.told = True
        self._last_up.pop(entry.model, None)
        self._to_tell.append((prediction, messages.encode(prediction) if incoming is None else incoming.payload))

    def _repeated(self) -> None:
        self.counters["answers_repeated"] += 1
        metrics.EDGE_ANSWER_REPEATS.inc()

    def _acknowledge(self, incoming: Incoming) -> None:
        """Acknowledge after the next commit, which is hurried when many wait."""
        self._to_ack.append((self.store.commits, incoming))
        self.store.dirty |= len(self._to_ack) >= ACKS_MOST

    def overdue(self) -> list[int]:
        """Samples to ask for now, each until `asked` has come; none whose outcome is not in Kafka yet."""
        now = monotonic()
        found: list[int] = []
        for seq in self._late.pop(now):
            entry = self._entries.get(seq)
            if entry is None or entry.told or not entry.waits:
                self._late.forget(seq)
            elif entry.receipted:
                found.append(seq)
            else:
                self._late.add([seq], now)
        return found

    def asked(self, asked: Asked) -> None:
        """What the control plane said: answers as any from above; of what it does not know it is asked again."""
        for prediction in asked.answers:
            self.answer(prediction)
        if asked.answers:
            self.counters["answers_asked_for"] += len(asked.answers)
        self._late.add(asked.seqs, monotonic())  # those that are answered now are left out when their time comes

    def published(self, mid: int) -> None:
        """The sensor broker has the answer that was published under `mid`."""
        seq = self._telling.pop(mid, None)
        entry = None if seq is None else self._entries.get(seq)
        if seq is None or entry is None:
            return
        entry.told = True
        if entry.waits or entry.receipted:
            self._finish(seq)
        else:
            self.store.set_told(seq)

    def link_is_up(self) -> None:
        """The client sends again by itself what was under way; it gets its full time for a receipt."""
        now = monotonic()
        self._sent = OrderedDict.fromkeys(self._sent, now)
        self._patience_s = self.settings.receipt_timeout_s

    def tick(self) -> None:
        """Whose time is up: answer provisionally, or finish from the best exit."""
        now = monotonic()
        up = self.uplink.up.is_set()
        while self._timeouts and self._timeouts[0][0] <= now:
            _, seq = self._timeouts.popleft()
            if (entry := self._entries.get(seq)) is not None:
                self._answer_provisionally(entry, "timeout" if up else "offline")
                if entry.receipted:
                    self._make_lean(seq, entry)
        while self._expiries and self._expiries[0][0] <= now:
            _, seq = heapq.heappop(self._expiries)
            entry = self._entries.get(seq)
            if entry is not None and not entry.receipted and entry.kind == "offload":
                self._expire(seq, entry)
            if entry is not None:
                self._late.add([seq], now)
        self._bound(now)

    @property
    def tells(self) -> bool:
        """Whether there are answers that the sensor broker was given and has not taken yet."""
        return bool(self._telling)

    @property
    def waits_for_notices(self) -> bool:
        """Whether there is no going on without word of what was published: at the bounds of what is under way."""
        full = len(self._sent) + len(self._batch) >= self.settings.uplink_in_flight
        return full or len(self._telling) >= TELLING_MOST

    @property
    def _places(self) -> int:
        """How many may be in flight: one more when the oldest was sent again. Its receipt tells what is under way and
        never gets one from a link that is silent."""
        again = bool(self._sent) and self._entries[next(iter(self._sent))].again
        return self.settings.uplink_in_flight + again

    def next_due(self) -> float:
        """The monotonic time of the next thing that `tick` or `after_commit` has to do."""
        due = [queue[0][0] for queue in (self._timeouts, self._expiries) if queue]
        if self._sent and self.uplink.up.is_set():
            due.append(next(iter(self._sent.values())) + self._patience_s)
        if self._aside and self.uplink.up.is_set():
            due.append(self._aside[0][0])
        if self._batch and self.uplink.up.is_set():
            due.append(self._batch_due)
        return min(due, default=monotonic() + 1.0)

    def after_commit(self) -> None:
        """Publish what is durable now: answers on the sensor broker, outcomes to the gateway."""
        device = self.settings.device_id
        while self._to_ack and self._to_ack[0][0] < self.store.commits:
            self.uplink.ack(self._to_ack.popleft()[1])
        while self._to_tell and len(self._telling) < TELLING_MOST:
            prediction, payload = self._to_tell.popleft()
            mid = self.sensor.publish(self.topics.of(device, "answer"), payload)
            self._telling[mid] = prediction.seq if prediction.status == "final" else None
            _answers(prediction.tier, prediction.status).inc()
        if not self.uplink.up.is_set():
            return
        now = monotonic()
        self._take_back(now)
        while self._unsent and len(self._sent) + len(self._batch) < self._places:
            seq = self._unsent.popleft()
            entry = self._entries.get(seq)
            if entry is None or entry.receipted:
                continue
            if entry.kind == "prediction" and self.settings.predictions_of(entry.model).mode == "batches":
                self._gather(seq, entry, now)
            else:
                self._send(entry.kind, [seq], self._with_ttl_left(entry, now), now)
        full = len(self._sent) + len(self._batch) >= self.settings.uplink_in_flight
        if self._batch and (full or now >= self._batch_due):
            self._send_batch(now)

    def _take_back(self, now: float) -> None:
        """What has waited for its receipt for too long, or was set aside long enough, is to be sent again."""
        late = []
        while self._sent and next(iter(self._sent.values())) + self._patience_s <= now:
            seq, since = self._sent.popitem(last=False)
            if not self._set_aside(seq, since, now):
                late.append(seq)
        while self._aside and self._aside[0][0] <= now:
            _, seq = heapq.heappop(self._aside)
            if (entry := self._entries.get(seq)) is not None and entry.aside:
                entry.aside = False
                self._unsent.appendleft(seq)
        if late:
            self._unsent.extendleft(reversed(late))
            self.counters["outcomes_sent_again"] += len(late)
            self._patience_s = min(2 * self._patience_s, PATIENCE_MOST * self.settings.receipt_timeout_s)

    def _set_aside(self, seq: int, since: float, now: float) -> bool:
        """Whether an outcome that was sent at `since` and got no receipt is to wait, since others get theirs."""
        entry = self._entries[seq]
        entry.again = True
        entry.late += self._heard >= since
        entry.aside = entry.late >= LATE_MOST and self._heard >= since
        if entry.aside:
            wait_s = self.settings.receipt_timeout_s * 2 ** (entry.late - LATE_MOST + 1)
            heapq.heappush(self._aside, (now + min(wait_s, ASIDE_MOST_S), seq))
            if entry.late == LATE_MOST:
                self.counters["outcomes_set_aside"] += 1
                log.error("%s %d gets no receipt though others do: it is sent ever more rarely", entry.kind, seq)
        return entry.aside

    def _gather(self, seq: int, entry: Entry, now: float) -> None:
        """Keep a prediction for others to come; send them when they are enough."""
        up = self.settings.predictions_of(entry.model)
        if self._batch and self._batch_bytes + len(entry.payload) > self.settings.message_limit_bytes:
            self._send_batch(now)
        if not self._batch:
            self._batch_due = now + up.wait_s
        self._batch.append(seq)
        self._batch_bytes += len(entry.payload)
        if len(self._batch) >= up.count or self._batch_bytes >= up.size_bytes:
            self._send_batch(now)

    def _send_batch(self, now: float) -> None:
        waiting = [(seq, self._entries.get(seq)) for seq in self._batch]
        self._batch.clear()
        self._batch_bytes = 0
        left = [(seq, entry.payload) for seq, entry in waiting if entry is not None and not entry.receipted]
        if left:
            self._send("prediction", [seq for seq, _ in left], b"".join(payload for _, payload in left), now)

    def _send(self, kind: str, seqs: list[int], payload: bytes, now: float) -> None:
        self.uplink.publish(self.topics.of(self.settings.device_id, kind), payload)
        self._sent.update(dict.fromkeys(seqs, now))
        metrics.EDGE_BYTES_UP.inc(len(payload))
        self.counters["bytes_up"] += len(payload)

    def _with_ttl_left(self, entry: Entry, now: float) -> bytes:
        """The payload with the time that its sample has left, where that has changed."""
        waited_ms = int((now - entry.born) * 1000)
        if entry.kind != "offload" or waited_ms < TTL_GRAIN_MS:
            return entry.payload
        offload = _offload_of(entry)
        return messages.encode(replace(offload, ttl_ms=max(1, offload.ttl_ms - waited_ms)))

    def _answer_provisionally(self, entry: Entry, reason: Reason) -> None:
        if entry.kind != "offload" or entry.told or entry.told_provisionally:
            return
        entry.told_provisionally = True
        offload = _offload_of(entry)
        belief = best_belief(offload)
        if belief is not None:
            told = predict(offload, belief, "edge", "provisional", reason)
            self._to_tell.append((told, messages.encode(told)))
            self.counters[f"provisional_{reason}"] += 1

    def _expire(self, seq: int, entry: Entry) -> None:
        offload = _offload_of(entry)
        belief = best_belief(offload)
        if belief is None or entry.told:
            return
        self._answer_provisionally(entry, "timeout")
        payload = messages.encode(predict(offload, belief, "edge", "final", "expired"))
        self.bytes += len(payload) - len(entry.payload)
        entry.kind, entry.payload = "prediction", payload
        self.store.put(seq, entry.kind, payload)
        if self._sent.pop(seq, None) is not None or entry.aside:
            self._unsent.append(seq)
            entry.aside, entry.late = False, 0
        self._last_up.pop(entry.model, None)
        self.counters["expired"] += 1

    def _finish(self, seq: int) -> None:
        entry = self._entries.pop(seq)
        self._sent.pop(seq, None)
        self.bytes -= entry.size
        self.store.remove(seq)
        for incoming in self._from_above.pop(seq, ()):
            self._acknowledge(incoming)

    def _bound(self, now: float) -> None:
        """Keep to the bounds of bytes and age: the oldest go first, counted and reported."""
        dropped = []
        over = self.bytes - self.settings.outbox_bytes
        for seq, entry in self._entries.items():
            full = over > 0 and seq != next(reversed(self._entries))
            if not full and now - entry.kept <= self.settings.outbox_age_s:
                break
            dropped.append(seq)
            over -= entry.size
        for seq in dropped:
            self._last_up.pop(self._entries[seq].model, None)
            self._finish(seq)
        if dropped:
            self.counters["outbox_dropped"] += len(dropped)
            self.store.set_fact("outbox_dropped", str(self.counters["outbox_dropped"]).encode())
            metrics.EDGE_DROPPED.inc(len(dropped))
            if now >= self._say_again:
                self._say_again = now + self.settings.report_interval_s
                log.error("outbox is full: oldest outcomes dropped, %d so far", self.counters["outbox_dropped"])


def _offload_of(entry: Entry) -> Offload:
    offload = messages.decode(entry.payload, len(entry.payload))
    assert isinstance(offload, Offload)
    return offload
