"""Updates: from a desired state to stages that are proven and ready, off the main loop.

A thread fetches what is missing and checks digests and the signature (`Fetched`). The main loop then makes durable that
these runs are on trial, since loading them may end the whole agent, and only then has them loaded and proven on their
golden samples (`Prepared`, one for each run, then `Looked`). What fails leaves the running bundle alone. The same
thread loads the run before when a new one has left its bounds (`Ready`), removes the bundles that nobody needs, and
measures segments when it is asked to, with interpreters of its own. Going back comes first, then an order.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from edge_agent.control_plane import ControlPlane
from edge_agent.intake import check_fed
from edge_agent.settings import EdgeSettings
from sluice.daemon.life import Backoff
from sluice.stage.profile import GivenUp, measure
from sluice.stage.segment import load_segments
from sluice.stage.step import Stage, loaded_by
from sluice.wire import bundle as bundles
from sluice.wire.codec import CODECS
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.manifest import Manifest
from sluice.wire.profile import Profile
from sluice.wire.state import Desired, Run

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Order:
    """The runs of a desired state that are new to the device, each with the revision that brought it.

    `loaded`: stages that are in memory, by digest: another operating point of one of them needs nothing else.
    """

    desired: Desired
    runs: tuple[Run, ...]
    loaded: Mapping[str, Stage]
    fetched: bool = False


@dataclass(frozen=True, slots=True)
class Waits:
    """The control plane is away; the order is still being tried."""

    desired: Desired
    error: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """All that can be had of an order is on the device, checked: `order.runs` are those, and it waits to be ordered."""

    order: Order


@dataclass(frozen=True, slots=True)
class Prepared:
    """What became of one run of an order: a stage that is ready to run, or the reason why there is none."""

    run: Run
    stage: Stage | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Looked:
    """Every run of a desired state was looked at."""

    desired: Desired


@dataclass(frozen=True, slots=True)
class Ready:
    """The stage of the run that a device wants to go back to, or the reason why there is none."""

    run: Run
    stage: Stage | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What became of a request for a profile: the profile, or the reason why there is none."""

    request: str
    profile: Profile | None
    error: str | None = None


Report = Waits | Fetched | Prepared | Looked | Ready | Measured


def check_run(settings: EdgeSettings, manifest: Manifest, run: Run) -> None:
    """Raise `PermanentError` unless this agent can run `manifest` as `run` wants it, with the sensors that it has."""
    if manifest.model != run.model:
        raise PermanentError(f"bundle is of model {manifest.model!r}, desired is {run.model!r}")
    codec = manifest.operating_point(run.operating_point).codec
    if codec not in CODECS:
        raise PermanentError(f"codec {codec[:40]!r} is unknown to this agent's version; known: {', '.join(CODECS)}")
    check_fed(settings, manifest.model, manifest.inputs)


def prepare_local(settings: EdgeSettings, run: Run) -> Stage:
    """The stage of `run` from what is on the device; `PermanentError` says what is missing or wrong."""
    folder = settings.data / "bundles" / run.bundle
    manifest = bundles.open_bundle(folder, run.bundle, settings.public_keys).manifest
    check_run(settings, manifest, run)
    indices = loaded_by(manifest, "edge")
    segments = load_segments(folder, manifest, indices, settings.threads)
    return Stage("edge", run.bundle, manifest, indices.start, segments)


class Updater:
    """A thread that does what it was told last, by rank, and hands what becomes of it to `report`."""

    def __init__(self, settings: EdgeSettings, report: Callable[[Report], None]) -> None:
        self.settings = settings
        self._report = report
        self._control = ControlPlane(settings)
        self._back: deque[Run] = deque()
        self._order: Order | None = None
        self._to_measure: tuple[str, str] | None = None
        """(request, digest)"""
        self._to_remove: set[str] = set()
        """Digests of bundles."""
        self._lock = threading.Lock()
        """Between what is told and what is taken up of it."""
        self._changed = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="updates", daemon=True)
        self._thread.start()

    def order(self, order: Order) -> None:
        """Fetch the runs of `order`, or load them once they are; an order that is not through is given up for it."""
        with self._lock:
            self._order = order
        self._changed.set()

    def go_back(self, run: Run) -> None:
        """Load `run`, which is on the device."""
        self._back.append(run)
        self._changed.set()

    def measure(self, request: str, digest: str) -> None:
        """Measure the segments of bundle `digest`, which is on the device."""
        with self._lock:
            self._to_measure = (request, digest)
        self._changed.set()

    def remove(self, digests: set[str]) -> None:
        """Remove these bundles."""
        with self._lock:
            self._to_remove |= digests
        self._changed.set()

    def close(self) -> None:
        """End the thread; a download under way is left, and taken up by the next start."""
        self._closing = True
        self._changed.set()
        self._control.close()

    def _serve(self) -> None:
        for left in (self.settings.data / "bundles").glob("**/.*"):  # half-written, by an agent that was killed
            with contextlib.suppress(OSError):  # a folder that cannot be written to keeps them
                left.unlink()
        while self._changed.wait() and not self._closing:
            self._changed.clear()
            while self._back:
                self._load_back(self._back.popleft())
            with self._lock:
                order, wanted, gone, self._to_remove = self._order, self._to_measure, self._to_remove, set()
            for digest in gone:
                shutil.rmtree(self.settings.data / "bundles" / digest, ignore_errors=True)
            if order is not None and self._follow(order):
                with self._lock:
                    self._order = None if self._order is order else self._order
            if wanted is not None and not self._interrupted() and self._measure(*wanted):
                with self._lock:
                    self._to_measure = None if self._to_measure is wanted else self._to_measure

    def _interrupted(self) -> bool:
        return self._changed.is_set() or self._closing

    def _follow(self, order: Order) -> bool:
        """Whether it is through with `order`; False: something else is to be done first, or instead."""
        if not order.fetched:
            return self._fetch(order)
        for run in order.runs:
            if self._interrupted():
                return False
            try:
                stage = order.loaded.get(run.bundle) or prepare_local(self.settings, run)
                self._report(Prepared(run, stage))
            except PermanentError as error:
                self._report(Prepared(run, None, str(error)))
        self._report(Looked(order.desired))
        return True

    def _fetch(self, order: Order) -> bool:
        backoff, told = Backoff(), False
        missing, there = deque(order.runs), []
        while missing:
            if self._interrupted():
                return False
            run = missing[0]
            try:
                self._bring(run, order.loaded.get(run.bundle))
                there.append(missing.popleft())
            except PermanentError as error:
                self._report(Prepared(missing.popleft(), None, str(error)))
            except TemporaryError as error:
                if self._interrupted():
                    return False
                if not told:
                    log.warning("update to revision %d waits: %s", order.desired.revision, error)
                    self._report(Waits(order.desired, str(error)))
                    told = True
                self._changed.wait(backoff.wait_s())
        self._report(Fetched(replace(order, runs=tuple(there), fetched=True)))
        return True

    def _bring(self, run: Run, loaded: Stage | None) -> None:
        """See that all of `run` is on the device and whole. Raises `PermanentError` or `TemporaryError`."""
        if loaded is not None:
            check_run(self.settings, loaded.manifest, run)
            return
        folder = self.settings.data / "bundles" / run.bundle
        try:
            bundle = bundles.open_bundle(folder, run.bundle, self.settings.public_keys)
            for blob in bundle.manifest.blobs(loaded_by(bundle.manifest, "edge")):
                bundles.check_file(folder / bundles.BLOBS / blob.sha256, blob.sha256)
            manifest = bundle.manifest
        except PermanentError:
            manifest = self._control.door.fetch_bundle(
                run.bundle,
                folder,
                self.settings.public_keys,
                lambda manifest: loaded_by(manifest, "edge"),
                elsewhere=(self.settings.data / "bundles").glob("*"),
                give_up=self._interrupted,
            )
        check_run(self.settings, manifest, run)

    def _load_back(self, run: Run) -> None:
        try:
            self._report(Ready(run, prepare_local(self.settings, run)))
        except PermanentError as error:
            self._report(Ready(run, None, str(error)))

    def _measure(self, request: str, digest: str) -> bool:
        """Measure what this device runs of a bundle; False: given up for something else, to be taken up again."""
        folder = self.settings.data / "bundles" / digest
        try:
            manifest = bundles.open_bundle(folder, digest, self.settings.public_keys).manifest
            found = measure(
                folder,
                indices=loaded_by(manifest, "edge"),
                threads=self.settings.threads,
                request=request,
                give_up=self._interrupted,
            )
        except GivenUp:
            return False
        except PermanentError as error:
            self._report(Measured(request, None, str(error)))
        else:
            self._report(Measured(request, found))
        return True
