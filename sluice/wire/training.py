"""How to train: what the REST service, the client and the training job all mean by a training's settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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


class PseudoLabels(Settings):
    """Learn from samples without a label too: round by round, those that the model itself is sure of get its answer as
    their label.

    Self-training (Scudder, Probability of Error of Some Adaptive Pattern-Recognition Machines, IEEE Transactions on
    Information Theory 11, 1965), with labels made anew in each round and a weight of their own (Lee, Pseudo-Label,
    ICML 2013 workshop on challenges in representation learning).
    """

    rounds: int = Field(default=3, ge=1, le=20)
    """Rounds after a first one on the labels alone; each goes on from the weights of the one before, as long."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """How probable its answer has to be for a sample to be labelled, at the temperature that fits what is set aside."""
    exit: str | None = None
    """Name of the exit that labels; the final one by default."""
    most_per_class: int | None = Field(default=None, ge=1, le=2**31 - 1)
    """So many samples of a class are labelled at most in a round, the surest ones: no class crowds out the others."""
    weight: float = Field(default=0.5, ge=0, le=100)
    """Weight in the loss of a sample that was labelled so, where one with a true label has 1."""


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
    pseudo_labels: PseudoLabels | None = None
    """Learn from samples without a label too; not by default. With early stopping, which judges the rounds."""
    bad_most: int = Field(default=0, ge=0, le=2**31 - 1)
    """Records that cannot be read and are left out, each to become a dead letter; one more fails the training."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Order of the samples, dropout, and what of the weights the model's source leaves to chance."""

    @model_validator(mode="before")
    @classmethod
    def _judged(cls, given: Any) -> Any:
        """Rounds are judged by what early stopping sets aside, so it is there with them."""
        if isinstance(given, dict) and given.get("pseudo_labels") is not None and given.get("early_stopping") is None:
            return given | {"early_stopping": {}}
        return given
