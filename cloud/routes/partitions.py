"""Partitions: a trained model, cut by a job; what comes of it is a bundle, signed by the service."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, insert, update

from cloud.artifacts import open_output
from cloud.bundles import store_bundle
from cloud.jobs import Job
from cloud.routes import job_views
from cloud.routes.devices import get_device
from cloud.routes.job_views import JobView
from cloud.routes.models import INPUT, find_model
from cloud.routes.streams import require_whole, wish_for
from cloud.service import Service, ServiceDep
from cloud.tables import partitions, trainings
from sluice.wire.bundle import BLOBS, MANIFEST
from sluice.wire.codec import CODECS
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import MAX_MANIFEST_BYTES, Quantize, parse_manifest
from sluice.wire.names import Name, Tier
from sluice.wire.profile import Profile

router = APIRouter(tags=["partitions"])

REPORT = "report.html"
MAX_REPORT_BYTES = 20_000_000
REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class PartitionSettings(BaseModel):
    """How to cut and what to promise; what each means stands in `docs/partition.md`."""

    model_config = ConfigDict(extra="forbid")

    task: Literal["auto", "classification", "tensors"] = "auto"
    exits: Literal["auto", "none"] | list[str] = "auto"
    head: str = Field(default="auto", max_length=40)
    train_exits: Literal["frozen", "joint"] = "frozen"
    split: Literal["auto"] | list[str] = "auto"
    placement: list[Tier] | None = None
    quantize: Quantize = "float32"
    codec: str = "auto"
    measure: Literal["max_prob", "entropy", "margin"] = "max_prob"
    objective: Literal["latency", "bytes", "device-compute"] = "latency"
    max_accuracy_loss: float = Field(default=0.01, gt=0, lt=1)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    criterion: Literal["agreement", "accuracy"] = "agreement"
    promise: Literal["auto", "groups", "samples"] = "auto"
    thresholds: list[float] | None = None
    uplink: str = Field(default="1Mbit/s,50ms", max_length=80)
    backhaul: str = Field(default="100Mbit/s,10ms", max_length=80)
    results_sent: bool = True
    device: Name | Profile | None = None
    """A profile, or the name of a device that was asked to measure itself (`POST /v1/devices/{id}/profile`)."""
    seed: int = Field(default=0, ge=0, lt=2**31)


class NewPartition(BaseModel):
    """Which training's model to cut."""

    training: str = Field(max_length=40)
    settings: PartitionSettings = PartitionSettings()


class PartitionView(JobView):
    """A partition; `bundle` is the digest of what came of it, `report` that of its page, once it is done."""

    training: str
    settings: dict[str, Any]
    bundle: str | None
    report: str | None


@router.post("/partitions", status_code=202)
def start_partition(service: ServiceDep, new: NewPartition) -> PartitionView:
    """Cut the model of a training that is done.

    404: no such training or device; 409: it is not done, or the device did not measure itself yet; 410: Kafka no longer
    holds its data; 422: the model cannot be cut.
    """
    if new.settings.codec not in ("auto", *CODECS):
        raise PermanentError(f"codec {new.settings.codec[:40]!r} is unknown; known: {', '.join(('auto', *CODECS))}")
    training = job_views.find(service, trainings, "training", new.training)
    if training["sha256"] is None:
        raise HTTPException(409, f"training {new.training!r} is {training['state']}, not done")
    cut = find_model(service, training["model"], training["version"])["check"].get("cut", {})
    if not cut.get("ok"):
        raise PermanentError(f"model {training['model']!r} cannot be cut: {cut.get('reason')}")
    require_whole(service, training["stream_id"], training["announcement"])
    settings = new.settings.model_dump(mode="json")
    if isinstance(new.settings.device, str):
        settings["device"] = _measured(service, new.settings.device)
    spec = {
        "model": {"file": INPUT},
        "name": training["model"],
        "version": training["version"],
        "stream": training["announcement"],
        "settings": settings,
        "provenance": {"training": new.training},
    }
    files = {INPUT: service.models.path(training["sha256"])}

    def record(connection: Connection, job_id: str) -> None:
        row = {"id": job_id, "training": new.training, "settings": settings}
        connection.execute(insert(partitions).values(row))

    wish = wish_for(service, training["announcement"])
    (started,) = service.runner.begin("partition", [Job(spec, files, record, wish)])
    return get_partition(service, started)


def _measured(service: Service, device_id: str) -> Any:
    """What a device measured of itself, as it reported it."""
    reported = get_device(service, device_id).reported or {}
    if not reported.get("measured"):
        raise HTTPException(
            409, f"device {device_id!r} has measured nothing: POST /v1/devices/{device_id}/profile first"
        )
    return reported["measured"]


def keep_partition(service: Service, job_id: str, folder: Path, _result: dict[str, Any]) -> Any:
    """Store and sign the bundle that the job left (a `Keep`, see `cloud.jobs`)."""
    partition = get_partition(service, job_id)
    training = job_views.find(service, trainings, "training", partition.training)
    with open_output(folder, f"bundle/{MANIFEST}") as file:
        manifest = file.read(MAX_MANIFEST_BYTES + 1)
    parsed = parse_manifest(manifest)
    if (parsed.model, parsed.version) != (training["model"], training["version"]):
        raise PermanentError(f"the bundle is of {parsed.model} {parsed.version}, which is not what was to be cut")
    record = store_bundle(service, manifest, lambda digest: open_output(folder, f"bundle/{BLOBS}/{digest}"))
    with open_output(folder, f"bundle/{REPORT}") as file:
        report = service.blobs.add(file, MAX_REPORT_BYTES)

    def write(connection: Connection) -> None:
        values = {"bundle": record(connection), "report": report.sha256}
        connection.execute(update(partitions).where(partitions.c.id == job_id).values(values))

    return write


@router.get("/partitions")
def list_partitions(service: ServiceDep) -> list[PartitionView]:
    """The newest 1000 partitions, newest first."""
    return [PartitionView(**row) for row in job_views.every(service, partitions)]


@router.get("/partitions/{partition_id}")
def get_partition(service: ServiceDep, partition_id: str) -> PartitionView:
    """One partition: its state, progress, and the bundle that came of it."""
    return PartitionView(**job_views.find(service, partitions, "partition", partition_id))


@router.post("/partitions/{partition_id}/cancel")
def cancel_partition(service: ServiceDep, partition_id: str) -> PartitionView:
    """End a partition that waits or runs; one that has ended stays as it is."""
    get_partition(service, partition_id)
    service.runner.cancel(partition_id)
    return get_partition(service, partition_id)


@router.get("/partitions/{partition_id}/report", response_class=FileResponse)
def get_report(service: ServiceDep, partition_id: str) -> FileResponse:
    """The report of a partition that is done: one HTML page. It comes from a job, so browsers run nothing in it."""
    partition = get_partition(service, partition_id)
    if partition.report is None:
        raise HTTPException(404, f"partition {partition_id!r} is {partition.state}: it has no report")
    path = service.blobs.path(partition.report)
    return FileResponse(path, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": REPORT_POLICY})


@router.get("/partitions/{partition_id}/log", response_class=Response)
def get_log(service: ServiceDep, partition_id: str) -> Response:
    """What the job printed."""
    get_partition(service, partition_id)
    return job_views.log_of(service, partition_id)
