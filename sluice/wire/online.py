"""How to learn on: what the REST service, the client and the job all mean by an online job's settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sluice.wire.training import Distillation, Settings, TrainingSettings, Weight


class OnlineSettings(Settings):
    """How to learn on from a live stream, when to tell, what to hold back, and when to propose a new version."""

    batch: int = Field(default=32, ge=1, le=65_536)
    """Most records of the stream in one update; where they come slowly it is fewer."""
    replay: int = Field(default=32, ge=0, le=65_536)
    """Samples seen before that are mixed into each update."""
    buffer: int = Field(default=2000, ge=0, le=1_000_000)
    """Samples that are kept for that, at most; fewer where they would take more than 256 MB."""
    replay_trained_on: bool = True
    """The buffer begins with a fair sample of what the model was trained on, as far as Kafka still has it; else empty,
    and what only that taught is soon forgotten."""
    buffer_kind: Literal["balanced", "reservoir"] = "balanced"
    """Which are kept: of every class about as many, or a fair sample of all that came."""
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    """How steps are taken."""
    learning_rate: float = Field(default=1e-3, gt=0, le=10, allow_inf_nan=False)
    """Size of a step."""
    rate_rises_over: int = Field(default=50, ge=0, le=1_000_000_000)
    """Updates over which the learning rate rises to its size at first: `adam` knows nothing of the gradients yet, and
    its first steps are as long as any. 0: it is there at once."""
    rate_halves_after: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Updates after which the learning rate has fallen to a half, after three times as many to a quarter, and so on
    (rate / (1 + updates / this)); it stays as it is by default."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Of `sgd` and `rmsprop`: the share of the last step that goes into the next."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Share of each weight, times the learning rate, that is taken off in a step."""
    exit_weights: dict[str, Weight] = Field(default={})
    """Weight of an exit's loss in the sum, by name; 1 if not named."""
    distillation: Distillation | None = None
    """Early exits learn from the final one too; not by default."""
    window: int = Field(default=500, ge=10, le=100_000)
    """Labelled records that the accuracy of late is counted over."""
    begin: Literal["after", "beginning", "end"] = "after"
    """Where the topics are read from: what came after the announced stream, all that is there, or what comes now."""
    timeout_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """It is done when no record came for so long; never by default."""
    seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """It is done after so long; never by default."""
    records: int | None = Field(default=None, ge=1)
    """It is done after so many records, or a batch later; never by default."""
    keep: Literal["last", "best"] = "last"
    """Which model is the result when it is done: the last one, or the one whose accuracy of late was the highest since
    the last drift."""
    checkpoint_s: float = Field(default=10.0, ge=0, allow_inf_nan=False)
    """Time between two checkpoints; more where writing one takes long. One is also written when it got better."""
    metrics_s: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    """Time between two entries of metrics; those of old are thinned out."""
    drift: Literal["adwin"] | None = "adwin"
    """How a rise of the error is found: ADWIN (Bifet and Gavaldà, SDM 2007) on the final exit's; or not at all."""
    drift_delta: float = Field(default=0.002, gt=0, lt=1)
    """ADWIN's confidence: the smaller, the surer and the later."""
    on_drift: Literal["both", "rate", "recent", "nothing"] = "both"
    """What follows: `rate`: the learning rate is back where it began; `recent`: what was kept from before the change is
    dropped, in the buffer and of what judges and certifies, if the drift is as bad as `drop_above` says; both, or
    neither."""
    drop_above: float = Field(default=0.5, ge=0, lt=1)
    """Share of the last 64 labelled records that has to be wrong, at a drift or up to 128 records later, before what
    was kept is dropped: who is wrong more often than right knows what is true no more; else the old still holds."""
    held_back: float = Field(default=0.2, ge=0, le=0.9)
    """Share of the stream, in blocks of offsets, that is never trained on: half of it judges, half certifies."""
    block: int = Field(default=32, ge=1, le=100_000)
    """Offsets in one block."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """How sure it has to be that what was learnt is better before it is proposed, however often that is looked at."""
    judged_least: int = Field(default=100, ge=1)
    """Judging records since the last candidate that it takes at least."""
    certifying_least: int = Field(default=500, ge=20)
    """Certifying records that it takes at least; the newest `certifying_most` are used."""
    certifying_most: int = Field(default=4000, ge=20, le=100_000)
    """Certifying records that are used at most."""
    candidate_every_s: float = Field(default=3600.0, ge=0, allow_inf_nan=False)
    """Least time between two candidates, in seconds of learning."""
    bad_most: int = Field(default=0, ge=0, le=2**31 - 1)
    """Records that cannot be read and are left out, each to become a dead letter, in one run of the job."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Dropout, what is drawn of the buffer, and what of the weights the model's source leaves to chance."""

    def training(self) -> TrainingSettings:
        """What of it a training would be told."""
        return TrainingSettings(
            batch=self.batch,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            exit_weights=self.exit_weights,
            distillation=self.distillation,
            seed=self.seed,
        )
