"""Restoration error against the error to expect.

Two things are added to the paper's LFDN. What a Gaussian can restore is restored in closed form (a Wiener filter), so
that the network learns only what a Gaussian misses. And beside `z0` the network predicts how large the error of each
layer will be, from the distorted features alone, that is from what is still visible of the image. An image that
is restored worse than images that look like it usually are is out of distribution.

Features are in the coordinates of `dlsr.scorers.gaussian`, in which errors can be measured in units of what a Gaussian
would leave: at `t = T` nothing is left of the image, and the error is its Mahalanobis distance.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from dlsr.errors import SettingsError
from dlsr.method.diffusion import check_steps, distort
from dlsr.method.lfdn import LFDN
from dlsr.method.noise import Digests
from dlsr.method.scores import layer_means
from dlsr.scorers.base import (
    FitData,
    LayerScores,
    Scorer,
    in_batches,
    mean_over_draws,
    register,
    score_features,
)
from dlsr.scorers.gaussian import Gaussian
from dlsr.scorers.settings import SMALL_TRAINING, DiffusionSettings
from dlsr.training.log import EpochLog
from dlsr.training.loop import Draws, Trainer

TINY = 1e-6
"""Keeps logarithms and divisions finite."""


class ResidualSettings(DiffusionSettings):
    """Settings of `ResidualScorer`."""

    t: int = Field(default=80, description="Time that features are distorted to, and restored from in one step.")
    expected_error_weight: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Weight of the expected log error: 0 for the error itself, 1 for the ratio.",
    )
    expected_error_quantile: float = Field(
        default=0.95, gt=0, le=1, description="The expected error is capped at this quantile of held-out ID images."
    )

    @field_validator("t", mode="before")
    @classmethod
    def _single(cls, value: Any) -> Any:
        value = value.split(",") if isinstance(value, str) else value
        if isinstance(value, Sequence):
            if len(value) != 1:
                raise SettingsError("the residual score restores in one step: give a single t")
            return value[0]
        return value

    @model_validator(mode="after")
    def _t_fits(self) -> "ResidualSettings":
        check_steps((self.t,), self.T)
        return self


_DEFAULT = ResidualSettings(schedule="cosine", width=256, blocks=1, draws=4, **SMALL_TRAINING)


@register
class ResidualScorer(Scorer):
    """Restoration error against the error to expect.

    A layer's score is `log error - weight * log expected error`, averaged over draws and standardised on held-out
    ID features. The expected error is capped at its 95th percentile on held-out ID images. An image's score is the mean
    over layers, weighted by the root of their dimensions: the mean of `c_m` squares is steadier the more there are.
    """

    name = "residual"
    summary = "restoration error against the error to expect"
    Settings = ResidualSettings
    presets: ClassVar = {
        "default": _DEFAULT,
        "fast": _DEFAULT.model_copy(update={"width": 64}),
        "paper": ResidualSettings(),
    }

    settings: ResidualSettings
    alpha_bar: Tensor
    ceiling: Tensor
    location: Tensor
    spread: Tensor
    weights: Tensor

    def __init__(self, settings: ResidualSettings, channels: Sequence[int]) -> None:
        super().__init__(settings, channels)
        c, layers = sum(channels), len(channels)
        self.lfdn = LFDN(c, settings.width or 2 * c, settings.blocks, outputs=c + layers)
        # Starting at the Gaussian's own restoration: training can only add to it.
        nn.init.zeros_(self.lfdn.linear_out.weight)
        nn.init.zeros_(self.lfdn.linear_out.bias)
        self.gaussian = Gaussian(c)
        self.noise_vectors = settings.draws
        self.register_buffer("ceiling", torch.full((layers,), torch.inf))
        self.register_buffer("location", torch.zeros(layers))
        self.register_buffer("spread", torch.ones(layers))
        weights = torch.tensor(self.channels).sqrt()
        self.register_buffer("weights", weights / weights.sum(), persistent=False)
        self.register_buffer("alpha_bar", settings.alpha_bar(), persistent=False)

    def fit(self, data: FitData, trainer: Trainer) -> list[EpochLog]:
        """See `Scorer`."""
        self.gaussian.fit(data.training)
        training, validation = data.training.map(self.gaussian.coordinates), self.gaussian.coordinates(data.validation)
        state = trainer.train(self.lfdn, training, validation, self.loss, self.settings, data.key)
        self.lfdn.load_state_dict(state.best)
        self.standardise(data.validation, data.validation_digests, data.settings.seed)
        return state.log

    def loss(self, x0: Tensor, draws: Draws) -> Tensor:
        """Eq. 4 plus the squared error of the expected log errors, both means: `x0` of shape `(N, c)` to `()`."""
        t = draws.integers(1, len(self.alpha_bar))
        xt = distort(x0, t, self.alpha_bar, draws.normal(x0.shape[1]))
        signal = self.alpha_bar[t][:, None]
        x0_hat, expected = self.restored(self.lfdn(xt, t), xt, signal)
        with torch.no_grad():
            actual = self._log_errors(x0, x0_hat, signal)
        return F.mse_loss(x0_hat, x0) + F.mse_loss(expected, actual)

    def forward(self, z0: Tensor, noise: Tensor) -> LayerScores:
        """See `Scorer`."""
        actual, expected = self.log_errors(z0, noise)
        raw = actual - self.settings.expected_error_weight * expected.minimum(self.ceiling)
        layers = (raw - self.location) / self.spread
        return layers @ self.weights, layers

    def log_errors(self, z0: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actual and expected log errors of each layer, means over draws, each of shape `(N, M)`."""
        t, draws = self.settings.t, self.settings.draws
        x0 = self.gaussian.coordinates(z0).repeat_interleave(draws, dim=0)
        xt = distort(x0, t, self.alpha_bar, noise.reshape(-1, z0.shape[1]))
        x0_hat, expected = self.restored(self.lfdn.at_time(xt, t), xt, self.alpha_bar[t])
        actual = self._log_errors(x0, x0_hat, self.alpha_bar[t])
        return mean_over_draws(actual, draws), mean_over_draws(expected, draws)

    def restored(self, prediction: Tensor, xt: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
        """The restored `x0`, shape `(N, c)`, and its expected log errors, `(N, M)`, from LFDN's output for `xt`."""
        correction, expected = torch.split(prediction, [sum(self.channels), len(self.channels)], dim=-1)
        x0_hat = self.gaussian.wiener(xt, signal) + self.gaussian.posterior_std(signal) * correction
        return x0_hat, expected

    def _log_errors(self, x0: Tensor, x0_hat: Tensor, signal: Tensor) -> Tensor:
        """Log of each layer's mean squared error in units of a Gaussian's: `(.., c)` twice to `(.., M)`."""
        whitened = (x0 - x0_hat) / self.gaussian.posterior_std(signal)
        squares = self.gaussian.per_feature(whitened).square()
        return (layer_means(squares, self.channels) + TINY).log()

    def standardise(self, z0: Tensor, digests: Digests, seed: int) -> None:
        """Cap the expected error and standardise the layers on held-out ID features, shape `(n, c)`."""
        self.location, self.spread = torch.zeros_like(self.location), torch.ones_like(self.spread)
        _, expected = in_batches(self.log_errors, z0, digests, self.noise_vectors, seed, self.batch)
        self.ceiling = expected.quantile(self.settings.expected_error_quantile, dim=0)
        _, layers = score_features(self, z0, digests, seed)
        self.location = layers.mean(dim=0)
        self.spread = layers.std(dim=0, correction=0).clamp(min=TINY)
