"""Looks at the certificates of all bundles that new audits have come of, and says once when one does not hold any more.

A thread of the service (`cloud.app`). It may look as often as it likes: the test that it makes allows for it.
"""

from __future__ import annotations

import logging
import threading

from sqlalchemy import func, select

from cloud.bundles import read_manifest
from cloud.database import reading
from cloud.service import Service
from cloud.tables import audits, bundles
from cloud.watch.certificate import Watched, watch
from sluice.wire import metrics
from sluice.wire.errors import PermanentError, TemporaryError

log = logging.getLogger(__name__)

EVERY_S = 60.0


def watched_bundles(service: Service, model: str | None = None) -> dict[str, int]:
    """The bundles of the registry that there are audits of, and how many, by digest."""
    wanted = select(audits.c.bundle, func.count().label("audits")).join(bundles, bundles.c.digest == audits.c.bundle)
    if model is not None:
        wanted = wanted.where(bundles.c.model == model)
    with reading(service.engine) as connection:
        rows = connection.execute(wanted.group_by(audits.c.bundle).order_by(audits.c.bundle)).all()
    return {row.bundle: row.audits for row in rows}


def certificates_of(service: Service, digest: str) -> list[Watched]:
    """The certificates of one bundle; 404 if there is none, `PermanentError` if its manifest was damaged."""
    manifest = read_manifest(service, digest)
    with reading(service.engine) as connection:
        return watch(connection, digest, manifest, service.settings.audit_share)


class Watcher:
    """What was seen until now: audits by bundle, and the promises known to be broken."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._audits: dict[str, int] = {}
        self._broken: set[tuple[str, str]] = set()

    def run(self, stop: threading.Event) -> None:
        """Look now and then until `stop`; while the database is away nothing is seen."""
        while not stop.is_set():
            try:
                self.look()
            except TemporaryError as error:
                log.debug("certificates are not watched: %s", error)
            stop.wait(EVERY_S)

    def look(self) -> None:
        """Look at the bundles that there are new audits of."""
        for digest, count in watched_bundles(self.service).items():
            if self._audits.get(digest) == count:
                continue
            try:
                found = certificates_of(self.service, digest)
            except PermanentError as error:
                log.warning("the certificates of bundle %s… cannot be watched: %s", digest[:12], error)
                found = []
            self._audits[digest] = count
            for one in found:
                self._tell(digest, one)

    def _tell(self, digest: str, one: Watched) -> None:
        broken = one.state == "does not hold"
        metrics.CLOUD_CERTIFICATE_BROKEN.labels(digest, one.operating_point).set(broken)
        metrics.CLOUD_CERTIFICATE_WEALTH.labels(digest, one.operating_point).set(one.wealth_most / one.wealth_needed)
        if broken and (digest, one.operating_point) not in self._broken:
            self._broken.add((digest, one.operating_point))
            text = "bundle %s… at %s does not keep its promise of %g: %d of %d audits disagree with the final exit"
            log.warning(text, digest[:12], one.operating_point, one.epsilon, one.harmed, one.audits)
