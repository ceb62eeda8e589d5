"""Settings of a stage: `STAGE_…` in the environment, or a TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from sluice.daemon.settings import RoomSettings, Seconds, Token, Url
from sluice.doors.kafka import KafkaCluster
from sluice.wire.messages import MAX_MESSAGE_BYTES
from sluice.wire.signing import PublicKey


class StageSettings(RoomSettings):
    """A fog or cloud stage."""

    env_prefix = "STAGE_"

    tier: Literal["fog", "cloud"]
    """The tier whose offloads this stage works on."""
    kafka: KafkaCluster = KafkaCluster()
    """The Kafka cluster (`STAGE_KAFKA__BOOTSTRAP`, `STAGE_KAFKA__OPTIONS`)."""
    models: list[str] = Field(default=[])
    """Models to work on; empty: every model that has a topic for this tier."""
    cloud_url: Url = "http://127.0.0.1:8080"
    """The control plane, which bundles are fetched from."""
    token: Token | None = None
    """Bearer token for the control plane."""
    cloud_ca: str | None = None
    """File of the certificate authorities that the control plane's certificate is checked by, for one of your own;
    unset: those that browsers trust."""
    public_keys: list[PublicKey] = Field(default=[], max_length=2)
    """Ed25519 public keys (base64) of which one must have signed a bundle; empty: the control plane is trusted."""
    data: Path = Path("stage-data")
    """Folder of fetched bundles; may be emptied at any time while the stage is stopped."""
    bundles_most: int = Field(default=32, ge=1)
    """Largest number of bundles in memory; the one that was not used for the longest time goes, and comes back from the
    folder."""
    bundle_idle_s: Seconds = Field(default=3600.0, gt=0)
    """A bundle that was not used for this time is let go from memory."""
    bundle_keep_s: Seconds = Field(default=14 * 24 * 3600.0, gt=0)
    """A bundle that was not used for this time is removed from the folder; longer than offloads lie in Kafka. Should
    one come all the same, its bundle is fetched again."""
    batch_most: int = Field(default=64, ge=1, le=4096)
    """Largest number of records taken at once."""
    poll_timeout_s: Seconds = Field(default=0.1, gt=0)
    """Longest wait for a first record before other duties are looked at."""
    batch_wait_s: Seconds = Field(default=0.0, ge=0, le=1)
    """How long to wait for a batch to fill after its first record; 0: what is there makes the batch."""
    delivery: Literal["at-least-once", "exactly-once"] = "at-least-once"
    """`exactly-once`: outcomes and offsets are one Kafka transaction, and whoever reads committed records sees each
    outcome once. `at-least-once` is a little faster; after a crash some outcomes come again."""
    transaction_interval_s: Seconds = Field(default=0.04, gt=0)
    """exactly-once: longest time that a transaction is held open for more records; without more it ends at once."""
    transaction_timeout_s: Seconds = Field(default=10.0, ge=1, le=24 * 3600)
    """exactly-once: after it Kafka itself ends the transaction of a process that is gone, and readers go on. Batches
    that take a good part of it, or longer, have a transaction of their own, which begins when they are through."""
    transactional_id: str | None = None
    """exactly-once: a name that no other process has. One that is the same after a restart ends at once what the
    process left open; unset: a random one."""
    commit_interval_s: Seconds = Field(default=0.1, ge=0)
    """at-least-once: least time between two commits of offsets; a crash repeats what was done since the last."""
    topics_interval_s: Seconds = Field(default=2.0, gt=0)
    """Time between two looks for topics of new models."""
    hold_s: Seconds = Field(default=10.0, gt=0)
    """How long a topic partition rests before a record of an unknown schema is tried again."""
    message_limit_bytes: int = Field(default=MAX_MESSAGE_BYTES, ge=1000)
    """Largest record that is decoded; anything larger is a dead letter."""
    audit_share: float = Field(default=0.01, ge=0, le=1)
    """Share of the samples answered by an early exit of this stage that go on all the same, to see whether it still
    holds."""
    threads: int = Field(default=1, ge=1)
    """Threads of the TFLite runtime for each segment."""
