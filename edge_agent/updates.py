"""Updates: from a desired state to a stage that is proven and ready, off the main loop.

A thread fetches what is missing, checks digests and the signature, loads the segments and proves them on their golden
samples. Only then does the main loop switch, between two samples. What fails leaves the running bundle alone. The same
thread measures the segments when it is asked to, with interpreters of its own; a new order goes first.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_agent.intake import check_fed
from edge_agent.settings import EdgeSettings
from sluice.daemon.life import Backoff
from sluice.doors.http import HttpDoor
from sluice.stage.profile import GivenUp, measure
from sluice.stage.segment import load_segments
from sluice.stage.step import Stage, loaded_by
from sluice.wire import bundle as bundles
from sluice.wire.codec import CODECS
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.profile import Profile
from sluice.wire.state import Desired

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What became of a desired state: a stage that is ready to run, or the reason why there is none.

    `final` False: it is still being tried (the control plane is away).
    """

    desired: Desired
    envelope: bytes
    stage: Stage | None
    error: str | None = None
    final: bool = True


@dataclass(frozen=True, slots=True)
class Measured:
    """What became of the request for a profile in `desired`: the profile, or the reason why there is none."""

    desired: Desired
    profile: Profile | None
    error: str | None = None


def prepare_local(settings: EdgeSettings, desired: Desired) -> Stage:
    """The stage of `desired` from what is on the device; `PermanentError` says what is missing or wrong."""
    folder = settings.data / "bundles" / desired.bundle
    manifest = bundles.open_bundle(folder, desired.bundle, settings.public_keys).manifest
    if manifest.model != desired.model:
        raise PermanentError(f"bundle is of model {manifest.model!r}, desired is {desired.model!r}")
    codec = manifest.operating_point(desired.operating_point).codec
    if codec not in CODECS:
        raise PermanentError(f"codec {codec[:40]!r} is unknown to this agent's version; known: {', '.join(CODECS)}")
    check_fed(settings, manifest.model, manifest.inputs)
    indices = loaded_by(manifest, "edge")
    segments = load_segments(folder, manifest, indices, settings.threads)
    return Stage("edge", desired.bundle, manifest, indices.start, segments)


class Updater:
    """A thread that prepares the newest desired state, measures, and hands the results to `report`."""

    def __init__(self, settings: EdgeSettings, report: Callable[[Prepared | Measured], None]) -> None:
        self.settings = settings
        self._report = report
        self._door = HttpDoor(settings.cloud_url, settings.token)
        self._newest: tuple[Desired, bytes] | None = None
        self._order: tuple[Desired, bytes] | None = None
        """The newest, while nobody has taken it up."""
        self._to_measure: Desired | None = None
        self._ordered = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="updates", daemon=True)
        self._thread.start()

    def order(self, desired: Desired, envelope: bytes) -> None:
        """Prepare `desired`; an order that has not been finished is given up for it."""
        self._newest = self._order = (desired, envelope)
        self._ordered.set()

    def measure(self, desired: Desired) -> None:
        """Measure the segments of `desired`, which are on the device, as it requests."""
        self._to_measure = desired
        self._ordered.set()

    @property
    def ordered(self) -> str:
        """Digest of the bundle that was ordered last, which may be on its way; empty if none was."""
        return self._newest[0].bundle if self._newest else ""

    def close(self) -> None:
        """End the thread; a download under way is left."""
        self._closing = True
        self._ordered.set()
        self._door.close()

    def _serve(self) -> None:
        while self._ordered.wait() and not self._closing:
            self._ordered.clear()
            order, self._order = self._order, None
            if order is not None:
                self._follow(*order)
            wanted = self._to_measure
            if wanted is not None and not self._interrupted():
                self._measure(wanted)

    def _interrupted(self) -> bool:
        return self._ordered.is_set() or self._closing

    def _follow(self, desired: Desired, envelope: bytes) -> None:
        """Prepare `desired` until it is there, or never will be, or there is a newer order."""
        backoff, told = Backoff(), False
        while not self._interrupted():
            try:
                self._report(Prepared(desired, envelope, self._prepare(desired)))
            except PermanentError as error:
                self._report(Prepared(desired, envelope, None, str(error)))
            except TemporaryError as error:
                if not told:
                    log.warning("update to revision %d waits: %s", desired.revision, error)
                    self._report(Prepared(desired, envelope, None, str(error), final=False))
                    told = True
                self._ordered.wait(backoff.wait_s())
                continue
            break

    def _measure(self, desired: Desired) -> None:
        """Measure what this device runs of `desired`; given up for a new order, it is taken up again after that."""
        folder = self.settings.data / "bundles" / desired.bundle
        try:
            manifest = bundles.open_bundle(folder, desired.bundle, self.settings.public_keys).manifest
            found = measure(
                folder,
                indices=loaded_by(manifest, "edge"),
                threads=self.settings.threads,
                request=desired.profile,
                give_up=self._interrupted,
            )
        except GivenUp:
            return
        except PermanentError as error:
            self._report(Measured(desired, None, str(error)))
        else:
            self._report(Measured(desired, found))
        if self._to_measure is desired:
            self._to_measure = None

    def _prepare(self, desired: Desired) -> Stage:
        folder = self.settings.data / "bundles" / desired.bundle
        try:
            bundle = bundles.open_bundle(folder, desired.bundle, self.settings.public_keys)
            for blob in bundle.manifest.blobs(loaded_by(bundle.manifest, "edge")):
                bundle.read(blob)
        except PermanentError:
            self._door.fetch_bundle(
                desired.bundle,
                folder,
                self.settings.public_keys,
                lambda manifest: loaded_by(manifest, "edge"),
                elsewhere=(self.settings.data / "bundles").glob("*"),
            )
        return prepare_local(self.settings, desired)


def keep_only(data: Path, digests: set[str]) -> None:
    """Remove the bundles that nobody needs: neither running, nor the one before, nor on their way."""
    for folder in (data / "bundles").glob("*"):
        if folder.name not in digests:
            shutil.rmtree(folder)
