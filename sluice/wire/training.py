"""How to train: what the REST service, the client and the training job all mean by a training's settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class Settings(BaseModel):
    """Base: strict, and an attribute's docstring is its description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class EarlyStopping(Settings):
    """End when an exit learns no more, judged by samples that are set aside from the training part.

    The stream's validation part is not asked: thresholds are certified on it later, so it may choose nothing.
    """

    patience: int = Field(default=5, ge=1, le=10_000)
    """Epochs in a row without improvement after which training ends."""
    exit: str | None = None
    """Name of the exit that is judged; the final one by default."""
    metric: Literal["loss", "accuracy"] = "loss"
    """What is judged: the mean cross entropy in nats, or the share of right answers."""
    share: float = Field(default=0.1, gt=0, lt=1)
    """Share of every class of the training part that is set aside for this, and not trained on."""
    restore_best: bool = True
    """Whether the model is that of the best epoch, not of the last."""


class Distillation(Settings):
    """Early exits learn from the final one too (Phuong and Lampert, Distillation-Based Training for Multi-Exit
    Architectures, ICCV 2019)."""

    weight: float = Field(default=0.5, ge=0, le=1)
    """Share of it in the loss of an early exit; the rest is the labels' cross entropy."""
    temperature: float = Field(default=3.0, gt=0, le=100)
    """Logits are divided by it before the exits are compared: the higher, the more wrong classes count."""


class TrainingSettings(Settings):
    """How to train."""

    epochs: int = Field(default=30, ge=1, le=10_000)
    """Times that every sample is seen; with `steps` not heeded."""
    steps: int | None = Field(default=None, ge=1, le=100_000_000)
    """Batches to train on in all, instead of whole epochs."""
    batch: int = Field(default=32, ge=1, le=65_536)
    """Samples in one step."""
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    """How steps are taken."""
    learning_rate: float = Field(default=1e-3, gt=0, le=10, allow_inf_nan=False)
    """Size of a step."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Of `sgd` and `rmsprop`: the share of the last step that goes into the next."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Share of each weight, times the learning rate, that is taken off in a step."""
    early_stopping: EarlyStopping | None = None
    """End before all epochs are done; not by default."""
    class_weights: Literal["balanced"] | dict[str, Weight] | None = None
    """Weight of a sample in the loss by its label (its name, or its number); 1 if not named. `balanced`: all classes
    count alike, whatever their numbers of samples."""
    top_k: int | None = Field(default=None, ge=2, le=1000)
    """Tell also how often the right label is among so many likeliest, as `top_k`."""
    exit_weights: dict[str, Weight] = {}
    """Weight of an exit's loss in the sum, by name; 1 if not named."""
    distillation: Distillation | None = None
    """Early exits learn from the final one too; not by default."""
    bad_most: int = Field(default=0, ge=0, le=2**31 - 1)
    """Records that cannot be read and are left out, each to become a dead letter; one more fails the training."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Order of the samples, dropout, and what of the weights the model's source leaves to chance."""
