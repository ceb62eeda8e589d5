"""What runs, by model, and what the device remembers of it over a restart.

A run that is new is **on trial**, from before it is loaded until it has worked on `PROVEN_SAMPLES` samples. Starts of
the agent in that time are counted, each made durable before anything is loaded: after `ENDS_MOST` ends that nobody
ordered the model goes back to the run before. Meanwhile, and until a whole window of its bounds was judged, the run
before is held ready in memory: a sample that the new one fails on is its to answer, and going back takes no time.

Everything here belongs to the main loop's thread. What comes of a change becomes durable with the next commit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pydantic import TypeAdapter, ValidationError

from edge_agent.store import Store
from edge_agent.watch import Watch
from sluice.stage.step import Stage, Work
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import OperatingPoint, TensorSpec, first_cause
from sluice.wire.names import Name
from sluice.wire.state import Bounds, Part, Run, Running

log = logging.getLogger(__name__)

ENDS_MOST = 3
"""Times that the agent may end during a trial before the model goes back to what ran before."""
_FACT = "runs"


class Kept(Part):
    """What is durable of one model."""

    run: Run | None = None
    """What runs; None: nothing could yet."""
    before: Run | None = None
    """What ran before, and is still on the device."""
    coming: Run | None = None
    """What is being loaded."""
    on_trial: bool = False
    """`run` is not proven."""
    starts: int = 0
    """Starts of the agent since `coming` or `run` is on trial."""
    looked_at: int = 0
    """The last revision that was decided on: it runs, was refused, or was gone back from. Never tried again."""
    since_us: int = 0
    error: str | None = None
    """Why `looked_at` was refused or gone back from."""


_ALL = TypeAdapter(dict[Name, Kept])


def read_kept(data: bytes) -> dict[str, Kept]:
    """What was kept of each model, by its name; `PermanentError` when it cannot be read."""
    try:
        return _ALL.validate_json(data)
    except ValidationError as error:
        raise PermanentError(f"what ran before cannot be read: {first_cause(error)}") from error


@dataclass(slots=True)
class Model:
    """One model: what is durable of it, and what of it is in memory."""

    kept: Kept = field(default_factory=Kept)
    stage: Stage | None = None
    ready: Stage | None = None
    """The stage of the run before, held while the new one is young."""
    watch: Watch | None = None
    leaving: str | None = None
    """Why it is to go back, while the run before is being loaded."""

    @property
    def point(self) -> OperatingPoint:
        """The operating point that it runs at."""
        assert self.stage is not None and self.kept.run is not None
        return self.stage.route(self.kept.run.operating_point).point

    @property
    def revision(self) -> int:
        """The revision that brought what runs."""
        return self.kept.run.revision if self.kept.run else 0

    def note(self, *, failed: bool = False, exited: bool = False, ms: float = 0.0) -> None:
        """A sample was worked on, or could not be."""
        if self.watch is not None:
            self.watch.note(failed=failed, exited=exited, ms=ms)

    def for_before(self, work: Work) -> Work | None:
        """`work` as the run before takes it; None when that is not at hand, or takes another input."""
        if self.ready is None or self.kept.before is None:
            return None
        route = self.ready.route(self.kept.before.operating_point)
        taken = {spec.name: (np.dtype(spec.dtype), spec.shape) for spec in route.inputs}
        if {name: (tensor.dtype, tensor.shape) for name, tensor in work.tensors.items()} != taken:
            return None
        offload = replace(
            work.offload,
            bundle=self.ready.digest,
            operating_point=route.point.id,
            tier=route.point.placement[0],
        )
        return Work(offload, work.tensors)


class Models:
    """All models of the device. `changed` says that there is something to report."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._by_name: dict[str, Model] = {}
        self.changed = False
        try:
            kept = read_kept(store.fact(_FACT) or b"{}")
            self._by_name = {name: Model(found) for name, found in kept.items()}
        except PermanentError as error:
            log.error("%s", error)

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Model:
        return self._by_name[name]

    @property
    def any_runs(self) -> bool:
        """Whether there is a model that runs."""
        return any(model.stage is not None for model in self._by_name.values())

    def running(self) -> Iterator[tuple[str, Model]]:
        """The models that run, by name."""
        return ((name, model) for name, model in self._by_name.items() if model.stage is not None)

    def inputs(self) -> dict[str, Sequence[TensorSpec]]:
        """What each model that runs takes in."""
        return {name: model.stage.manifest.inputs for name, model in self.running() if model.stage is not None}

    def loaded(self) -> dict[str, Stage]:
        """The stages in memory, by digest."""
        stages = [stage for model in self._by_name.values() for stage in (model.ready, model.stage)]
        return {stage.digest: stage for stage in stages if stage is not None}

    def digests(self) -> set[str]:
        """The bundles that are needed on the device."""
        kept = [model.kept for model in self._by_name.values()]
        return {run.bundle for one in kept for run in (one.run, one.before, one.coming) if run is not None}

    def told(self) -> tuple[Running, ...]:
        """What is reported of each."""
        return tuple(
            Running(
                model=name,
                bundle=kept.run.bundle if kept.run else None,
                operating_point=kept.run.operating_point if kept.run else None,
                since_us=kept.since_us,
                revision=kept.run.revision if kept.run else 0,
                error=kept.error,
            )
            for name, kept in ((name, model.kept) for name, model in self._by_name.items())
        )

    def take_up(self, load: Callable[[Run], Stage], commit: Callable[[], None]) -> bool:
        """At the start: run what ran before. False: something is damaged, and has to be looked at again."""
        for name, model in self._by_name.items():
            if model.kept.coming is not None or model.kept.on_trial:
                self._keep(model, starts=model.kept.starts + 1)
                self._count_starts(name, model)
        commit()  # a start counts before anything is loaded that may end the agent
        whole = True
        for name, model in self._by_name.items():
            kept = model.kept
            if kept.run is not None:
                whole &= self._load(name, model, kept.run, kept.before, load)
        return whole

    def _count_starts(self, name: str, model: Model) -> None:
        kept = model.kept
        if kept.starts < ENDS_MOST:
            return
        suspect = kept.coming or kept.run
        assert suspect is not None
        reason = f"the agent ended {kept.starts} times while it was on trial"
        if kept.coming is None:
            self._back(name, model, reason)
        else:
            self._keep(model, coming=None, starts=0, looked_at=suspect.revision)
            self._fault(name, model, f"revision {suspect.revision} refused: {reason}")

    def _load(self, name: str, model: Model, run: Run, before: Run | None, load: Callable[[Run], Stage]) -> bool:
        try:
            model.stage = load(run)
        except PermanentError as error:
            self._fault(name, model, f"what ran before cannot be taken up: {error}")
            self._keep(model, run=before, before=None, on_trial=False, looked_at=run.revision - 1)
            if before is not None:
                self._load(name, model, before, None, load)
            return False
        self._watch(model)
        if model.kept.on_trial and before is not None:
            model.ready = self._loaded_or_none(model.stage, before, load)
        return True

    def _loaded_or_none(self, stage: Stage, run: Run, load: Callable[[Run], Stage]) -> Stage | None:
        if run.bundle == stage.digest:
            return stage
        try:
            return load(run)
        except PermanentError as error:
            log.warning("the run before cannot be held ready: %s", error)
            return None

    def take_off(self, wanted: set[str]) -> None:
        """Run no other models than those."""
        for name in self._by_name.keys() - wanted:
            del self._by_name[name]
            log.info("runs %s no longer", name, extra={"model": name})
            self._save()

    def new_in(self, runs: list[Run]) -> list[Run]:
        """Those among `runs` that were not decided on yet."""
        return [run for run in runs if run.model not in self or run.revision > self._by_name[run.model].kept.looked_at]

    def try_out(self, run: Run) -> None:
        """`run` is on the device and about to be loaded: its trial begins, or goes on after a restart."""
        model = self._by_name.setdefault(run.model, Model())
        again = model.kept.coming is not None and model.kept.coming.revision == run.revision
        self._keep(model, coming=run, starts=model.kept.starts if again else 0)

    def switch(self, run: Run, stage: Stage) -> None:
        """`run` is what runs from now on."""
        model = self._by_name.setdefault(run.model, Model())
        kept, old = model.kept, model.stage
        before, ready = kept.run, old
        if kept.on_trial and kept.before is not None:  # rather to what was proven
            before, ready = kept.before, model.ready
        model.stage, model.ready, model.leaving = stage, ready if before else None, None
        self._keep(
            model,
            run=run,
            before=before,
            coming=None,
            on_trial=True,
            looked_at=run.revision,
            since_us=time.time_ns() // 1000,
            error=None,
        )
        self._watch(model)
        log.info(
            "runs bundle %s… at operating point %s", run.bundle[:12], run.operating_point, extra={"model": run.model}
        )

    def refuse(self, run: Run, reason: str) -> str:
        """`run` cannot be run; what runs goes on. Returns what is to be reported."""
        model = self._by_name.setdefault(run.model, Model())
        self._keep(model, coming=None, starts=0, looked_at=run.revision)
        return self._fault(run.model, model, f"revision {run.revision} refused: {reason}")

    def go_back(self, name: str, stage: Stage) -> str:
        """The run before is what runs from now on; `stage` is its. Returns what is to be reported."""
        model = self._by_name[name]
        said = self._back(name, model, model.leaving or "")
        model.stage, model.ready, model.watch, model.leaving = stage, None, None, None
        return said

    def stay(self, name: str, reason: str) -> str:
        """The run before cannot be had, so what runs goes on. Returns what is to be reported."""
        model = self._by_name[name]
        self._keep(model, before=None)
        return self._fault(name, model, f"out of bounds: {model.leaving}; cannot go back: {reason}")

    def _back(self, name: str, model: Model, reason: str) -> str:
        gone, before = model.kept.run, model.kept.before
        assert gone is not None
        self._keep(model, run=before, before=None, on_trial=False, starts=0, since_us=time.time_ns() // 1000)
        where = f"back at that of revision {before.revision}" if before else "nothing to go back to"
        return self._fault(name, model, f"went back from revision {gone.revision}: {reason}; {where}")

    def judge(self, name: str) -> str | None:
        """After samples were noted: end the trial or the watch when it is time. Returns why it is to go back, once."""
        model = self._by_name[name]
        watch = model.watch
        if watch is None:
            return None
        if model.leaving is None and (reason := watch.left()) is not None:
            model.leaving = reason
            if model.kept.before is not None:
                return reason
            self._fault(name, model, f"out of bounds: {reason}; nothing to go back to")
        if model.leaving is not None and model.kept.before is not None:
            return None
        if watch.proven and model.kept.on_trial:
            self._keep(model, on_trial=False, starts=0)
        if watch.full or watch.over:
            model.ready = None
        if watch.over and not model.kept.on_trial:
            model.watch = None
        return None

    def stop(self) -> None:
        """The agent ends because it was told to: that says nothing against anyone on trial."""
        for model in self._by_name.values():
            if model.kept.starts:
                self._keep(model, starts=0)

    def _watch(self, model: Model) -> None:
        kept = model.kept
        model.watch = Watch((kept.run and kept.run.bounds) or Bounds())

    def _fault(self, name: str, model: Model, said: str) -> str:
        log.error("%s: %s", name, said, extra={"model": name})
        self._keep(model, error=said[:1000])
        return said

    def _keep(self, model: Model, **change: object) -> None:
        model.kept = model.kept.model_copy(update=change)
        self._save()

    def _save(self) -> None:
        everything = {name: model.kept for name, model in self._by_name.items()}
        self._store.set_fact(_FACT, _ALL.dump_json(everything))
        self._store.dirty = self.changed = True
