"""The shelf: the bundles that a stage holds, fetched off the main loop.

`get` answers at once: a loaded stage, the reason why there will never be one, or None for "not yet", after which a
thread fetches, verifies, loads and proves it. The main loop pauses what waits for it and asks `arrived` now and then.
"""

from __future__ import annotations

import logging
import queue
import threading
from pathlib import Path
from typing import Any

from sluice.daemon.life import Backoff
from sluice.doors.http import HttpDoor
from sluice.stage.segment import load_segments
from sluice.stage.step import Stage, loaded_by
from sluice.wire import bundle as bundles
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.names import Tier

log = logging.getLogger(__name__)

MOST_REFUSED = 1000
MOST_HELD = 16
"""Bundles in memory; the one that was not used for the longest time goes, and comes back from the folder."""


class Shelf:
    """Bundles of one tier by digest. `get` and `arrived` belong to the main loop's thread."""

    def __init__(self, tier: Tier, door: HttpDoor, folder: Path, public_keys: list[str], threads: int = 1) -> None:
        self.tier = tier
        self._door = door
        self._folder = folder
        self._keys = public_keys or None
        self._threads = threads
        self._held: dict[str, Stage] = {}
        self._refused: dict[str, str] = {}
        self._wanted: set[str] = set()
        self._orders: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._arrivals: queue.SimpleQueue[tuple[str, Stage | PermanentError]] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="shelf", daemon=True)
        self._thread.start()

    def get(self, digest: str) -> Stage | None:
        """The stage of bundle `digest`, or None while it is being fetched.

        Raises `PermanentError` when it was found that it cannot be had: no such bundle, a bad signature, a failed
        golden sample.
        """
        if stage := self._held.pop(digest, None):
            self._held[digest] = stage  # last in the order of use
            return stage
        if reason := self._refused.get(digest):
            raise PermanentError(reason)
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
                _make_room(self._held, MOST_HELD)
                self._held[digest] = result
            else:
                _make_room(self._refused, MOST_REFUSED)
                self._refused[digest] = str(result)
                log.error("bundle %s… is refused: %s", digest[:12], result)
            digests.add(digest)
        return digests

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._orders.put(None)
        self._thread.join()

    def _serve(self) -> None:
        backoff = Backoff()
        while (digest := self._orders.get()) is not None and not self._closing.is_set():
            try:
                self._arrivals.put((digest, self._fetch(digest)))
                backoff.reset()
            except PermanentError as error:
                self._arrivals.put((digest, error))
            except TemporaryError as error:
                log.warning("bundle %s… is not there yet: %s", digest[:12], error)
                self._closing.wait(backoff.wait_s())
                self._orders.put(digest)  # behind the others: it must not keep them waiting

    def _fetch(self, digest: str) -> Stage:
        folder = self._folder / digest
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
        segments = load_segments(folder, manifest, indices, self._threads)
        log.info(
            "bundle %s… is loaded: segments %d to %d",
            digest[:12],
            indices.start,
            indices.stop - 1,
            extra={"model": manifest.model, "tier": self.tier},
        )
        return Stage(self.tier, digest, manifest, indices.start, segments)


def _make_room(shelf: dict[str, Any], most: int) -> None:
    while len(shelf) >= most:
        shelf.pop(next(iter(shelf)))
