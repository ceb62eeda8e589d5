"""The tables, one line a column. The migrations make them; a test holds the two together.

Times are UTC microseconds (`BigInteger`), digests hex, what has no fixed shape JSON. Each table is written by one
process: `streams`, `device_states`, `predictions`, `audits`, `labels` and `reader_offsets` by the results writer, the
rest by the service.
"""

from __future__ import annotations

import time

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

Counter = BigInteger().with_variant(Integer, "sqlite")
"""A number that the database gives: SQLite does that for INTEGER only (which holds 64 bits there)."""

tokens = Table(
    "tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),  # sha256 of the token; the token itself is nowhere
    Column("role", String(16), nullable=False),
    Column("name", String(63), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
)

model_versions = Table(
    "model_versions",
    metadata,
    Column("model", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("kind", String(16), nullable=False),  # source or keras
    Column("sha256", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("check", JSON, nullable=False),  # what the check job found: inputs, exits, cut, …
    Column("created_at", BigInteger, nullable=False),
    Column("training", String(40)),  # that it is the result of; null: handed in
)

streams = Table(
    "streams",
    metadata,
    Column("stream_id", String(63), primary_key=True),
    Column("part", Integer, primary_key=True),  # of as many as the announcement says
    Column("announcement", JSON, nullable=False),
    Column("announced_at", BigInteger, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),  # queued, running, done, failed, cancelled
    Column("progress", JSON),
    Column("metrics", JSON, nullable=False),  # one entry an epoch
    Column("reason", String),
    Column("result", JSON),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("ended_at", BigInteger),
)

trainings = Table(
    "trainings",
    metadata,
    Column("id", String(40), ForeignKey("jobs.id"), primary_key=True),
    Column("model", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("stream_id", String(63), nullable=False),
    Column("announcement", JSON, nullable=False),  # as it was when the training began
    Column("settings", JSON, nullable=False),
    Column("sha256", String(64)),  # of the trained model
    Column("comparison", String(40)),  # the same for all that one request began
    Column("online", String(40)),  # the online job whose candidate it is; null: a training of its own
    Index(None, "comparison"),
)

online_jobs = Table(
    "online_jobs",
    metadata,
    Column("id", String(40), ForeignKey("jobs.id"), primary_key=True),
    Column("model", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("training", String(40)),  # whose result it began from; null: the version itself
    Column("stream_id", String(63), nullable=False),
    Column("announcement", JSON, nullable=False),  # as it was when the job began
    Column("topics", JSON, nullable=False),
    Column("consumers", String(63), nullable=False),  # its consumer group
    Column("trained_on", JSON, nullable=False),  # slices that the model knew already
    Column("settings", JSON, nullable=False),
    Column("partition", JSON),  # settings of its candidates' partitions; null: they are not cut
    Column("sha256", String(64)),  # of the model at the end
)

candidates = Table(
    "candidates",
    metadata,
    Column("online", String(40), ForeignKey("online_jobs.id"), primary_key=True),
    Column("number", Integer, primary_key=True),  # from 1
    Column("sha256", String(64), nullable=False),
    Column("slices", JSON, nullable=False),  # what of the stream certifies
    Column("told", JSON, nullable=False),  # why it was proposed
    Column("proposed_at", BigInteger, nullable=False),
    Column("training", String(40)),  # under which it is on record; null: not yet
    Column("partition", String(40)),
    Column("reason", String),  # why nothing more comes of it
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("id", String(40), ForeignKey("jobs.id"), primary_key=True),
    Column("model", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("training", String(40)),  # that made what is evaluated, if that is it
    Column("bundle", String(64)),  # that is evaluated, if it is one
    Column("operating_point", String(63)),  # of the bundle
    Column("stream_id", String(63), nullable=False),
    Column("announcement", JSON, nullable=False),  # as it was when the evaluation began, of the slices asked for
    Column("settings", JSON, nullable=False),
)

partitions = Table(
    "partitions",
    metadata,
    Column("id", String(40), ForeignKey("jobs.id"), primary_key=True),
    Column("training", String(40), ForeignKey("trainings.id"), nullable=False),
    Column("settings", JSON, nullable=False),
    Column("bundle", String(64)),
    Column("report", String(64)),  # sha256 of an HTML page among the blobs
)

bundles = Table(
    "bundles",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("model", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("signature", String(128), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

devices = Table(
    "devices",
    metadata,
    Column("device_id", String(63), primary_key=True),
    Column("token", Integer, ForeignKey("tokens.id"), nullable=False),
    Column("revision", BigInteger, nullable=False),  # the last that was given out; 0: none yet
    Column("desired", JSON),
    Column("desired_at", BigInteger),
    Column("registered_at", BigInteger, nullable=False),
)

device_states = Table(
    "device_states",
    metadata,
    Column("device_id", String(63), primary_key=True),
    Column("reported", JSON),
    Column("reported_at", BigInteger),
    Column("status", String(16)),
    Column("status_at", BigInteger),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("bundle", String(64), ForeignKey("bundles.digest"), nullable=False),
    Column("operating_point", String(63), nullable=False),
    Column("bounds", JSON),
    Column("created_at", BigInteger, nullable=False),
)

rollout_devices = Table(
    "rollout_devices",
    metadata,
    Column("rollout", String(40), ForeignKey("rollouts.id"), primary_key=True),
    Column("device_id", String(63), ForeignKey("devices.device_id"), primary_key=True),
    Column("revision", BigInteger, nullable=False),
)

_HAS_SOURCE = text("source_id IS NOT NULL")

predictions = Table(
    "predictions",
    metadata,
    Column("id", Counter, primary_key=True, autoincrement=True),  # rises in the order of arrival
    Column("device_id", String(63), nullable=False),
    Column("epoch", String(16), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("source_id", String(256)),
    Column("model", String(63), nullable=False),
    Column("bundle", String(64), nullable=False),
    Column("operating_point", String(63), nullable=False),
    Column("tier", String(8), nullable=False),
    Column("exit", Integer, nullable=False),
    Column("label", Integer, nullable=False),
    Column("confidence", Float, nullable=False),
    Column("outputs", LargeBinary),  # null: brought in before they were kept
    Column("status", String(16), nullable=False),
    Column("reason", String(16), nullable=False),
    Column("captured_at", BigInteger, nullable=False),
    Column("produced_at", BigInteger, nullable=False),
    Column("compute_us", JSON, nullable=False),
    Column("bytes_sent", BigInteger, nullable=False),
    Column("trace", String(256)),
    Column("recorded_at", BigInteger, nullable=False),  # by Kafka's clock
    Column("records", Integer, nullable=False),  # predictions of this sample on the topic
    Column("repeats", Integer, nullable=False),  # those among them that changed nothing
    UniqueConstraint("device_id", "epoch", "seq"),
    Index(None, "recorded_at"),
    Index(  # labels find their samples by it
        "ix_predictions_source",
        "device_id",
        "source_id",
        sqlite_where=_HAS_SOURCE,
        postgresql_where=_HAS_SOURCE,
    ),
)

audits = Table(
    "audits",
    metadata,
    Column("device_id", String(63), primary_key=True),  # of the sample that an early exit has answered
    Column("epoch", String(16), primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("model", String(63), nullable=False),
    Column("bundle", String(64), nullable=False),
    Column("operating_point", String(63), nullable=False),
    Column("exit", Integer, nullable=False),  # the exit that answered
    Column("label", Integer, nullable=False),
    Column("final_exit", Integer, nullable=False),  # the final exit, and what it says
    Column("final_label", Integer, nullable=False),
    Column("final_confidence", Float, nullable=False),
    Column("recorded_at", BigInteger, nullable=False),  # by Kafka's clock
    Column("records", Integer, nullable=False),  # audits of this sample on the topic; the first one counts
    Index(None, "recorded_at"),
)

labels = Table(
    "labels",
    metadata,
    Column("device_id", String(63), primary_key=True),
    Column("epoch", String(16), primary_key=True),  # of the sample; empty: named by source_id
    Column("seq", BigInteger, primary_key=True),  # -1: named by source_id
    Column("source_id", String(256), primary_key=True),  # empty: named by epoch and seq
    Column("model", String(63), primary_key=True),  # empty: of all models
    Column("label", Integer, nullable=False),  # -1: told by name
    Column("name", String(200), nullable=False),  # empty: told by number
    Column("told_at", BigInteger, nullable=False),  # the latest
    Column("recorded_at", BigInteger, nullable=False),  # of the label that counts, by Kafka's clock
    Column("records", Integer, nullable=False),  # labels of this sample on the topic
    Column("repeats", Integer, nullable=False),  # those among them that changed nothing
)

reader_offsets = Table(
    "reader_offsets",
    metadata,
    Column("topic", String(249), primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("next_offset", BigInteger, nullable=False),
)


def now_us() -> int:
    """The time in UTC microseconds, for people; no decision hangs on it."""
    return time.time_ns() // 1000
