"""Validated settings: of training, and the arguments of a detector."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator

from dlsr.errors import SettingsError


class Frozen(BaseModel):
    """Base of all settings: immutable, and unknown names are refused."""

    # Built at its first use: scoring needs few of all settings.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


CalibrationMethod = Literal["auto", "held-out", "leave-one-out"]
"""Where the scores of ID images come from that decide thresholds and p-values.

`held-out`: a tenth of the images, which the score is not fitted to. `leave-one-out`: all images, each scored as if it
had been left out of the fit, which some scores can do. `auto`: the latter where it is possible.
"""

AUTO = "auto"
"""Of `DetectorConfig.group_by`: exact and near copies are found and grouped."""
NONE = "none"
"""Of `DetectorConfig.group_by`: each image is a group of its own."""
GIVEN = "given"
"""In place of `DetectorConfig.group_by`: groups were given to `fit`."""

MOST_STEPS = 1000
"""At most this many steps restore an image, over all draws: each takes time and memory."""

M = TypeVar("M", bound=Frozen)


def validated(kind: type[M], values: Mapping[str, Any]) -> M:
    """An instance of `kind`.

    Raises:
        SettingsError: for the first value that cannot work, in one line.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "settings"
        given = " ".join(repr(first["input"]).split())[:80]
        raise SettingsError(f"{name}: {first['msg']}, got {given}") from error


def _split(value: object) -> object:
    """`70`, `"9,6,3"` and `[9, 6, 3]` as a sequence."""
    if isinstance(value, str):
        return value.split(",")
    return (value,) if isinstance(value, int) else value


WholeNumbers = Annotated[tuple[int, ...], BeforeValidator(_split)]
"""Whole numbers: one, several, or text with commas between them."""


class TrainingSettings(Frozen):
    """How a network is trained (Algorithm 1, section 4.2).

    The defaults are the paper's, or its code's, but for `patience`, which is ours.
    """

    epochs: int = Field(default=150, ge=1, description="Maximum number of epochs.")
    min_steps: int = Field(default=0, ge=0, description="Small datasets get more epochs, to reach this many steps.")
    batch_size: int = Field(default=128, ge=1, description="Samples in a training step.")
    lr: float = Field(default=1e-4, gt=0, description="Learning rate.")
    lr_decay: Literal["constant", "cosine"] = Field(default="constant", description="How the learning rate falls.")
    weight_decay: float = Field(default=1e-4, ge=0, description="Weight decay of AdamW.")
    ema_decay: float = Field(default=0.9999, ge=0, lt=1, description="Decay of the averaged weights.")
    patience: int = Field(default=10, ge=1, description="Epochs without a lower validation loss before it stops.")
    training_precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Of matrix products in training; auto: bfloat16 if the hardware supports it."
    )


class OpenSettings(BaseModel):
    """Settings of a score that is not loaded: any names and values."""

    model_config = ConfigDict(frozen=True, extra="allow")


class SavedSettings(Frozen):
    """Resolved settings as a model holds them: everything that decides its scores besides encoder and data."""

    preset: str
    score: str
    """Name of the score."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    scorer: SerializeAsAny[Frozen] | OpenSettings
    """The score's own settings."""


class DetectorConfig(Frozen):
    """The arguments of `Detector` that decide its scores.

    It is saved whole in each model directory, and read back without loss.
    """

    encoder: str = "efficientnet_lite0"
    score: str | None = None
    preset: str | None = None
    stages: Annotated[WholeNumbers, Field(min_length=1)] | None = None
    weights: str | None = None
    decoding: str = "draft"
    resizer: str = "auto"
    precision: str = "float32"
    pooling: str | None = None
    false_alarm_rate: float = 0.05
    calibration: CalibrationMethod = "auto"
    confidence: float | None = None
    group_by: str = AUTO
    seed: int = Field(default=0, ge=0, lt=2**31)
    thumbnails: int = Field(default=0, ge=0)
    maps: bool = False
    settings: dict[str, Any] = {}
    """Settings of the score, by name."""

    @field_validator("settings")
    @classmethod
    def _sequences_are_tuples(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """JSON turns tuples into lists."""
        return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}

    @field_validator("false_alarm_rate")
    @classmethod
    def _is_a_rate(cls, rate: float) -> float:
        if not 0 < rate < 1:
            raise SettingsError(f"the false-alarm rate must lie between 0 and 1, got {rate:g}")
        return rate

    @field_validator("confidence")
    @classmethod
    def _is_a_probability(cls, confidence: float | None) -> float | None:
        if confidence is not None and not 0 < confidence < 1:
            raise SettingsError(f"the confidence must lie between 0 and 1, got {confidence:g}")
        return confidence

    def arguments(self) -> dict[str, Any]:
        """The arguments of `Detector` that give this config again."""
        named = {name: getattr(self, name) for name in type(self).model_fields if name != "settings"}
        return named | self.settings
