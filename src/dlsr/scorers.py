"""What turns features into scores: one small class for each way, all with the same two methods.

A scorer gives each image one score (larger = more OOD) and one for each layer, which tells where the image
is odd. Scores are functions of features, seed and content digests alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from dlsr.diffusion import Denoiser, distort, restore
from dlsr.expected_error import ErrorAwareLFDN
from dlsr.gaussian import Gaussian
from dlsr.lfdn import LFDN
from dlsr.noise import noise_for
from dlsr.scores import layer_means, layer_similarities, likelihood_regret, mfsim, mse
from dlsr.settings import ScoreName, Settings

ROWS_AT_ONCE = 512

Digests = NDArray[np.uint8]
LayerScores = tuple[Tensor, Tensor]
"""Scores, shape `(N,)`, and scores of each layer, shape `(N, M)`."""


class Scorer(Protocol):
    """Scores features."""

    def score(self, z0: Tensor, digests: Digests) -> LayerScores:
        """Score `z0`, shape `(N, c)`, with content digests, shape `(N, 16)`."""

    def tensors(self) -> dict[str, Tensor]:
        """All that was learned, for saving."""


class MahalanobisScorer:
    """Mean squared whitened feature: the squared Mahalanobis distance over `c` (Lee et al. 2018, without classes)."""

    def __init__(self, gaussian: Gaussian, channels: Sequence[int]) -> None:
        self._gaussian = gaussian
        self._channels = channels

    def score(self, z0: Tensor, digests: Digests) -> LayerScores:
        """See `Scorer`."""
        squares = self._gaussian.whiten(z0).square()
        return squares.mean(dim=1), layer_means(squares, self._channels)

    def tensors(self) -> dict[str, Tensor]:
        """See `Scorer`."""
        return _prefixed("gaussian", self._gaussian.tensors())


class KnnScorer:
    """Distance to the k-th nearest training image (Sun et al. 2022, on `z0`); a layer's share is its own distance."""

    def __init__(self, references: Tensor, neighbours: int, channels: Sequence[int]) -> None:
        self._references = references
        self._neighbours = min(neighbours, len(references))
        self._channels = channels
        self._search = NearestNeighbors(n_neighbors=self._neighbours, algorithm="brute").fit(references.cpu().numpy())

    def score(self, z0: Tensor, digests: Digests) -> LayerScores:
        """See `Scorer`."""
        distances, indices = self._search.kneighbors(z0.cpu().numpy())
        nearest = self._references[torch.from_numpy(indices[:, -1]).to(z0.device)]
        score = torch.from_numpy(distances[:, -1]).to(z0)
        return score, layer_means((z0 - nearest).square(), self._channels).sqrt()

    def tensors(self) -> dict[str, Tensor]:
        """See `Scorer`."""
        return {"references": self._references}


class PaperScorer:
    """MSE, LR and MFsim of section 3.3, averaged over draws.

    Args:
        score: which of the three.
        network: trained.
        initial: the network after the first epoch, for LR.
        settings: of the detector.
        channels: dimensions of each layer.
    """

    def __init__(
        self, score: ScoreName, network: LFDN, initial: LFDN, settings: Settings, channels: Sequence[int]
    ) -> None:
        self._kind = score
        self._networks = network, initial
        self._settings = settings
        self._channels = channels
        self._alpha_bar = settings.schedule.alpha_bar().to(network.linear_in.weight.device)
        steps = settings.restoration.steps
        self._denoiser: Denoiser = network.at_times(steps)
        self._initial: Denoiser = initial.at_times(steps)

    def score(self, z0: Tensor, digests: Digests) -> LayerScores:
        """See `Scorer`."""
        restored = self._restore(self._denoiser, z0, digests)
        if self._kind == "mfsim":
            layers = -layer_similarities(z0, restored, self._channels)
            return mfsim(-layers).mean(dim=0), layers.mean(dim=0)
        scores = mse(z0, restored)
        layers = layer_means((z0 - restored).square(), self._channels)
        if self._kind == "lr":
            initial = self._restore(self._initial, z0, digests)
            # Measured: what training failed to improve is OOD, so LR as the paper defines it is turned round.
            scores = -likelihood_regret(z0, initial, restored)
            layers = layers - layer_means((z0 - initial).square(), self._channels)
        return scores.mean(dim=0), layers.mean(dim=0)

    def _restore(self, denoiser: Denoiser, z0: Tensor, digests: Digests) -> Tensor:
        """Distort and restore: `(N, c)` to `(draws, N, c)`."""
        restoration, c = self._settings.restoration, z0.shape[1]
        steps = restoration.steps
        # One noise vector distorts, one more goes with each DDIM step but the last; all from the image alone.
        noise = noise_for(digests, self._settings.seed, restoration.draws, len(steps) * c).to(z0.device)
        noise = noise.reshape(restoration.draws, len(z0), len(steps), c)
        restored = []
        for draw in noise:
            zt = distort(z0, steps[0], self._alpha_bar, draw[:, 0])
            later = draw[:, 1:].transpose(0, 1)
            restored.append(restore(denoiser, zt, steps, self._alpha_bar, restoration.eta, later))
        return torch.stack(restored)

    def tensors(self) -> dict[str, Tensor]:
        """See `Scorer`."""
        network, initial = self._networks
        return _prefixed("network", network.state_dict()) | _prefixed("initial", initial.state_dict())


class ResidualScorer:
    """Restoration error against the error to expect, see `dlsr.expected_error`; preset `default`.

    A layer's score is `log error - weight * log expected error`, averaged over draws and standardised on held-out
    ID features. An image's score is their mean, weighted by the root of their dimensions: the mean of `c_m`
    squares is steadier the more there are.

    Args:
        network: trained.
        settings: of the detector; features are distorted to the first of its steps and restored in one.
        ceiling: highest log error that is expected of any image, for each layer, shape `(M,)`: what lies far out
            must not excuse itself by an expectation that no ID image has.
        location: mean of each layer's raw score on held-out ID features, shape `(M,)`.
        spread: their standard deviation, shape `(M,)`.
    """

    def __init__(
        self, network: ErrorAwareLFDN, settings: Settings, ceiling: Tensor, location: Tensor, spread: Tensor
    ) -> None:
        self.network = network
        self._settings = settings
        self._ceiling = ceiling
        self._location = location
        self._spread = spread
        self._t = settings.restoration.steps[0]
        self._signal = network.alpha_bar[self._t]
        self._lfdn = network.lfdn.at_times((self._t,))
        weights = torch.tensor(network.channels, device=location.device).sqrt()
        self._weights = weights / weights.sum()

    @classmethod
    def standardised(
        cls, network: ErrorAwareLFDN, settings: Settings, z0: Tensor, digests: Digests
    ) -> "ResidualScorer":
        """A scorer with its ceiling, and its layers standardised, on held-out ID features `z0`."""
        zero = torch.zeros(len(network.channels), device=z0.device)
        one = torch.ones_like(zero)
        without_ceiling = cls(network, settings, zero + torch.inf, zero, one)
        _, expected = in_rows(without_ceiling.log_errors, z0, digests)
        ceiling = expected.quantile(settings.expected_error_quantile, dim=0)
        _, layers = score_rows(cls(network, settings, ceiling, zero, one), z0, digests)
        return cls(network, settings, ceiling, layers.mean(dim=0), layers.std(dim=0, correction=0).clamp(min=1e-6))

    def score(self, z0: Tensor, digests: Digests) -> LayerScores:
        """See `Scorer`."""
        actual, expected = self.log_errors(z0, digests)
        raw = actual - self._settings.expected_error_weight * expected.minimum(self._ceiling)
        layers = (raw - self._location) / self._spread
        return layers @ self._weights, layers

    def log_errors(self, z0: Tensor, digests: Digests) -> tuple[Tensor, Tensor]:
        """Actual and expected log errors of each layer, means over draws, each of shape `(N, M)`."""
        draws = self._settings.restoration.draws
        x0 = self.network.gaussian.coordinates(z0)
        noise = noise_for(digests, self._settings.seed, draws, z0.shape[1]).to(z0.device)
        actual = torch.zeros(len(z0), len(self.network.channels), device=z0.device)
        expected = torch.zeros_like(actual)
        for draw in noise:
            xt = distort(x0, self._t, self.network.alpha_bar, draw)
            x0_hat, expected_now = self.network.interpret(self._lfdn(xt, self._t), xt, self._signal)
            actual += self.network.log_errors(x0, x0_hat, self._signal) / draws
            expected += expected_now / draws
        return actual, expected

    def tensors(self) -> dict[str, Tensor]:
        """See `Scorer`."""
        return (
            _prefixed("network", self.network.state_dict())
            | _prefixed("gaussian", self.network.gaussian.tensors())
            | {"ceiling": self._ceiling, "location": self._location, "spread": self._spread}
        )


def score_rows(scorer: Scorer, z0: Tensor, digests: Digests) -> LayerScores:
    """Score any number of rows, a bounded number at once."""
    return in_rows(scorer.score, z0, digests)


@torch.inference_mode()
def in_rows(
    function: Callable[[Tensor, Digests], tuple[Tensor, Tensor]], z0: Tensor, digests: Digests
) -> tuple[Tensor, Tensor]:
    """Apply a function that gives two tensors to a bounded number of rows at once, and join what it gives."""
    parts = [
        function(z0[start : start + ROWS_AT_ONCE], digests[start : start + ROWS_AT_ONCE])
        for start in range(0, len(z0), ROWS_AT_ONCE)
    ]
    return torch.cat([first for first, _ in parts]), torch.cat([second for _, second in parts])


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(prefix + ".")}
