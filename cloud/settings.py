"""Settings of the control plane, for the service and the results writer alike (prefix `CLOUD_`)."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from sluice.daemon.settings import RoomSettings, Seconds
from sluice.doors.kafka import KafkaCluster

MB = 1_000_000


class CloudSettings(RoomSettings):
    """What the service and the results writer need to know of their surroundings."""

    env_prefix = "CLOUD_"

    host: str = "127.0.0.1"
    """Address that the REST service listens on."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Port that the REST service listens on; 0: any free one, named in the log."""
    data: Path = Path("sluice-data")
    """Folder of the service: signing key, models, blobs, job folders, and the SQLite database if no other is named."""
    database: str | None = None
    """URL of the database (`sqlite:///…` or `postgresql://…`); without it SQLite in the data folder."""
    kafka: KafkaCluster = KafkaCluster()
    """Where Kafka is (`bootstrap`) and how to speak with it (`options`)."""
    topic_partitions: int = Field(default=4, ge=1, le=1000)
    """Topic partitions of each topic that the service makes."""
    replication: int = Field(default=1, ge=1, le=10)
    """Copies that Kafka keeps of each topic that the service makes."""
    kafka_timeout_s: Seconds = Field(default=10.0, gt=0)
    """Longest wait for Kafka within one request."""
    stream_away_s: Seconds = Field(default=120.0, gt=0)
    """How long Kafka may give nothing while a job reads its stream; a training is then tried twice more."""
    jobs_at_once: int = Field(default=1, ge=1, le=64)
    """Trainings and partitions that run at the same time; checks of models have a slot of their own."""
    live_jobs_at_once: int = Field(default=2, ge=1, le=64)
    """Jobs on live streams (online learning, evaluation) that run at the same time, besides the others."""
    jobs_waiting: int = Field(default=100, ge=1)
    """Trainings and partitions that may wait for their turn; more are refused."""
    job_time_s: Seconds = Field(default=3600.0, gt=0)
    """Longest time of one job; it is killed then."""
    check_time_s: Seconds = Field(default=60.0, gt=0)
    """Longest time of the check of a model that was handed in."""
    job_memory_mb: int = Field(default=4096, ge=64)
    """Resident memory that a job with all its children may hold; it is killed above."""
    job_output_mb: int = Field(default=2048, ge=1)
    """Size of all files that a job may write; it is killed above."""
    job_log_mb: int = Field(default=4, ge=1)
    """Size of a job's log; what it says beyond that is not kept."""
    job_threads: int = Field(default=0, ge=0)
    """Threads that numeric libraries in a job may use; 0: as many as there are cores."""
    upload_mb: int = Field(default=512, ge=1)
    """Largest upload (a model, an offline-made bundle)."""
    audit_share: float = Field(default=0.01, gt=0, le=1)
    """Share of their early answers that devices and stages audit (`EDGE_AUDIT_SHARE`, `STAGE_AUDIT_SHARE`):
    certificates are watched with it."""
    results_batch: int = Field(default=500, ge=1, le=10_000)
    """Records that the results writer takes into one transaction."""
    results_hold_s: Seconds = Field(default=5.0, gt=0)
    """Time between two tries of a topic partition that is held for an unknown schema."""
    results_metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port of the results writer's Prometheus endpoint (`metrics_port` is the service's); 0: none."""

    @property
    def database_url(self) -> str:
        """The URL of the database, whether named or not."""
        return self.database or f"sqlite:///{self.data.resolve() / 'sluice.db'}"
