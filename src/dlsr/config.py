"""What a detector is set to, validated; and the presets `default`, `fast` and `paper`."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from dlsr.errors import SettingsError
from dlsr.method.diffusion import check_steps
from dlsr.method.schedule import cosine_alpha_bar, scaled_linear_alpha_bar

ScoreName = Literal["residual", "mfsim", "mse", "lr", "mahalanobis", "knn", "autoencoder", "feature-vae"]
SCORES: tuple[ScoreName, ...] = get_args(ScoreName)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScheduleSettings(_Frozen):
    """How noise grows with time, see `dlsr.method.schedule`."""

    kind: Literal["scaled_linear", "cosine"] = "scaled_linear"
    T: int = Field(default=100, ge=1)

    def alpha_bar(self) -> Tensor:
        """The schedule, shape `(T + 1,)`."""
        return scaled_linear_alpha_bar(self.T) if self.kind == "scaled_linear" else cosine_alpha_bar(self.T)


class NetworkSettings(_Frozen):
    """Size of LFDN (section 4.2)."""

    width: int | None = Field(default=None, ge=2, multiple_of=2)
    """Width of the blocks; None for the paper's, twice the dimension of the features."""
    blocks: int = Field(default=16, ge=1)


class TrainingSettings(_Frozen):
    """How LFDN is trained (Algorithm 1, section 4.2)."""

    epochs: int = Field(default=150, ge=1)
    min_steps: int = Field(default=0, ge=0)
    """A set so small that `epochs` are fewer steps than this gets more epochs."""
    batch_size: int = Field(default=128, ge=1)
    lr: float = Field(default=1e-4, gt=0)
    lr_decay: Literal["constant", "cosine"] = "constant"
    weight_decay: float = Field(default=1e-4, ge=0)
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    patience: int = Field(default=10, ge=1)
    """Epochs without a lower validation loss after which training stops."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products; `auto` is bfloat16 where the hardware multiplies in it. Weights are float32 always."""


class RestorationSettings(_Frozen):
    """How features are distorted and restored at test time (section 3.2)."""

    steps: tuple[int, ...] = (3, 2, 1)
    """Falling times at which the network is asked; features are distorted to the first."""
    eta: float = Field(default=1.0, ge=0, le=1)
    draws: int = Field(default=1, ge=1)
    """Independent noise draws over which a score is averaged."""


class Settings(_Frozen):
    """Everything that decides a detector's scores besides encoder and data."""

    preset: str
    score: ScoreName
    schedule: ScheduleSettings = ScheduleSettings()
    network: NetworkSettings = NetworkSettings()
    training: TrainingSettings = TrainingSettings()
    restoration: RestorationSettings = RestorationSettings()
    expected_error_weight: float = Field(default=1.0, ge=0, le=1)
    """How much of the expected log error the residual score takes off: 0 for the error itself, 1 for their ratio."""
    expected_error_quantile: float = Field(default=0.95, gt=0, le=1)
    """An image is expected to err no more than this share of held-out ID images are."""
    neighbours: int = Field(default=50, ge=1)
    """`k` of the knn score."""
    references: int = Field(default=20_000, ge=1)
    """At most so many training images are kept for the knn score."""
    latent: int = Field(default=128, ge=1)
    """Dimension of the feature VAE's code."""
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _steps_fit(self) -> "Settings":
        check_steps(self.restoration.steps, self.schedule.T)
        if self.score == "residual" and len(self.restoration.steps) > 1:
            raise SettingsError("the residual score restores in one step: give a single t")
        return self


_DEFAULT = Settings(
    preset="default",
    score="residual",
    schedule=ScheduleSettings(kind="cosine"),
    network=NetworkSettings(width=256, blocks=1),
    training=TrainingSettings(
        epochs=4, min_steps=600, batch_size=256, lr=6e-4, lr_decay="cosine", ema_decay=0.999, patience=3
    ),
    restoration=RestorationSettings(steps=(80,), eta=0.0, draws=4),
)

PRESETS = {
    "default": _DEFAULT,
    "fast": _DEFAULT.model_copy(update={"preset": "fast", "network": NetworkSettings(width=64, blocks=1)}),
    "paper": Settings(preset="paper", score="mfsim"),
}
"""`default`: what measured best, see docs/design.md. `fast`: the smallest network within 0.2 points of the paper's
size. `paper`: the paper's setting, its code's where it is silent."""

PRESET_OF_SCORE: Mapping[ScoreName, str] = {
    "residual": "default",
    "mahalanobis": "default",
    "knn": "default",
    "mfsim": "paper",
    "mse": "paper",
    "lr": "paper",
    "autoencoder": "paper",
    "feature-vae": "paper",
}


def resolve(
    preset: str | None = None,
    score: str | None = None,
    *,
    t: int | Sequence[int] | None = None,
    draws: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    width: int | None = None,
    blocks: int | None = None,
    neighbours: int | None = None,
    seed: int = 0,
) -> Settings:
    """A preset with changes; None keeps the preset's value.

    Args:
        preset: `default`, `fast` or `paper`; None for the one that the score belongs to.
        score: one of `SCORES`.
        t: the time to distort to and restore from, or all falling times of the restoration.
        draws: noise draws to average over.
        epochs: most epochs of training, however small the set.
        batch_size: of training.
        lr: learning rate.
        width: of LFDN's blocks.
        blocks: of LFDN.
        neighbours: `k` of the knn score.
        seed: of everything random.

    Raises:
        SettingsError: for a name or value that cannot work, with what is allowed.
    """
    if score is not None and score not in SCORES:
        raise SettingsError(f"unknown score '{score}'; choose one of {', '.join(SCORES)}")
    if preset is None:
        preset = next((PRESET_OF_SCORE[name] for name in SCORES if name == score), "default")
    if preset not in PRESETS:
        raise SettingsError(f"unknown preset '{preset}'; choose one of {', '.join(PRESETS)}")
    base = PRESETS[preset].model_dump()
    steps = None if t is None else (t,) if isinstance(t, int) else tuple(t)
    changes: dict[str, dict[str, Any]] = {
        "training": {"epochs": epochs, "batch_size": batch_size, "lr": lr},
        "network": {"width": width, "blocks": blocks},
        "restoration": {"steps": steps, "draws": draws},
    }
    if epochs is not None:
        changes["training"]["min_steps"] = 0
    for part, values in changes.items():
        base[part] |= {name: value for name, value in values.items() if value is not None}
    base |= {k: v for k, v in {"score": score, "neighbours": neighbours}.items() if v is not None}
    try:
        return Settings.model_validate(base | {"seed": seed})
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(f"{first['loc'][-1] if first['loc'] else 'settings'}: {first['msg']}") from error
