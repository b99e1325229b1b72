"""The base of all scores, and their registry.

A scorer gives each image one score (larger = more OOD) and one for each layer, which tells where the image
is odd. It is a pure function of features and noise, so it can be exported as a graph; the noise is a function of
content digests and the seed (`dlsr.method.noise`), so a score depends on the image, the model and the seed alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import SerializeAsAny, ValidationInfo, field_validator
from torch import Tensor, nn

from dlsr.config import CalibrationMethod, SavedSettings, validated
from dlsr.errors import SettingsError
from dlsr.method.layers import Pooling
from dlsr.method.noise import Digests, batches_with_noise
from dlsr.scorers.settings import ScorerSettings
from dlsr.training.checkpoint import training_key
from dlsr.training.data import Samples
from dlsr.training.log import EpochLog
from dlsr.training.loop import Trainer

LayerScores = tuple[Tensor, Tensor]
"""Scores, shape `(N,)`, and scores of each layer, shape `(N, M)`."""


class Settings(SavedSettings):
    """Resolved settings: everything that decides a detector's scores besides encoder and data."""

    scorer: SerializeAsAny[ScorerSettings]
    """The score's own settings, an instance of its `Settings`."""

    @field_validator("scorer", mode="before")
    @classmethod
    def _of_the_score(cls, value: Any, info: ValidationInfo) -> Any:
        """Settings read from a file become an instance of the score's own class."""
        score = info.data.get("score", "")
        return scorer_of(score).Settings.model_validate(value) if isinstance(value, dict) else value


@dataclass(frozen=True)
class FitData:
    """The features that a score is fitted to, with its settings."""

    settings: Settings
    channels: tuple[int, ...]
    """Dimensions of each layer, M numbers that sum to `c`."""
    training: Samples
    """Features, shape `(N, c)`, on the device to train on."""
    groups: Tensor
    """A whole number for each, shape `(N,)`: images of a group are more alike than they and new ones will be."""
    validation: Tensor
    """Held-out ID features, shape `(V, c)`, on the same device; none if the score does not need them."""
    validation_digests: Digests
    """Their content digests, shape `(V, 16)`."""

    def key(self) -> str:
        """Digest of all that training depends on, by which a checkpoint is known.

        At a constant learning rate a longer training begins as a shorter one, so it continues from its checkpoint.
        """
        constant = getattr(self.settings.scorer, "lr_decay", None) == "constant"
        length = {"epochs", "min_steps"} if constant else set()
        about = f"{self.settings.model_dump_json(exclude={'scorer': length})}\n{self.channels}"
        return training_key(about, self.training, [self.validation])


class Scorer(nn.Module):
    """A score. What it learns are registered parameters and buffers, so `state_dict` and `.to` cover all of it.

    Subclasses are registered with `@register`. They build all modules and buffers in `__init__`, in the shapes that
    `load_state_dict` will fill; a buffer of shape `(0, ..)` gets any number of rows, the same for all such buffers.
    `__init__` is also called on PyTorch's meta device, to learn these shapes, so it cannot compute with values.
    `forward` is converted to a graph that serves all fits with the same settings and channels: it takes what depends
    on the fit from the state dict alone.

    Args:
        settings: an instance of the class's `Settings`.
        channels: dimensions of each layer, M numbers that sum to `c`.
    """

    name: ClassVar[str]
    """By which users choose it."""
    summary: ClassVar[str]
    """One line for the command line's help and the docs."""
    Settings: ClassVar[type[ScorerSettings]] = ScorerSettings
    presets: ClassVar[Mapping[str, ScorerSettings]]
    """Its settings in each preset. The first preset is the one used if only the score is named."""
    shared_network: ClassVar[str | None] = None
    """Scores of one trained network share this name: fitted once, the network serves all of them."""

    needs_validation: ClassVar[bool] = True
    """Whether held-out images decide when its training stops, or what its scores are scaled to.

    If not, these are training images, too."""
    batch: ClassVar[int] = 512
    """At most this many samples are scored at once."""
    noise_vectors: int = 0
    """Vectors of noise that a score needs: K."""
    fewest_rows: int | None = None
    """Fewest rows of its `(0, ..)` buffers for which one graph serves any number of rows; None if none does."""
    left_out: LayerScores | None = None
    """Scores of the training images, each as if it and its group had been left out; NaN for those that were not scored.

    Set by the fit of scores that know them, and not saved.
    """

    def __init__(self, settings: Any, channels: Sequence[int]) -> None:
        super().__init__()
        self.settings = settings
        self.channels = tuple(channels)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        take_rows(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def fit(self, data: FitData, trainer: Trainer) -> list[EpochLog]:
        """Learn what in-distribution features are.

        Args:
            data: features of ID images; of the settings and channels that this scorer was made with.
            trainer: trains networks, with checkpoints and callbacks.

        Returns:
            The losses of each epoch, if there was any.
        """
        raise NotImplementedError

    def leaves_out(self, n: int) -> bool:
        """Whether its fit sets `left_out` for each of `n` training images."""
        return False

    def forward(self, z0: Tensor, noise: Tensor) -> LayerScores:
        """Score `z0`, shape `(N, c)`, with standard normal noise, shape `(N, K, c)`."""
        raise NotImplementedError


MOST_LEFT_OUT = 10_000
"""At most this many images are left out one by one."""

SCORES: dict[str, type[Scorer]] = {}
"""All scores by name."""

PRESETS: Mapping[str, str] = {"default": "local", "fast": "local", "paper": "mfsim"}
"""The score of each preset, unless another is named.

`default`: the settings that measured best, see docs/design.md. `fast`: a smaller model that detects nearly as well.
`paper`: the paper's settings, its code's where the paper is silent.
"""

PRESET_POOLING: Mapping[str, Pooling] = {"default": "mean+std+max", "fast": "mean+std+max", "paper": "mean"}
"""What each preset keeps of the encoder's maps, unless told otherwise."""

S = TypeVar("S", bound=type[Scorer])


def register(scorer: S) -> S:
    """Class decorator that makes a score known by its name: to `Detector`, the command line, `load` and exports."""
    SCORES[scorer.name] = scorer
    return scorer


def resolve(
    preset: str | None = None, score: str | None = None, changes: Mapping[str, Any] | None = None, *, seed: int = 0
) -> Settings:
    """Resolve the settings of a detector: a preset with changes.

    Args:
        preset: a name of `PRESETS`; None for the score's first.
        score: a name of `SCORES`; None for the preset's, by default `local`.
        changes: settings of the score to change, by name; None values keep the preset's.
        seed: of everything random.

    Raises:
        SettingsError: for a name or value that cannot work, with what is allowed.
    """
    if preset is not None and preset not in PRESETS:
        raise SettingsError(f"unknown preset '{preset}'; choose one of {', '.join(PRESETS)}")
    if score is None:
        score = PRESETS[preset or "default"]
    scorer = scorer_of(score)
    if preset is None:
        preset = next(iter(scorer.presets))
    elif preset not in scorer.presets:
        raise SettingsError(f"'{score}' has no preset '{preset}'; choose one of {', '.join(scorer.presets)}")
    given = {name: value for name, value in (changes or {}).items() if value is not None}
    unknown = sorted(given.keys() - scorer.Settings.model_fields.keys())
    if unknown:
        known = ", ".join(scorer.Settings.model_fields) or "none"
        raise SettingsError(f"the score '{score}' has no setting '{unknown[0]}'; its settings are: {known}")
    values = {"preset": preset, "score": score, "seed": seed, "scorer": scorer.presets[preset].changed(given)}
    return validated(Settings, values)


def scorer_of(score: str) -> type[Scorer]:
    """The class of a score. Raises SettingsError for an unknown name."""
    if score not in SCORES:
        raise SettingsError(f"unknown score '{score}'; choose one of {', '.join(SCORES)}")
    return SCORES[score]


def new_scorer(settings: Settings, channels: Sequence[int]) -> Scorer:
    """An unfitted scorer; its initial weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return scorer_of(settings.score)(settings.scorer, channels).eval()


def leaves_out(scorer: Scorer, n: int, method: CalibrationMethod) -> bool:
    """Whether a score that is fitted to `n` images is calibrated by leaving out each of them, see `CalibrationMethod`.

    Raises:
        SettingsError: if that was chosen, and the score cannot do it.
    """
    possible = scorer.leaves_out(n)
    if method == "leave-one-out" and not possible:
        raise SettingsError(
            f"the score '{scorer.name}' cannot be calibrated by leaving out each of {n} images; choose held-out"
        )
    return possible and method != "held-out"


def score_features(scorer: Scorer, z0: Tensor, digests: Digests, seed: int) -> LayerScores:
    """Score any number of features, some at once; their noise is that of their digests and the seed.

    Args:
        scorer: fitted.
        z0: shape `(N, c)`.
        digests: shape `(N, 16)`.
        seed: of the noise.

    Returns:
        Scores, shape `(N,)`, and scores of each layer, shape `(N, M)`.
    """
    return in_batches(scorer, z0, digests, scorer.noise_vectors, seed, scorer.batch)


@torch.inference_mode()
def in_batches(
    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    z0: Tensor,
    digests: Digests,
    noise_vectors: int,
    seed: int,
    size: int,
) -> tuple[Tensor, Tensor]:
    """Apply a function of features and their noise to at most `size` samples at once, and join what it returns.

    Args:
        function: of features, shape `(n, c)`, and their noise, shape `(n, K, c)`.
        z0: shape `(N, c)`.
        digests: shape `(N, 16)`.
        noise_vectors: K.
        seed: of the noise.
        size: n at most.
    """
    parts = []
    for batch, noise in batches_with_noise(digests, seed, noise_vectors, z0.shape[1], size):
        parts.append(function(z0[batch], torch.from_numpy(noise).to(z0.device)))
    return torch.cat([first for first, _ in parts]), torch.cat([second for _, second in parts])


def mean_over_draws(values: Tensor, draws: int) -> Tensor:
    """Mean over draws: `(N * draws, ..)` to `(N, ..)`."""
    return values.reshape(-1, draws, *values.shape[1:]).mean(dim=1)


def take_rows(module: nn.Module, state_dict: Mapping[str, Any], prefix: str) -> None:
    """Give buffers of shape `(0, ..)` as many rows as those of a state dict: only a fit decides how many."""
    for name, buffer in module.named_buffers(recurse=False):
        given = state_dict.get(f"{prefix}{name}")
        empty = buffer.ndim > 0 and len(buffer) == 0
        if empty and isinstance(given, Tensor) and given.shape[1:] == buffer.shape[1:]:
            setattr(module, name, torch.empty_like(given, device=buffer.device))


def in_every_preset(settings: ScorerSettings) -> dict[str, ScorerSettings]:
    """For a score whose settings do not depend on the preset."""
    return dict.fromkeys(PRESETS, settings)


def setting_names() -> tuple[str, ...]:
    """The names of all settings of all scores."""
    return tuple(dict.fromkeys(name for scorer in SCORES.values() for name in scorer.Settings.model_fields))
