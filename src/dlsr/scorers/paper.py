"""The paper's three scores of one network (section 3.3): MSE, likelihood regret (LR) and MFsim."""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from dlsr.config import MOST_STEPS, WholeNumbers
from dlsr.errors import SettingsError
from dlsr.method.diffusion import check_steps, distort, restore
from dlsr.method.lfdn import LFDN
from dlsr.method.scores import layer_means, layer_similarities, likelihood_regret, mfsim, mse
from dlsr.scorers.base import FitData, LayerScores, Scorer, mean_over_draws, register
from dlsr.scorers.settings import SMALL_TRAINING, DiffusionSettings
from dlsr.training.log import EpochLog
from dlsr.training.loop import Draws, Trainer


class PaperSettings(DiffusionSettings):
    """Settings of the paper's scores."""

    t: WholeNumbers = Field(
        default=(3, 2, 1), description="Falling times of the restoration; features are distorted to the first."
    )
    eta: float = Field(default=1.0, ge=0, le=1, description="0 for deterministic DDIM steps, 1 for ancestral ones.")

    @model_validator(mode="after")
    def _t_fits(self) -> "PaperSettings":
        check_steps(self.t, self.T)
        if self.draws * len(self.t) > MOST_STEPS:
            raise SettingsError(
                f"{self.draws} draws of {len(self.t)} steps are more than {MOST_STEPS}; lower draws, or give fewer t"
            )
        return self


_SMALL = PaperSettings(schedule="cosine", width=256, blocks=1, t=(80,), eta=0.0, draws=4, **SMALL_TRAINING)


class PaperScorer(Scorer):
    """Base of the three scores: distorts `z0`, restores it by DDIM (Eq. 1-3), and compares; averaged over draws."""

    Settings = PaperSettings
    presets: ClassVar = {
        "paper": PaperSettings(),
        "default": _SMALL,
        "fast": _SMALL.model_copy(update={"width": 64}),
    }
    shared_network = "lfdn"

    settings: PaperSettings
    alpha_bar: Tensor

    def __init__(self, settings: PaperSettings, channels: Sequence[int]) -> None:
        super().__init__(settings, channels)
        c = sum(channels)
        self.lfdn = LFDN(c, settings.width or 2 * c, settings.blocks)
        # The network after the first epoch, for LR. Until a fit it shares the other's weights, which saves memory.
        with torch.device("meta"):
            self.initial = LFDN(c, settings.width or 2 * c, settings.blocks)
        self.initial.load_state_dict(self.lfdn.state_dict(), assign=True)
        self.register_buffer("alpha_bar", settings.alpha_bar(), persistent=False)
        # One noise vector distorts, one more goes with each DDIM step but the last.
        self.noise_vectors = settings.draws * len(settings.t)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.initial = copy.deepcopy(self.initial)
        super()._load_from_state_dict(*arguments)

    def fit(self, data: FitData, trainer: Trainer) -> list[EpochLog]:
        """See `Scorer`."""
        state = trainer.train(self.lfdn, data.training, data.validation, self.loss, self.settings, data.key)
        self.lfdn.load_state_dict(state.best)
        device = data.validation.device
        self.initial.load_state_dict({name: tensor.to(device) for name, tensor in state.initial.items()}, assign=True)
        return state.log

    def loss(self, z0: Tensor, draws: Draws) -> Tensor:
        """Eq. 4 as a mean over elements, at uniformly drawn times (Algorithm 1): shape `(N, c)` to `()`."""
        return restoration_loss(self.lfdn, self.alpha_bar, z0, draws)

    def forward(self, z0: Tensor, noise: Tensor) -> LayerScores:
        """See `Scorer`."""
        draws = self.settings.draws
        scores, layers = self.compare(z0.repeat_interleave(draws, dim=0), noise)
        return mean_over_draws(scores, draws), mean_over_draws(layers, draws)

    def compare(self, z0: Tensor, noise: Tensor) -> LayerScores:
        """Scores of features, one draw each: shape `(N * draws, c)` to `(N * draws,)` and `(N * draws, M)`."""
        raise NotImplementedError

    def restored(self, network: LFDN, z0: Tensor, noise: Tensor) -> Tensor:
        """Distort and restore features, one draw each: shape `(N * draws, c)` to the same shape."""
        times = self.settings.t
        by_step = noise.reshape(-1, len(times), z0.shape[1]).transpose(0, 1)
        zt = distort(z0, times[0], self.alpha_bar, by_step[0])
        return restore(network.at_time, zt, times, self.alpha_bar, self.settings.eta, by_step[1:])


@register
class MFsimScorer(PaperScorer):
    """Negative mean cosine similarity of the layers with their restoration (Algorithm 2)."""

    name = "mfsim"
    summary = "the paper's layer-wise cosine similarity with the restoration"

    def compare(self, z0: Tensor, noise: Tensor) -> LayerScores:
        """See `PaperScorer`."""
        similarities = layer_similarities(z0, self.restored(self.lfdn, z0, noise), self.channels)
        return mfsim(similarities), -similarities


@register
class MSEScorer(PaperScorer):
    """Mean squared restoration error (Algorithm 3)."""

    name = "mse"
    summary = "the paper's mean squared restoration error"

    def compare(self, z0: Tensor, noise: Tensor) -> LayerScores:
        """See `PaperScorer`."""
        restored = self.restored(self.lfdn, z0, noise)
        return mse(z0, restored), layer_means((z0 - restored).square(), self.channels)


@register
class LRScorer(PaperScorer):
    """Likelihood regret: how much training lowered the restoration error (Algorithm 4)."""

    name = "lr"
    summary = "the paper's likelihood regret: how much training lowered the restoration error"

    def compare(self, z0: Tensor, noise: Tensor) -> LayerScores:
        """See `PaperScorer`."""
        before, after = (self.restored(network, z0, noise) for network in (self.initial, self.lfdn))
        layers_before, layers_after = (
            layer_means((z0 - restored).square(), self.channels) for restored in (before, after)
        )
        return likelihood_regret(z0, before, after), layers_before - layers_after


def restoration_loss(network: LFDN, alpha_bar: Tensor, z0: Tensor, draws: Draws) -> Tensor:
    """LFDN's loss on features `z0`, shape `(N, c)`, at uniformly drawn times (Algorithm 1, Eq. 4): shape `()`."""
    t = draws.integers(1, len(alpha_bar))
    return F.mse_loss(network(distort(z0, t, alpha_bar, draws.normal(z0.shape[1])), t), z0)
