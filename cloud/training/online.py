"""Learning on as a job: from a live stream, record by record, for a while or for ever.

Each batch is answered first (`prequential`), then learnt from together with some of the past (`replay`). A rise of the
error is told (`drift`). Some blocks of the stream are held back (`held`): half of them judge whether what was learnt is
better than what runs (`contest`), half are left for the partitioner to certify on. When the learner has won, it is
proposed: the service makes a version of it, and what runs is from then on that.

A record without a label is answered and counted, no more. One checkpoint has all that the future hangs on, and the
offsets up to which it was used: a job that is run again in its folder begins there, so each record is used once.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter

from cloud.training import checkpoint
from cloud.training.contest import Contest
from cloud.training.drift import LATE, Change, Drift
from cloud.training.held import CERTIFY, JUDGE, TRAIN, Certifying, Rule
from cloud.training.job import MODEL, check_data
from cloud.training.learner import Learner, losses
from cloud.training.prequential import Prequential
from cloud.training.replay import Buffer
from partitioner.anatomy.exits import anatomy
from partitioner.anatomy.models import load_model
from partitioner.events import Events, read_job
from sluice.doors.kafka import TopicPartition
from sluice.streams.fed import Fed
from sluice.streams.reader import Batch
from sluice.streams.samples import NONE, Array, Labels, parse_config
from sluice.wire.online import OnlineSettings
from sluice.wire.slices import parse_slice
from sluice.wire.state import Announcement
from sluice.wire.thinning import thin

FINISH = "finish"
"""The file in the job's folder by which it is told to come to an end."""
PROGRESS_S = 2.0
LOOK_S = 1.0
"""Time between two looks at how the learner does on the judging records that are kept."""
JUDGED_KEPT = 500
"""Judging records that are kept: the learner has to be no worse on them at the moment when it is proposed."""
BETTER = 0.005
"""So much the accuracy of late has to rise for a checkpoint of its own."""
PART_OF_TIME = 0.05
"""Share of the time that checkpoints may take."""
BEFORE = -1
"""The number of a record in the buffer that is older than the stream."""
DRIFTS_KEPT = 100
CLASSES_TOLD = 50


class OnlineJob(BaseModel):
    """Learn on with this model from the topics that it is fed with, whose records are like those of that stream."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["online"]
    model: dict[str, str]
    stream: Announcement
    trained_on: list[str] = []
    """Slices that the model knows already; nothing in them is held back."""
    settings: OnlineSettings = OnlineSettings()


def work(folder: Path, events: Events, descriptor: int | None) -> dict[str, Any]:
    """Learn on in `folder` from the live stream that comes through `descriptor`, until it is over.

    Returns the last `metrics`, and how many records there were of which kind, `updates`, `drifts`, `candidates`.
    """
    assert descriptor is not None
    online = Online(folder, events)
    fed = Fed(descriptor)
    fed.begin(online.ends, online.wanted)
    if online.wanted is not None:
        online.remember(fed)
    batch = None
    for batch in () if online.over else fed:
        online.take(batch, fed)
        if online.due:
            online.keep()
            fed.used(batch)
        if online.over:
            break
    online.keep()
    if batch is not None:
        fed.used(batch)
    fed.close()
    return online.finish()


@dataclass(slots=True)
class Standing:
    """What a checkpoint says beside its arrays."""

    ends: list[list[Any]]
    """[topic, partition, offset] up to which each topic partition was used."""
    records: int = 0
    labelled: int = 0
    unlabelled: int = 0
    bad: int = 0
    first_bad: str | None = None
    lost: int = 0
    """To retention, before they were read."""
    answered: list[int] = field(default_factory=list)
    """Of records without a label, how many each class."""
    updates: int = 0
    since: int = 0
    """Updates since the learning rate began anew."""
    remembered: dict[str, Any] = field(default_factory=dict)
    """What the buffer began with, of what the model was trained on (`sluice.streams.past.Found`)."""
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    drifts: list[dict[str, Any]] = field(default_factory=list)
    """The last ones."""
    drifted: int = 0
    doubted: int | None = None
    """After a drift, for a while: what came before this record may have to be dropped."""
    doubted_at: int = 0
    best: float = 0.0
    """The highest accuracy of late since the last drift."""
    judged: int = 0
    candidate: dict[str, Any] | None = None
    """The last one, as it was told; what runs is that."""
    certifying: list[list[Any]] = field(default_factory=list)
    """Topic partitions, in the order of their numbers."""


class Online:
    """Where the job is, and what it is made of."""

    def __init__(self, folder: Path, events: Events) -> None:
        job = read_job(folder, TypeAdapter(OnlineJob))
        self.settings = settings = job.settings
        self._folder, self._events, self._stream = folder, events, job.stream
        keras.utils.set_random_seed(settings.seed)
        model, running = (load_model(job.model, folder) for _ in range(2))
        self._anatomy = found = anatomy(model, task="classification")
        self.learner = Learner(model, found, settings)
        self.running = Learner(running, anatomy(running, task="classification"), settings, learns=False)
        self.running.weights = self.learner.weights
        config = parse_config(job.stream.config)
        dtype = np.uint8 if config.dtype == "uint8" else np.float32
        balanced = settings.buffer_kind == "balanced"
        self.buffer = Buffer(settings.buffer, config.shape, dtype, found.classes, balanced=balanced)
        self.prequential = Prequential(self.learner.exits, settings.window)
        self.drift = Drift(settings.drift_delta)
        self.rule = Rule(settings.block, settings.held_back, job.trained_on)
        self.contest = Contest()
        self.certifying = Certifying(settings.certifying_most)
        self._judged_x = np.empty((0, *config.shape), dtype)
        self._judged_y, self._judged_born = np.empty(0, np.int64), np.empty(0, np.int64)
        self._best: list[Any] = []
        self.standing = Standing(_first(job) if settings.begin == "after" else [], answered=[0] * found.classes)
        self._restored = self._restore()
        self._begun, self._seconds, self._bad, self._lost = (
            time.monotonic(),
            self.standing.seconds,
            self.standing.bad,
            self.standing.lost,
        )
        self._lag: int | None = None
        self._dirty = self._urgent = False
        self._keep_at = self._begun + settings.checkpoint_s
        self._tell_at = self._progress_at = self._look_at = self._best_at = 0.0
        self._told = 0
        for entry in self.standing.history:
            events.say("metrics", **entry)
        self._propose_again()

    @property
    def ends(self) -> dict[TopicPartition, int]:
        """Up to where each topic partition was used."""
        return {(topic, partition): offset for topic, partition, offset in self.standing.ends}

    @property
    def wanted(self) -> int | None:
        """Samples of what the model was trained on that the buffer is to begin with; None: it has or needs none."""
        if self._restored or not (self.settings.replay_trained_on and self.settings.replay and self.buffer.size):
            return None
        return self.buffer.size

    def remember(self, fed: Fed) -> None:
        """Begin the buffer with them. They are older than any record of the stream, and counted nowhere else."""
        random = np.random.Generator(np.random.PCG64(self.settings.seed))
        for batch in fed.past():
            known = batch.y != NONE
            self.buffer.add(batch.x[known], batch.y[known], np.full(int(known.sum()), BEFORE, np.int64), random)
        self.standing.remembered = found = fed.found | {"kept": self.buffer.count}
        if found["records"] or found["reason"]:
            print(
                f"of {found['records']} records that the model was trained on {found['gone']} are gone from Kafka; "
                f"{found['kept']} are replayed" + (f" ({found['reason']})" if found["reason"] else ""),
                flush=True,
            )

    @property
    def over(self) -> bool:
        """Whether there were enough records, it took long enough, or it was told to come to an end."""
        records, seconds = self.settings.records, self.settings.seconds
        if (self._folder / FINISH).exists():
            return True
        if records is not None and self.standing.records >= records:
            return True
        return seconds is not None and self._now() >= seconds

    @property
    def due(self) -> bool:
        """Whether a checkpoint is."""
        return self._dirty and (self._urgent or time.monotonic() >= self._keep_at)

    def take(self, batch: Batch, fed: Fed) -> None:
        """Use one batch: answer it, learn from it, and tell, now and then, how it goes."""
        standing = self.standing
        standing.bad, standing.lost = self._bad + fed.bad, self._lost + fed.lost
        standing.first_bad = standing.first_bad or fed.first_bad
        self._lag = fed.lag
        assert batch.places is not None and batch.offsets is not None
        places = list(batch.ends)
        if len(batch.y):
            check_data(self._anatomy, batch.x, batch.y, self._stream.stream_id)
            parts = self.rule.parts(places, batch.places, batch.offsets)
            for at in range(0, len(batch.y), self.settings.batch):
                rows = slice(at, at + self.settings.batch)
                where = (places, batch.places[rows], batch.offsets[rows])
                self._step(batch.x[rows], batch.y[rows], parts[rows], where)
        before = self.ends
        after = before | dict(batch.ends)
        self._dirty |= after != before
        standing.ends = [[topic, partition, offset] for (topic, partition), offset in after.items()]
        standing.records += len(batch.y)
        self._look()

    def _step(self, x: Array, y: Labels, parts: Any, where: tuple[list[TopicPartition], Labels, Labels]) -> None:
        """One update at most: the records as they came, (n,) each."""
        answers = self.learner.answers(x)
        standing, exits, known = self.standing, self.learner.exits, y != NONE
        final = answers[exits[-1]].argmax(axis=-1)
        if not known.all():
            standing.unlabelled += int((~known).sum())
            counts = np.bincount(final[~known], minlength=len(standing.answered))
            standing.answered = (np.array(standing.answered) + counts).tolist()
        if not known.any():
            return
        right = np.stack([answers[name].argmax(axis=-1) == y for name in exits], axis=1)
        loss = np.stack([losses(answers[name], y) for name in exits], axis=1)
        self.prequential.take(right[known], loss[known], y[known])
        born = standing.labelled + np.cumsum(known) - 1
        standing.labelled += int(known.sum())
        self._judge(x, y, born, right[:, -1], known & (parts == JUDGE))
        these = known & (parts == CERTIFY)
        places, partitions, offsets = where
        self.certifying.add(places, partitions[these], offsets[these], y[these], born[these])
        self._learn(x, y, born, known & (parts == TRAIN))
        if self.settings.drift is not None:
            change = self.drift.take((~right[known, -1]).astype(int).tolist())
            if change is not None:
                self._drifted(change)
            self._doubt()

    def _judge(self, x: Array, y: Labels, born: Labels, right: Any, these: Any) -> None:
        if not these.any():
            return
        self.contest.take(right[these], self.running.right(x[these], y[these]))
        self._judged_x = np.concatenate([self._judged_x, x[these]])[-JUDGED_KEPT:]
        self._judged_y = np.concatenate([self._judged_y, y[these]])[-JUDGED_KEPT:]
        self._judged_born = np.concatenate([self._judged_born, born[these]])[-JUDGED_KEPT:]

    def _learn(self, x: Array, y: Labels, born: Labels, these: Any) -> None:
        if not these.any():
            return
        random = np.random.Generator(np.random.PCG64([self.settings.seed, self.learner.updates]))
        old_x, old_y = self.buffer.draw(self.settings.replay, random)
        self.learner.learn(np.concatenate([x[these], old_x]), np.concatenate([y[these], old_y]))
        self.buffer.add(x[these], y[these], born[these], random)

    def _drifted(self, change: Change) -> None:
        standing = self.standing
        told = asdict(change) | {"at": standing.labelled}
        standing.drifts = [*standing.drifts, told][-DRIFTS_KEPT:]
        standing.drifted += 1
        if self.settings.on_drift in ("both", "rate"):
            self.learner.since = 0
        if self.settings.on_drift in ("both", "recent"):
            standing.doubted, standing.doubted_at = standing.labelled - change.width, standing.labelled
        self._tell(drift=told)
        self.prequential.forget()
        standing.best, self._best = 0.0, []

    def _doubt(self) -> None:
        """Drop what was kept from before a drift, if it turns out to be a bad one."""
        standing, before = self.standing, self.standing.doubted
        if before is None:
            return
        if self.drift.late > self.settings.drop_above:
            self.buffer.forget(before)
            self.certifying.forget(before)
            kept = self._judged_born >= before
            self._judged_x, self._judged_y = self._judged_x[kept], self._judged_y[kept]
            self._judged_born = self._judged_born[kept]
            self._tell(dropped=before)
            standing.doubted = None
        elif standing.labelled >= standing.doubted_at + 2 * LATE:
            standing.doubted = None

    def _look(self) -> None:
        """What is to be told, kept or proposed by now."""
        now, standing = time.monotonic(), self.standing
        if now >= self._progress_at:
            self._events.progress("learning", standing.records, self.settings.records or 0)
            self._progress_at = now + PROGRESS_S
        if now >= self._tell_at and standing.labelled + standing.unlabelled:
            self._tell()
        late = self.prequential.accuracy
        if now >= self._best_at and self.prequential.full and late > standing.best + BETTER:
            standing.best, self._best = late, self.learner.weights
            self._urgent, self._best_at = True, now + LOOK_S
        self._propose()

    def _tell(self, **more: Any) -> None:
        standing = self.standing
        entry: dict[str, Any] = {
            "records": standing.records,
            "labelled": standing.labelled,
            "unlabelled": standing.unlabelled,
            "bad": standing.bad,
            "lost": standing.lost,
            "lag": self._lag,
            "updates": self.learner.updates,
            "learning_rate": self.learner.rate,
            "seconds": round(self._now(), 3),
            "drifts": standing.drifted,
            "judged": self.contest.judged,
            "wealth": round(self.contest.wealth, 3),
            "certifying": len(self.certifying),
            "remembered": self.standing.remembered.get("kept", 0),
            "metrics": self.prequential.metrics(),
            **more,
        }
        standing.history.append(entry)
        thin(standing.history)
        self._events.say("metrics", **entry)
        self._tell_at = time.monotonic() + self.settings.metrics_s

    def _propose(self) -> None:
        """Propose the learner as it is now, if it is better for sure, and a partitioner can work with what is held
        back; else it waits."""
        settings, last = self.settings, self.standing.candidate
        if self.contest.judged < settings.judged_least or not self.contest.is_won(settings.confidence):
            return
        if last is not None and self._now() < last["seconds"] + settings.candidate_every_s:
            return
        if self.certifying.lacks(settings.certifying_least, self.prequential.seen(self._anatomy.classes)):
            return
        if not len(self._judged_y) or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_S
        learner = float(self.learner.right(self._judged_x, self._judged_y).mean())
        running = float(self.running.right(self._judged_x, self._judged_y).mean())
        if learner < running:
            return
        self.standing.candidate = {
            "number": 1 if last is None else last["number"] + 1,
            "slices": self.certifying.slices(),
            "seconds": self._now(),
            "told": {
                "records": self.standing.records,
                "judged": self.contest.judged,
                "wealth": round(self.contest.wealth, 3),
                "accuracy": round(learner, 6),
                "accuracy_before": round(running, 6),
            },
        }
        self.running.weights = self.learner.weights
        self.contest = Contest()
        self._dirty = self._urgent = True

    def _propose_again(self) -> None:
        """Tell the last candidate, if this run has not; the service knows one that it was told twice by its number."""
        last = self.standing.candidate
        if last is None or last["number"] == self._told:
            return
        self._told = last["number"]
        self.running.model.save(self._folder / f"candidate-{self._told}.keras")
        (self._folder / f"candidate-{self._told - 2}.keras").unlink(missing_ok=True)
        self._events.say("candidate", number=self._told, slices=last["slices"], told=last["told"])

    def keep(self) -> None:
        """Write a checkpoint."""
        begun, standing = time.monotonic(), self.standing
        standing.seconds, standing.judged = self._now(), self.contest.judged
        standing.updates, standing.since = self.learner.updates, self.learner.since
        places, rows = self.certifying.state()
        standing.certifying = [list(place) for place in places]
        arrays = {f"s{i}": value for i, value in enumerate(self.learner.state)}
        arrays |= {f"b{i}": value for i, value in enumerate(self._best)}
        arrays |= {f"r{i}": value for i, value in enumerate(self.running.weights)}
        arrays |= {f"buffer_{name}": value for name, value in self.buffer.arrays().items()}
        arrays |= {f"window_{name}": value for name, value in self.prequential.arrays().items()}
        arrays |= {
            "judged_x": self._judged_x,
            "judged_y": self._judged_y,
            "judged_born": self._judged_born,
            "certifying": rows,
            "won": np.array(self.contest.won, bool),
            "errors": np.array(self.drift.errors, np.int8),
        }
        checkpoint.write(self._folder, asdict(standing), arrays)
        ended = time.monotonic()
        self._keep_at = ended + max(self.settings.checkpoint_s, (ended - begun) / PART_OF_TIME)
        self._dirty = self._urgent = False
        self._propose_again()

    def _restore(self) -> bool:
        """Go on from the checkpoint, if there is one of this model."""
        found = checkpoint.read(self._folder)
        if found is None:
            return False
        said, arrays = found
        state = _in_order(arrays, "s")
        if [value.shape for value in state] != [value.shape for value in self.learner.state]:
            return False
        self.standing = standing = Standing(**said)
        self.learner.state = state
        self.learner.updates, self.learner.since = standing.updates, standing.since
        self.running.weights = _in_order(arrays, "r")
        self._best = _in_order(arrays, "b")
        self.buffer.restore(_named(arrays, "buffer_"))
        self.prequential.restore(_named(arrays, "window_"))
        self._judged_x, self._judged_y = arrays["judged_x"], arrays["judged_y"]
        self._judged_born = arrays["judged_born"]
        self.certifying.restore(standing.certifying, arrays["certifying"])
        self.contest = Contest(arrays["won"], standing.judged)
        self.drift = Drift(self.settings.drift_delta, arrays["errors"].tolist())
        return True

    def finish(self) -> dict[str, Any]:
        """Save the model that is the result; what a job reports."""
        standing = self.standing
        if self.settings.keep == "best" and self._best:
            self.learner.weights = self._best
        self.learner.model.save(self._folder / MODEL)
        if standing.labelled + standing.unlabelled:
            self._tell()
        names = ("records", "labelled", "unlabelled", "bad", "first_bad", "lost")
        result = {name: getattr(standing, name) for name in names} | {"drifts": standing.drifted}
        if len(standing.answered) <= CLASSES_TOLD:
            result["answered"] = standing.answered
        return result | {
            "remembered": standing.remembered,
            "metrics": self.prequential.metrics(),
            "updates": self.learner.updates,
            "candidates": 0 if standing.candidate is None else standing.candidate["number"],
            "seconds": round(self._now(), 3),
        }

    def _now(self) -> float:
        """Seconds of learning, in all runs of the job."""
        return self._seconds + time.monotonic() - self._begun


def _first(job: OnlineJob) -> list[list[Any]]:
    """Where what came after the announced stream begins."""
    ends: dict[TopicPartition, int] = {}
    for piece in map(parse_slice, job.stream.slices):
        place = (piece.topic, piece.partition)
        ends[place] = max(ends.get(place, 0), piece.end)
    return [[topic, partition, offset] for (topic, partition), offset in ends.items()]


def _in_order(arrays: dict[str, Any], letter: str) -> list[Any]:
    count = sum(1 for name in arrays if name[0] == letter and name[1:].isdigit())
    return [arrays[f"{letter}{i}"] for i in range(count)]


def _named(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
