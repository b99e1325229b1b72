"""Settings that scores share. Each score adds its own in its file."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field
from torch import Tensor

from dlsr.config import MOST_STEPS, Frozen, TrainingSettings, validated
from dlsr.method.schedule import cosine_alpha_bar, scaled_linear_alpha_bar


class ScorerSettings(Frozen):
    """Settings of a score. A score without settings uses this class as it is."""

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """These settings with changes.

        Raises:
            SettingsError: for an unknown name or a value out of range.
        """
        return validated(type(self), self.model_dump() | dict(changes))


class TrainedSettings(ScorerSettings, TrainingSettings):
    """Settings of a score with a network."""

    width: int | None = Field(
        default=None, ge=2, le=2**16, multiple_of=2, description="Width of the network; twice c if unset."
    )

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """See `ScorerSettings`; a number of epochs that is given holds for small datasets, too."""
        own_epochs = "epochs" in changes and "min_steps" not in changes
        return super().changed({**changes, "min_steps": 0} if own_epochs else changes)


class ResidualMLPSettings(TrainedSettings):
    """Settings of a score whose network is made of residual blocks."""

    blocks: int = Field(default=16, ge=1, le=1000, description="Residual blocks of the network.")


class DiffusionSettings(ResidualMLPSettings):
    """Settings of a score that distorts features and restores them with LFDN. The defaults are the paper's."""

    schedule: Literal["scaled_linear", "cosine"] = Field(default="scaled_linear", description="Noise schedule.")
    T: int = Field(default=100, ge=1, le=10_000, description="Noise levels.")
    draws: int = Field(default=1, ge=1, le=MOST_STEPS, description="Noise draws that a score is averaged over.")

    def alpha_bar(self) -> Tensor:
        """The schedule, shape `(T + 1,)`."""
        return scaled_linear_alpha_bar(self.T) if self.schedule == "scaled_linear" else cosine_alpha_bar(self.T)


SMALL_TRAINING: dict[str, Any] = {
    "epochs": 4,
    "min_steps": 600,
    "batch_size": 256,
    "lr": 6e-4,
    "lr_decay": "cosine",
    "ema_decay": 0.999,
    "patience": 3,
}
"""Training of the presets `default` and `fast`, see docs/design.md."""
