"""The shelf: the bundles that a stage holds, fetched off the main loop.

`get` answers at once: a loaded stage, the reason why there will never be one, or None for "not yet", after which a
thread fetches, verifies, loads and proves it. The main loop pauses what waits for it and asks `arrived` now and then.

Offloads may come for a bundle as long as they live, and nobody says when the last has come. So one that was not used
for a time is let go from memory, and much later from the folder; whatever comes for it then brings it back.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from sluice.daemon.life import Backoff
from sluice.doors.http import HttpDoor, RefusedError
from sluice.stage.segment import load_segments
from sluice.stage.step import Stage, loaded_by
from sluice.wire import bundle as bundles
from sluice.wire.codec import CODECS
from sluice.wire.errors import PermanentError, TemporaryError, UnknownSchemaError
from sluice.wire.manifest import Manifest
from sluice.wire.names import Tier

log = logging.getLogger(__name__)

MOST_REFUSED = 1000
AGAIN_S = 30.0
"""How long the control plane's no is believed. What was found wrong with a bundle itself is believed for good."""
LOOK_EVERY_S = 60.0
"""Longest time between two looks for bundles in memory that are idle."""
TIDY_EVERY_S = 3600.0
"""Longest time between two looks at the folder."""
GONE = ".gone"

Fate = Stage | PermanentError | UnknownSchemaError


class Shelf:
    """Bundles of one tier by digest. `get` and `arrived` belong to the main loop's thread."""

    def __init__(
        self,
        tier: Tier,
        door: HttpDoor,
        folder: Path,
        public_keys: list[str],
        *,
        threads: int = 1,
        most: int = 32,
        idle_s: float = 3600.0,
        keep_s: float = 14 * 24 * 3600.0,
    ) -> None:
        """At most `most` bundles are in memory, none that was idle for `idle_s`; on disk none idle for `keep_s`."""
        self.tier = tier
        self._door = door
        self._folder = folder
        self._keys = public_keys or None
        self._threads = threads
        self._most, self._idle_s, self._keep_s = most, idle_s, keep_s
        self._held: dict[str, Stage] = {}
        """In the order of use."""
        self._used: dict[str, float] = {}
        self._refused: dict[str, tuple[PermanentError | UnknownSchemaError, float]] = {}
        """Why, and until when (monotonic seconds)."""
        self._wanted: set[str] = set()
        self._next_look = self._next_tidy = 0.0
        self._orders: queue.SimpleQueue[str | frozenset[str] | None] = queue.SimpleQueue()
        """Digests to fetch; a set: to tidy the folder but for these; None: to end."""
        self._arrivals: queue.SimpleQueue[tuple[str, Fate]] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="shelf", daemon=True)
        self._thread.start()

    def get(self, digest: str) -> Stage | None:
        """The stage of bundle `digest`, or None while it is being fetched.

        Raises `PermanentError` when it was found that it cannot be had: a bad signature, a failed golden sample, or,
        for `AGAIN_S`, no such bundle; `UnknownSchemaError` when it needs a codec that may be newer than this version.
        """
        if stage := self._held.pop(digest, None):
            self._held[digest] = stage  # last in the order of use
            self._used[digest] = time.monotonic()
            return stage
        if refused := self._refused.get(digest):
            reason, until = refused
            if time.monotonic() < until:
                raise type(reason)(str(reason))
            del self._refused[digest]
        if digest not in self._wanted:
            self._wanted.add(digest)
            self._orders.put(digest)
        return None

    def arrived(self) -> set[str]:
        """Digests whose fate has become known since the last call."""
        digests = set()
        while not self._arrivals.empty():
            digest, result = self._arrivals.get()
            self._wanted.discard(digest)
            if isinstance(result, Stage):
                _make_room(self._held, self._most)
                self._held[digest] = result
                self._used[digest] = time.monotonic()
            else:
                _make_room(self._refused, MOST_REFUSED)
                until = time.monotonic() + AGAIN_S if isinstance(result, RefusedError) else math.inf
                self._refused[digest] = result, until
                log.error("bundle %s… is refused: %s", digest[:12], result)
            digests.add(digest)
        self._let_go()
        return digests

    def _let_go(self) -> None:
        """Release what is idle, now and then."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + min(self._idle_s / 4, LOOK_EVERY_S)
            for digest, stage in list(self._held.items()):
                if now - self._used[digest] >= self._idle_s:
                    del self._held[digest]
                    log.info("bundle %s… is released", digest[:12], extra={"model": stage.manifest.model})
            self._used = {digest: self._used[digest] for digest in self._held}
        if now >= self._next_tidy:
            self._next_tidy = now + min(self._keep_s / 4, TIDY_EVERY_S)
            self._orders.put(frozenset(self._held) | self._wanted)

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._orders.put(None)
        self._thread.join()

    def _serve(self) -> None:
        backoff = Backoff()
        while (digest := self._orders.get()) is not None and not self._closing.is_set():
            if isinstance(digest, frozenset):
                try:
                    tidy(self._folder, digest, self._keep_s)
                except OSError as error:
                    log.warning("%s cannot be tidied: %s", self._folder, error)
                continue
            try:
                self._arrivals.put((digest, self._fetch(digest)))
                backoff.reset()
            except (PermanentError, UnknownSchemaError) as error:
                self._arrivals.put((digest, error))
            except TemporaryError as error:
                log.warning("bundle %s… is not there yet: %s", digest[:12], error)
                self._closing.wait(backoff.wait_s())
                self._orders.put(digest)  # behind the others: it must not keep them waiting

    def _fetch(self, digest: str) -> Stage:
        folder = self._folder / digest
        with contextlib.suppress(OSError):  # it is not there yet, or another's and ours to read only
            os.utime(folder)  # it is in use from here on, for every process that shares the folder
        try:
            manifest = bundles.open_bundle(folder, digest, self._keys).manifest
            for blob in manifest.blobs(loaded_by(manifest, self.tier)):
                bundles.read_blob(folder / bundles.BLOBS, blob)
        except PermanentError:
            manifest = self._door.fetch_bundle(
                digest, folder, self._keys, lambda manifest: loaded_by(manifest, self.tier)
            )
        indices = loaded_by(manifest, self.tier)
        if not indices:
            raise PermanentError(f"bundle {digest[:12]}… places nothing on tier {self.tier}")
        self._check_codecs(manifest)
        try:
            segments = load_segments(folder, manifest, indices, self._threads)
        except PermanentError as error:
            if (folder / bundles.MANIFEST).exists():
                raise
            raise TemporaryError("another process has removed it from the folder", 0.0) from error
        log.info(
            "bundle %s… is loaded: segments %d to %d",
            digest[:12],
            indices.start,
            indices.stop - 1,
            extra={"model": manifest.model, "tier": self.tier},
        )
        return Stage(self.tier, digest, manifest, indices.start, segments)

    def _check_codecs(self, manifest: Manifest) -> None:
        """Whatever a device may send at one of the operating points has to be read here."""
        for point in manifest.operating_points:
            if self.tier in point.placement and point.codec not in CODECS:
                known = ", ".join(CODECS)
                raise UnknownSchemaError(
                    f"operating point {point.id!r} has codec {point.codec[:40]!r}; this version knows {known}: "
                    "bring this stage up to date"
                )


def tidy(folder: Path, used: frozenset[str], keep_s: float) -> None:
    """Remove the bundles in `folder` that nobody has used for `keep_s`; those in `used` count as used now.

    When a folder was used last is its time of modification, which all processes that share it see. What another of
    them removes meanwhile is gone; any other `OSError` is raised.
    """
    for one in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if one.name in used:
                os.utime(one)
            elif re.fullmatch(r"[0-9a-f]{64}", one.name) and time.time() - one.stat().st_mtime >= keep_s:
                _remove(one.rename(one.with_suffix(GONE)))
                log.info("bundle %s… is removed from the folder, nobody has used it for long", one.name[:12])
            elif one.suffix == GONE:
                _remove(one)


def _remove(folder: Path) -> None:
    """All of it, whoever else is at it."""

    def failed(_function: Any, _path: str, found: Any) -> None:
        if not isinstance(found[1], FileNotFoundError):
            raise found[1]

    shutil.rmtree(folder, onerror=failed)


def _make_room(shelf: dict[str, Any], most: int) -> None:
    while len(shelf) >= most:
        shelf.pop(next(iter(shelf)))
