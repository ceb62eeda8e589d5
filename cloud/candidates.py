"""What becomes of the candidates of online jobs: a version of the model, and a bundle that is ready to be rolled out.

A thread of the service (`cloud.app`). A candidate is put on record as a training that is done: its model is what was
learnt, its stream what the job held back and never learnt from, all of it to certify on. So it can be looked at, cut
and learnt on from like any other. Each step is done if it is not done yet, so a service that was killed goes on here.
Whether a bundle is rolled out is the user's decision.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from typing import Any

from fastapi import HTTPException
from sqlalchemy import RowMapping, func, insert, select, update

from cloud.database import reading, writing
from cloud.routes.models import add_trained
from cloud.routes.partitions import NewPartition, PartitionSettings, start_partition
from cloud.service import Service
from cloud.tables import candidates, jobs, online_jobs, partitions, trainings
from cloud.topics import what_is_left
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.slices import parse_slice

log = logging.getLogger(__name__)

EVERY_S = 1.0
_INTERRUPTED = (jobs.c.state == "failed") & func.coalesce(jobs.c.reason, "").like("the service was %")
"""A partition that the service took with it when it stopped: another one is begun."""


class Candidates:
    """Brings candidates further."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def run(self, stop: threading.Event) -> None:
        """Look now and then until `stop`; what cannot be done now is tried again."""
        while not stop.is_set():
            try:
                for row in self._open():
                    self._further(row)
            except TemporaryError as error:
                log.debug("candidates wait: %s", error)
            stop.wait(EVERY_S)

    def _open(self) -> list[RowMapping]:
        """The candidates of which something more is to come, with what their jobs say."""
        of_job = [column for column in online_jobs.c if column.name not in ("training", "partition", "sha256")]
        wanted = (
            select(candidates, *of_job, online_jobs.c.partition.label("cutting"))
            .join(online_jobs, online_jobs.c.id == candidates.c.online)
            .outerjoin(jobs, jobs.c.id == candidates.c.partition)
            .where(candidates.c.reason.is_(None), candidates.c.partition.is_(None) | _INTERRUPTED)
            .order_by(candidates.c.proposed_at)
        )
        with reading(self.service.engine) as connection:
            rows = connection.execute(wanted).mappings().all()
        return [row for row in rows if row["training"] is None or row["cutting"] is not None]

    def _further(self, row: RowMapping) -> None:
        """The next step of one candidate."""
        try:
            if row["training"] is None:
                self._record(row)
            else:
                self._cut(row)
        except HTTPException as error:
            self._set(row, reason=str(error.detail))
        except PermanentError as error:
            self._set(row, reason=str(error))

    def _record(self, row: RowMapping) -> None:
        """Make a version of it, and the training that stands for it."""
        slices = [parse_slice(text) for text in row["slices"]]
        left = what_is_left(self.service.settings, row["slices"])
        whole = [piece for piece, what in zip(slices, left, strict=True) if what == "whole"]
        if not whole:
            raise PermanentError("Kafka no longer holds what was held back to certify it")
        name = hashlib.sha256(f"{row['online']} {row['number']}".encode()).hexdigest()  # the same if it is tried again
        training = f"training-{name[:12]}"
        _known, version = add_trained(self.service, row["model"], row["sha256"], training)
        held_back = row["announcement"] | {
            "slices": [str(piece) for piece in whole],
            "count": sum(piece.length for piece in whole),
            "validation_rate": 1.0,
        }
        job = {"id": training, "kind": "training", "state": "done", "metrics": [], "result": {"told": row["told"]}}
        job |= dict.fromkeys(("created_at", "started_at", "ended_at"), row["proposed_at"])
        made = {
            "id": training,
            "model": row["model"],
            "version": version.version,
            "stream_id": row["stream_id"],
            "announcement": held_back,
            "settings": row["settings"],
            "sha256": row["sha256"],
            "online": row["online"],
        }
        with writing(self.service.engine) as connection:
            connection.execute(insert(jobs).values(job))
            connection.execute(insert(trainings).values(made))
            connection.execute(_this(row).values(training=training))
        log.info("a candidate is version %d of model %s", version.version, row["model"], extra={"job": row["online"]})

    def _cut(self, row: RowMapping) -> None:
        """Begin to cut it."""
        of_it = select(partitions.c.id).join(jobs, jobs.c.id == partitions.c.id)
        of_it = of_it.where(partitions.c.training == row["training"], ~_INTERRUPTED)
        with reading(self.service.engine) as connection:
            begun = connection.execute(of_it).scalar()
        if begun is None:
            settings = PartitionSettings.model_validate(row["cutting"])
            begun = start_partition(self.service, NewPartition(training=row["training"], settings=settings)).id
        self._set(row, partition=begun)

    def _set(self, row: RowMapping, **values: Any) -> None:
        if "reason" in values:
            said = (row["number"], row["model"], values["reason"])
            log.warning("candidate %d of model %s: %s", *said, extra={"job": row["online"]})
        with writing(self.service.engine) as connection:
            connection.execute(_this(row).values(**values))


def _this(row: RowMapping) -> Any:
    return update(candidates).where(candidates.c.online == row["online"], candidates.c.number == row["number"])
