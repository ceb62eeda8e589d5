"""The verdict on a run: what was promised, counted from the outside. What breaks a promise becomes a line.

Some repeats are not promised away, and are counted by their cause: a broker that was killed delivers to an observer
what it had delivered; a device that was killed between telling and noting it tells again, and so does one whose link
to its sensor broker was cut before the broker's acknowledgement came (QoS 1); a device or gateway that did not hear of
a receipt sends again, which makes one more record. What a stage makes of its records is held against what it was given,
sample by sample.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from sluice.stage.audit import made_here
from sluice.wire import messages
from sluice.wire.messages import Outcome, Prediction, SampleKey, sample_of
from tests.e2e.chaos.bundles import Chain
from tests.e2e.chaos.corruption import Sent
from tests.e2e.chaos.evidence import Evidence
from tests.e2e.chaos.path import SENSOR_BROKER, WholePath
from tests.e2e.chaos.sensor import Sensor, Shown

RecordKey = tuple[SampleKey, bool]
"""A sample, or the audit of it that a stage made."""
FORGETS_S = 60.0
"""A broker that is killed so long after it took a message may have forgotten it."""
SHOWN_OF_EACH = 5
LOST_IN_RESULTS = "every sample has a final answer in the results, or was reported as dropped"
LOST_AT_DEVICE = "every sample has a final answer at its device, or was reported as dropped"


@dataclass
class Verdict:
    """Counts by name, and the lines that say which promise was broken."""

    counts: Counter[str] = field(default_factory=Counter)
    lost: set[int] = field(default_factory=set)
    """Samples without a final answer, in the results or at the device."""
    broken: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def breaks(self, promise: str, what: str) -> None:
        """One thing that should not be."""
        self.broken[promise].append(what)

    def lines(self) -> list[str]:
        """What is broken, the first few of each promise."""
        found = []
        for promise, cases in self.broken.items():
            more = f", and {len(cases) - SHOWN_OF_EACH} more" if len(cases) > SHOWN_OF_EACH else ""
            found.append(f"BROKEN {promise} ({len(cases)}): {'; '.join(cases[:SHOWN_OF_EACH])}{more}")
        return found


def judge(path: WholePath, sensor: Sensor, chains: list[Chain], evidence: Evidence, sent: list[Sent]) -> Verdict:
    """Everything but what concerns the processes themselves."""
    verdict = Verdict()
    firsts = _on_predictions(verdict, sensor, chains, evidence)
    _in_results(verdict, sensor, evidence, firsts)
    _at_observers(verdict, path, sensor, evidence, firsts)
    _at_stages(verdict, path.delivery, evidence)
    _letters(verdict, path, evidence, sent)
    reported = [said.get("counters", {}) for said in evidence.reported.values()]
    verdict.counts["dropped"] = sum(counters.get("outbox_dropped", 0) for counters in reported)
    if len(verdict.lost) <= verdict.counts["dropped"]:
        verdict.broken.pop(LOST_IN_RESULTS, None)
        verdict.broken.pop(LOST_AT_DEVICE, None)
    return verdict


def _on_predictions(
    verdict: Verdict, sensor: Sensor, chains: list[Chain], evidence: Evidence
) -> dict[SampleKey, Prediction]:
    """The first final prediction of each sample in the order of the topic; all of them made by one bundle alone."""
    by_digest = {chain.digest: chain for chain in chains}
    firsts: dict[SampleKey, Prediction] = {}
    records: Counter[RecordKey] = Counter()
    for one in evidence.predictions:
        records[_record_of(one)] += 1
        if one.status == "final" and one.audit is None:
            firsts.setdefault(sample_of(one), one)
        shown = _shown(sensor, one.source_id)
        if shown is None or shown.device != one.device_id:
            verdict.breaks("every prediction is of a sample that was shown", f"{one.device_id} {one.source_id}")
            continue
        chain = by_digest[one.bundle]
        if not chain.made(shown.image, one) or not chain.placed(one):
            verdict.counts["mixed"] += 1
            verdict.breaks("a bundle's tensors are finished by that bundle alone", _tell(one))
    verdict.counts["repeats on predictions"] = sum(records.values()) - len(records)
    sent_up = Counter(_record_of(one) for one in evidence.predictions if one.tier == "edge")
    sent_up.update(_record_of(one) for one in (*evidence.fog, *evidence.cloud) if not _by_stage(one))
    verdict.counts["of these by device or gateway"] = sum(count - 1 for count in sent_up.values())
    return firsts


def _in_results(verdict: Verdict, sensor: Sensor, evidence: Evidence, firsts: dict[SampleKey, Prediction]) -> None:
    """One row a sample, final, and the first final prediction of the topic."""
    rows = defaultdict(list)
    for row in evidence.rows:
        rows[row["source_id"]].append(row)
    for number in range(len(sensor.shown)):
        own = rows.get(f"{sensor.run_id}-{number}", [])
        final = [row for row in own if row["status"] == "final"]
        if not final:
            verdict.lost.add(number)
            verdict.breaks(LOST_IN_RESULTS, f"sample {number}")
            continue
        if len(own) > 1:
            verdict.counts["repeated"] += 1
            verdict.breaks("the results show a sample once", f"sample {number}: {len(own)} rows")
        row = final[0]
        first = firsts.get((row["device_id"], row["epoch"], row["seq"]))
        if first is None or (first.tier, first.exit, first.reason) != (row["tier"], row["exit"], row["reason"]):
            verdict.breaks("the first final prediction wins in the results", f"sample {number}")


def _at_observers(
    verdict: Verdict, path: WholePath, sensor: Sensor, evidence: Evidence, firsts: dict[SampleKey, Prediction]
) -> None:
    """One final answer a sample at the observer of its device, the first of the topic."""
    in_results = {row["source_id"] for row in evidence.rows if row["status"] == "final"}
    for number, shown in enumerate(sensor.shown):
        broker = SENSOR_BROKER[shown.device]
        if not shown.finals:
            told = f"{sensor.run_id}-{number}" in in_results
            if told and path.died_between(broker, shown.published - 1, shown.published + FORGETS_S):
                verdict.counts["forgotten by a killed sensor broker"] += 1
            else:
                verdict.lost.add(number)
                verdict.breaks(LOST_AT_DEVICE, f"sample {number} of {shown.device}")
            continue
        first = shown.finals[0]
        for other in shown.finals[1:]:
            same = other.payload == first.payload
            if same and other.generation != first.generation:
                verdict.counts["delivered again by a broker"] += 1
            elif same and path.died_between(shown.device, first.at - 1, other.at):
                verdict.counts["told again by a killed device"] += 1
            elif same and path.cut_between(f"{shown.device}~{broker}", first.at - 1, other.at):
                verdict.counts["told again after a cut"] += 1
            else:
                verdict.counts["repeated"] += 1
                kind = "the same" if same else "another"
                verdict.breaks(
                    "a device tells a sample once",
                    f"sample {number} of {shown.device}: {kind} after {other.at - first.at:.2f} s",
                )
        told_first = messages.decode(first.payload)
        assert isinstance(told_first, Prediction)
        winner = firsts.get(sample_of(told_first))
        if winner is not None and _content(winner) != _content(told_first):
            verdict.breaks(
                "a device tells the first final prediction of the topic",
                f"sample {number}: told {_tell(told_first)}, first {_tell(winner)}",
            )


def _at_stages(verdict: Verdict, delivery: str, evidence: Evidence) -> None:
    """What a stage made of each sample against how often it was given it."""
    into_fog = Counter(_record_of(one) for one in evidence.fog)
    into_cloud = Counter(_record_of(one) for one in evidence.cloud)
    answered = Counter(_record_of(one) for one in evidence.predictions if one.tier == "fog")
    audited = Counter(_record_of(one) for one in evidence.cloud if made_here(one))
    from_fog = answered + Counter(_record_of(one) for one in evidence.cloud if _by_stage(one) and not made_here(one))
    from_cloud = Counter(_record_of(one) for one in evidence.predictions if one.tier == "cloud")
    verdict.counts["audits by stages"] = sum(audited.values())
    for (sample, _), count in audited.items():
        if count > answered[sample, False]:
            verdict.breaks("a stage audits what it answers", f"{sample}: {answered[sample, False]} and {count} audits")
    for tier, given, made in (("fog", into_fog, from_fog), ("cloud", into_cloud, from_cloud)):
        for record in given.keys() | made.keys():
            sample, more = record[0], made[record] - given[record]
            if more < 0:
                verdict.breaks("a stage makes something of every record", f"{tier}: {sample} {more}")
            if more > 0:
                verdict.counts["by stages"] += more
                if delivery == "exactly-once":
                    verdict.breaks("exactly once: a stage makes one outcome of a record", f"{tier}: {sample} +{more}")


def _letters(verdict: Verdict, path: WholePath, evidence: Evidence, sent: list[Sent]) -> None:
    """A dead letter for each broken message, and for nothing else."""
    found: Counter[tuple[str, bytes]] = Counter()
    known = {(one.origin, one.begins) for one in sent}
    for origin, content, reason in evidence.letters:
        key = next((k for k in known if k[0] == origin and content.startswith(k[1])), None)
        if key is None:
            verdict.breaks("nothing but broken messages becomes a dead letter", f"{origin}: {reason[:120]}")
        else:
            found[key] += 1
    verdict.counts["dead letters again"] = sum(found.values()) - len(found)
    for one in sent:
        if not one.letter:
            verdict.counts["held"] += (one.origin, one.begins) not in found
        elif (one.origin, one.begins) not in found:
            if one.broker != "kafka" and path.died_between(one.broker, one.at - 1, one.at + FORGETS_S):
                verdict.counts["broken ones forgotten by a killed broker"] += 1
            else:
                verdict.breaks("every broken message becomes a dead letter", f"{one.form} on {one.origin}")


def _shown(sensor: Sensor, source_id: str | None) -> Shown | None:
    run, _, number = (source_id or "").rpartition("-")
    return sensor.shown[int(number)] if run == sensor.run_id and int(number) < len(sensor.shown) else None


def _record_of(one: Outcome) -> RecordKey:
    return sample_of(one), made_here(one)


def _by_stage(offload: messages.Offload) -> bool:
    """Whether the fog stage made it: the only one that sends on what comes after segment 1."""
    return offload.next_segment == 2


def _content(prediction: Prediction) -> tuple[object, ...]:
    return (prediction.bundle, prediction.tier, prediction.exit, prediction.label, prediction.reason)


def _tell(one: Prediction) -> str:
    where = f"{one.bundle[:6]} {one.operating_point} exit {one.exit} at {one.tier} ({one.status}, {one.reason})"
    return f"{one.device_id} {one.seq} ({one.source_id}): {where}"
