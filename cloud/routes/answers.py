"""Answers: final predictions for the device that made the samples, when they did not come to it over MQTT."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from sqlalchemy import select

from cloud.database import reading
from cloud.service import ServiceDep, the_device
from cloud.tables import predictions
from sluice.wire.answers import Answers, Question, pack
from sluice.wire.messages import Prediction

router = APIRouter(tags=["devices"])

_FIELDS = [predictions.c[name] for name in Prediction.__slots__ if name != "audit"]  # audits stand elsewhere


@router.post("/devices/{device_id}/answers", dependencies=[Depends(the_device)])
def answers(service: ServiceDep, device_id: str, question: Question) -> Answers:
    """The final predictions that the results know of these samples: for the device itself, and for admins.

    What is missing was not brought in yet, or is final on the device alone; it may be asked for again.
    """
    wanted = select(*_FIELDS).where(
        predictions.c.device_id == device_id,
        predictions.c.epoch == question.epoch,
        predictions.c.seq.in_(question.seqs),
        predictions.c.status == "final",
        predictions.c.outputs.is_not(None),
    )
    with reading(service.engine) as connection:
        rows = connection.execute(wanted.order_by(predictions.c.seq)).mappings().all()
    return pack(Prediction(**row) for row in rows)
