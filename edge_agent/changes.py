"""Changes of what runs, as the main loop sees them: desired states in, switches between two samples out.

`updates.py` does the work off the main loop, `running.py` knows what runs and what is remembered; here stands what
follows from what. A desired state is through when each of its runs was decided on, once and for all; until then the
device says the revision before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from edge_agent.reports import Reports
from edge_agent.running import Models
from edge_agent.settings import EdgeSettings
from edge_agent.store import Store
from edge_agent.updates import (
    Fetched,
    Looked,
    Measured,
    Order,
    Prepared,
    Ready,
    Report,
    Updater,
    Waits,
    prepare_local,
)
from sluice.wire.errors import PermanentError
from sluice.wire.profile import Profile, parse_profile
from sluice.wire.state import Desired, unseal

log = logging.getLogger(__name__)


class Changes:
    """What the device was told to run, and how far it is. All calls belong to the main loop's thread."""

    def __init__(
        self,
        settings: EdgeSettings,
        store: Store,
        models: Models,
        reports: Reports,
        updater: Updater,
        commit: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.models = models
        self.revision = int(store.fact("revision") or b"0")
        self.measured: Profile | None = None
        self._store = store
        self._commit = commit
        self._reports = reports
        self._updater = updater
        self._order: Order | None = None
        known = models.digests()
        self._had = {folder.name for folder in (settings.data / "bundles").glob("*")} if known else known
        """Bundles on the device, with some that never came."""
        self._tidy = bool(known)

    def take_up(self) -> None:
        """At the start: run what ran before, from what is on the device."""
        measured = self._store.fact("measured")
        if measured is not None:
            try:
                self.measured = parse_profile(measured)
            except PermanentError as error:
                log.warning("what was measured before cannot be read: %s", error)
        if not self.models.take_up(lambda run: prepare_local(self.settings, run), self._commit):
            self.revision = max(0, self.revision - 1)  # what was looked at last is looked at again, nothing older

    def desire(self, envelope: bytes) -> None:
        """A desired state arrived: order what is new in it, if it is newer than what was looked at.

        Raises `PermanentError` if it is not ours or not signed.
        """
        desired = unseal(envelope, self.settings.device_id, self.settings.public_keys)
        under_way = self._order.desired.revision if self._order else 0
        if desired.revision in (self.revision, under_way):
            return
        if desired.revision < max(self.revision, under_way):
            # nobody's mistake: a gateway reads them from the beginning, a broker may have forgotten the newest
            newest = max(self.revision, under_way)
            self._reports.fault(f"desired revision {desired.revision} is older than {newest}")
            log.warning("not followed: %s", self._reports.last_error)
            return
        runs = [run for run in map(desired.run_of, (run.model for run in desired.runs)) if run is not None]
        self.models.take_off({run.model for run in runs})
        self._order = Order(desired, tuple(self.models.new_in(runs)), self.models.loaded())
        self._had |= {run.bundle for run in self._order.runs}
        if self._order.runs:
            self._updater.order(self._order)
        else:
            self._looked(desired)

    def take(self, event: Report) -> None:
        """The updater is through with something."""
        order = self._order
        if isinstance(event, Measured):
            self._take_measured(event)
        elif isinstance(event, Ready):
            self._ready(event)
        elif isinstance(event, Waits):
            self._reports.fault(event.error)
        elif order is None:
            return  # of an order that was given up
        elif isinstance(event, Fetched) and event.order.desired is order.desired:
            for run in event.order.runs:
                self.models.try_out(run)
            self._commit()  # before anything is loaded that may end the agent
            self._updater.order(event.order)
        elif isinstance(event, Prepared) and event.run in order.runs and self.models.new_in([event.run]):
            if event.stage is not None:
                self.models.switch(event.run, event.stage)
                self._reports.last_error = None
            else:
                self._reports.fault(self.models.refuse(event.run, event.error or ""))
        elif isinstance(event, Looked) and event.desired is order.desired:
            self._looked(event.desired)

    def _looked(self, desired: Desired) -> None:
        self._order = None
        self.revision = desired.revision
        self._store.set_fact("revision", str(self.revision).encode())
        self._store.dirty = self._tidy = self.models.changed = True
        answered = self.measured.request if self.measured else None
        wanted = desired.profile_model or (desired.runs[0].model if desired.runs else "")
        if desired.profile not in (None, answered) and wanted in self.models:
            run = self.models[wanted].kept.run
            if run is not None:
                self._updater.measure(desired.profile, run.bundle)

    def judge(self, name: str) -> None:
        """After samples of a model: go back if it has left its bounds."""
        reason = self.models.judge(name)
        if reason is None:
            return
        model = self.models[name]
        before = model.kept.before
        assert before is not None
        log.warning("leaves its bounds: %s", reason, extra={"model": name})
        if model.ready is not None:
            self._ready(Ready(before, model.ready))
        else:
            self._updater.go_back(before)

    def _ready(self, event: Ready) -> None:
        name = event.run.model
        if name not in self.models or self.models[name].leaving is None or self.models[name].kept.before != event.run:
            return  # something newer runs by now
        if event.stage is None:
            self._reports.fault(self.models.stay(name, event.error or ""))
        else:
            self._reports.fault(self.models.go_back(name, event.stage))
            self._tidy = True

    def _take_measured(self, event: Measured) -> None:
        if event.profile is None:
            self._reports.fault(f"profile {event.request}: {event.error}")
            return
        self.measured = event.profile
        self._store.set_fact("measured", event.profile.model_dump_json().encode())
        self._store.dirty = self.models.changed = True
        log.info("measured %d segments", len(event.profile.segments))

    def after_commit(self) -> None:
        """What was made durable decides which bundles are needed no longer."""
        if self.models.changed:
            self.models.changed = False
            self._reports.due = True
        if self._tidy:
            self._tidy = False
            coming = {run.bundle for run in self._order.runs} if self._order else set()
            needed = self.models.digests() | coming
            self._updater.remove(self._had - needed)
            self._had = needed
