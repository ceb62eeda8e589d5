"""Does a bundle keep what it promised? Its certificates, judged by what audits have said since (`betting`).

A certificate says that early exits harm at most a share ε of all samples (`sluice.wire.manifest.Certificate`). What
the audits know of that: whether the final exit, as it runs, says the same as the early exit did. Hence:

- the final exit stands for the full model of the certificate;
- a tier that audits a smaller share of its early answers than another, maybe none, leaves some unseen. So many count as
  harmless for the one who says that the promise is broken, and as harmed for the one who says that it is kept, so
  neither is believed wrongly. Shares that differ no more than chance would have it are taken for the same;
- harm by the criterion `accuracy` (wrong where the full model is right) needs true labels. Without one a disagreement
  speaks against the promise of neither side: it counts as harmless for the one, as harmed for the other;
- how large a share is audited is a setting, `CLOUD_AUDIT_SHARE`; what was seen in the database bounds it.

Answers are put in order by hour, as is worst for the one who bets: those that speak against a bet before the audits of
their hour, those that speak for it behind them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, func, select

from cloud.tables import audits, predictions
from cloud.watch.accuracy import is_right
from cloud.watch.betting import Flags, Floats, Verdict, audits_needed, judge, log_less, log_more
from cloud.watch.labelled import labelled
from sluice.wire.manifest import Certificate, Manifest, OperatingPoint

HOUR_US = 3600 * 1_000_000
State = Literal["holds", "does not hold", "too few audits"]
Times = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Watched:
    """What audits say of the certificate of one operating point.

    `state`: `does not hold` and `holds` are each wrong with a probability of at most `level`, however often one looks;
    what was decided stays, unless the share that is audited turns out to be another. `since` (UTC µs, Kafka's clock):
    of the audit that decided. `harmed` of `audits` disagree with the final exit. `wealth` (now) and `wealth_most`
    (ever) are what a bet against the promise made of 1; at `wealth_needed` = 1 / `level` it counts as broken.
    `audits_needed`: so many audits in a row that agree show that it holds, if all answers are early; fewer are needed
    where many samples go on to the final exit.
    """

    operating_point: str
    criterion: str
    epsilon: float
    level: float
    state: State
    since: int | None
    audits: int
    harmed: int
    wealth: float
    wealth_most: float
    wealth_needed: float
    audits_needed: int


def watch(connection: Connection, digest: str, manifest: Manifest, share: float) -> list[Watched]:
    """The certificates of a bundle, one for each operating point that has one.

    `share`: how many of their early answers devices and stages audit.
    """
    told, a, p = labelled(), audits.c, predictions.c
    by_criterion = select(a.operating_point, a.recorded_at, a.exit, a.label, a.final_label, told.c.told, told.c.name)
    same = (p.device_id == a.device_id) & (p.epoch == a.epoch) & (p.seq == a.seq)
    joined = audits.outerjoin(predictions, same).outerjoin(told, told.c.id == p.id)
    plain = select(a.operating_point, a.recorded_at, a.exit, a.label, a.final_label)
    begin = (p.recorded_at - p.recorded_at % HOUR_US).label("bucket")
    answers = select(p.operating_point, begin, p.tier, p.reason, func.count()).where(p.bundle == digest)
    hours = connection.execute(answers.group_by(p.operating_point, "bucket", p.tier, p.reason)).all()
    found = []
    for point in manifest.operating_points:
        if point.certificate is None:
            continue
        tiers = [point.placement[segment.index] for segment in manifest.exits]
        with_labels = point.certificate.criterion == "accuracy"
        wanted = by_criterion.select_from(joined) if with_labels else plain
        wanted = wanted.where(a.bundle == digest, a.operating_point == point.id, a.exit.between(0, len(tiers) - 1))
        rows = connection.execute(wanted.order_by(a.recorded_at, a.device_id, a.epoch, a.seq)).all()
        answered = [row[1:] for row in hours if row[0] == point.id]
        found.append(_watched(point, point.certificate, rows, answered, tiers, manifest.labels, share))
    return found


def _watched(
    point: OperatingPoint,
    certificate: Certificate,
    rows: Sequence[Any],
    answered: Sequence[Sequence[Any]],
    tiers: Sequence[str],
    classes: Sequence[str],
    share: float,
) -> Watched:
    """`rows`: audits in order; `answered`: (hour, tier, reason, count) of the answers; `tiers`: where each exit is."""
    level = certificate.delta / certificate.points
    times = np.array([row.recorded_at for row in rows], dtype=np.int64)
    disagree = np.array([row.label != row.final_label for row in rows], dtype=bool)
    harmed = disagree
    if certificate.criterion == "accuracy":
        harmed = disagree & np.array([_is_right(row, classes) for row in rows], dtype=bool)
    verdict = Verdict(None, None, 1.0, 1.0)
    if rows:
        audited = Counter(tiers[row.exit] for row in rows)
        verdict = judge(*_capitals(times, harmed, disagree, answered, audited, share, certificate.epsilon), level)
    state, at = _state(verdict)
    return Watched(
        operating_point=point.id,
        criterion=certificate.criterion,
        epsilon=certificate.epsilon,
        level=level,
        state=state,
        since=None if at is None else int(times[at]),
        audits=len(rows),
        harmed=int(disagree.sum()),
        wealth=verdict.wealth,
        wealth_most=verdict.wealth_most,
        wealth_needed=1 / level,
        audits_needed=audits_needed(certificate.epsilon, level),
    )


def _is_right(row: Any, classes: Sequence[str]) -> bool:
    """Whether the final exit is known to be right."""
    return row.told is not None and bool(is_right(row.final_label, row.told, row.name, classes))


def _capitals(
    times: Times,
    harmed: Flags,
    disagree: Flags,
    answered: Sequence[Sequence[Any]],
    audited: Mapping[str, int],
    share: float,
    epsilon: float,
) -> tuple[Floats, Floats]:
    """Logarithms of what both players have after each audit; `harmed` (n,): for certain, `disagree` (n,): perhaps;
    `audited`: how many of them each tier made."""
    early: Counter[str] = Counter()
    for _, tier, reason, n in answered:
        early[tier] += n * (reason == "exit")
    lacks, largest = _lacks(audited, early)
    answers = sum(early[tier] for tier in audited)
    seen = len(times) / answers if answers else 1.0
    most = min(1.0, max(share, seen, largest))
    unseen = [(hour, n * lacks[tier]) for hour, tier, reason, n in answered if reason == "exit" and lacks[tier]]
    not_early = [(hour, n) for hour, _, reason, n in answered if reason != "exit"]
    final = [(hour + HOUR_US, n) for hour, _, reason, n in answered if reason == "last"]
    starts = np.diff(times // HOUR_US, prepend=-1) != 0
    return (
        log_more(harmed, _before(times, not_early + unseen), most, epsilon, starts),
        log_less(
            disagree, _before(times, final), _before(times, unseen, all_of_them=True), min(share, seen), most, epsilon
        ),
    )


def _lacks(audited: Mapping[str, int], early: Mapping[str, int]) -> tuple[dict[str, float], float]:
    """(of each tier, which part of its early answers is as if nobody looked at them; the largest share audited).

    If a tier audits a share q of its answers and the largest is q*, that is 1 − q/q*. Counts are taken for what they
    would be within three standard deviations.
    """
    largest = max(((n - 3 * n**0.5) / early[tier] for tier, n in audited.items() if early.get(tier)), default=0.0)
    lacks = {}
    for tier, n in early.items():
        made = audited.get(tier, 0)
        wanted = largest * n
        lacks[tier] = max(0.0, 1 - (made + 3 * made**0.5) / wanted) if made and wanted > 0 else float(not made)
    return lacks, max(0.0, largest)


def _state(verdict: Verdict) -> tuple[State, int | None]:
    if verdict.more_at is not None:
        return "does not hold", verdict.more_at
    if verdict.less_at is not None:
        return "holds", verdict.less_at
    return "too few audits", None


def _before(times: Times, counts: Sequence[tuple[int, float]], all_of_them: bool = False) -> Floats:
    """How many samples come before each audit and after the one before: each (time, count) goes to the next audit.

    Those after the last audit are still to come, or go to the last one.
    """
    found = np.zeros(len(times))
    for time, count in counts:
        place = int(np.searchsorted(times, time))
        if place < len(times):
            found[place] += count
        elif all_of_them:
            found[-1] += count
    return found
