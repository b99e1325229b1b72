"""What turns features into scores: one small module for each way, all with the same inputs and outputs.

A scorer gives each image one score (larger = more OOD) and one for each layer, which tells where the image
is odd. It is a pure function of features and noise, so it can be exported as a graph; the noise is a function of
content digests and the seed (`dlsr.method.noise`), so a score is one of the image, the model and the seed alone.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlsr.config import ScoreName, Settings
from dlsr.method.diffusion import Denoiser, distort, restore
from dlsr.method.lfdn import LFDN
from dlsr.method.noise import noise_for
from dlsr.method.scores import layer_means, layer_similarities, likelihood_regret, mfsim, mse
from dlsr.scorers.expected_error import ErrorAwareLFDN
from dlsr.scorers.gaussian import Gaussian
from dlsr.scorers.reconstruction import Reconstructor

ROWS_AT_ONCE = 512

Digests = NDArray[np.uint8]
LayerScores = tuple[Tensor, Tensor]
"""Scores, shape `(N,)`, and scores of each layer, shape `(N, M)`."""


class Scorer(nn.Module):
    """Scores features."""

    noise_vectors = 0
    """How many vectors of noise a score takes: K."""

    def forward(self, z0: Tensor, noise: Tensor) -> LayerScores:
        """Score `z0`, shape `(N, c)`, with standard normal noise, shape `(N, K, c)`."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """All that was learned, for saving."""
        raise NotImplementedError


class MahalanobisScorer(Scorer):
    """Mean squared whitened feature: the squared Mahalanobis distance over `c` (Lee et al. 2018, without classes)."""

    def __init__(self, gaussian: Gaussian, channels: Sequence[int]) -> None:
        super().__init__()
        self._gaussian = gaussian
        self._channels = channels

    def forward(self, z0: Tensor, noise: Tensor) -> LayerScores:
        """See `Scorer`."""
        squares = self._gaussian.whiten(z0).square()
        return squares.mean(dim=1), layer_means(squares, self._channels)

    def tensors(self) -> dict[str, Tensor]:
        """See `Scorer`."""
        return _prefixed("gaussian", self._gaussian.tensors())


class KnnScorer(Scorer):
    """Distance to the k-th nearest training image (Sun et al. 2022, on `z0`); a layer's share is its own distance.

    In torch rather than scikit-learn, whose search cannot become part of a graph; tested against it.
    """

    def __init__(self, references: Tensor, neighbours: int, channels: Sequence[int]) -> None:
        super().__init__()
        self._references = references
        self._neighbours = min(neighbours, len(references))
        self._channels = channels
        # Products of centred rows lose fewer digits; the distance itself is then taken from the differences.
        self._centre = references.mean(dim=0)
        self._centred = (references - self._centre).T.contiguous()
        self._squares = self._centred.square().sum(dim=0)

    def forward(self, z0: Tensor, noise: Tensor) -> LayerScores:
        """See `Scorer`."""
        # The row's own square adds the same to all its distances, so the order does not need it.
        order = self._squares - 2 * (z0 - self._centre) @ self._centred
        kth = order.topk(self._neighbours, dim=1, largest=False).indices[:, -1]
        squares = (z0 - self._references[kth]).square()
        return squares.sum(dim=1).sqrt(), layer_means(squares, self._channels).sqrt()

    def tensors(self) -> dict[str, Tensor]:
        """See `Scorer`."""
        return {"references": self._references}


class PaperScorer(Scorer):
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
        super().__init__()
        self._kind = score
        self._restoration = settings.restoration
        self._channels = channels
        self._alpha_bar = settings.schedule.alpha_bar().to(network.linear_in.weight.device)
        self.network, self.initial = network, initial
        steps = settings.restoration.steps
        # One noise vector distorts, one more goes with each DDIM step but the last.
        self.noise_vectors = settings.restoration.draws * len(steps)
        self._denoiser: Denoiser = network.at_times(steps)
        self._initial: Denoiser = initial.at_times(steps)

    def forward(self, z0: Tensor, noise: Tensor) -> LayerScores:
        """See `Scorer`."""
        draws = self._restoration.draws
        every_draw = z0.repeat_interleave(draws, dim=0)
        restored = self._restore(self._denoiser, every_draw, noise)
        if self._kind == "mfsim":
            similarities = layer_similarities(every_draw, restored, self._channels)
            return _over_draws(mfsim(similarities), draws), _over_draws(-similarities, draws)
        scores = mse(every_draw, restored)
        layers = layer_means((every_draw - restored).square(), self._channels)
        if self._kind == "lr":
            initial = self._restore(self._initial, every_draw, noise)
            scores = likelihood_regret(every_draw, initial, restored)
            layers = layer_means((every_draw - initial).square(), self._channels) - layers
        return _over_draws(scores, draws), _over_draws(layers, draws)

    def _restore(self, denoiser: Denoiser, z0: Tensor, noise: Tensor) -> Tensor:
        """Distort and restore: rows `z0`, a draw each, shape `(N * draws, c)`, to the same shape."""
        steps = self._restoration.steps
        by_step = noise.reshape(-1, len(steps), z0.shape[1]).transpose(0, 1)
        zt = distort(z0, steps[0], self._alpha_bar, by_step[0])
        return restore(denoiser, zt, steps, self._alpha_bar, self._restoration.eta, by_step[1:])

    def tensors(self) -> dict[str, Tensor]:
        """See `Scorer`."""
        return _prefixed("network", self.network.state_dict()) | _prefixed("initial", self.initial.state_dict())


class ResidualScorer(Scorer):
    """Restoration error against the error to expect, see `dlsr.scorers.expected_error`; preset `default`.

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
        super().__init__()
        self.network = network
        self._weight = settings.expected_error_weight
        self._ceiling = ceiling
        self._location = location
        self._spread = spread
        self.noise_vectors = settings.restoration.draws
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
        draws, seed = settings.restoration.draws, settings.seed
        without_ceiling = cls(network, settings, zero + torch.inf, zero, one)
        _, expected = in_rows(without_ceiling.log_errors, z0, digests, draws, seed)
        ceiling = expected.quantile(settings.expected_error_quantile, dim=0)
        _, layers = score_rows(cls(network, settings, ceiling, zero, one), z0, digests, seed)
        return cls(network, settings, ceiling, layers.mean(dim=0), layers.std(dim=0, correction=0).clamp(min=1e-6))

    def forward(self, z0: Tensor, noise: Tensor) -> LayerScores:
        """See `Scorer`."""
        actual, expected = self.log_errors(z0, noise)
        raw = actual - self._weight * expected.minimum(self._ceiling)
        layers = (raw - self._location) / self._spread
        return layers @ self._weights, layers

    def log_errors(self, z0: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actual and expected log errors of each layer, means over draws, each of shape `(N, M)`."""
        x0 = self.network.gaussian.coordinates(z0).repeat_interleave(self.noise_vectors, dim=0)
        xt = distort(x0, self._t, self.network.alpha_bar, noise.reshape(-1, z0.shape[1]))
        x0_hat, expected = self.network.interpret(self._lfdn(xt, self._t), xt, self._signal)
        actual = self.network.log_errors(x0, x0_hat, self._signal)
        return _over_draws(actual, self.noise_vectors), _over_draws(expected, self.noise_vectors)

    def tensors(self) -> dict[str, Tensor]:
        """See `Scorer`."""
        return (
            _prefixed("network", self.network.state_dict())
            | _prefixed("gaussian", self.network.gaussian.tensors())
            | {"ceiling": self._ceiling, "location": self._location, "spread": self._spread}
        )


class ReconstructionScorer(Scorer):
    """MFsim of features and their reconstruction by an autoencoder (appendix B.2, table 11)."""

    def __init__(self, network: Reconstructor, channels: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self._channels = channels

    def forward(self, z0: Tensor, noise: Tensor) -> LayerScores:
        """See `Scorer`."""
        similarities = layer_similarities(z0, self.network(z0), self._channels)
        return mfsim(similarities), -similarities

    def tensors(self) -> dict[str, Tensor]:
        """See `Scorer`."""
        return _prefixed("network", self.network.state_dict())


class ImageToScore(nn.Module):
    """Encoder and scorer in one.

    Takes resized images, uint8 of shape `(N, size, size, 3)`, and, if the scorer uses noise, standard normal noise of
    shape `(N, K, c)`. Gives scores, shape `(N,)`, and those of the layers, shape `(N, M)`.
    """

    def __init__(self, encoder: nn.Module, scorer: Scorer) -> None:
        super().__init__()
        self.encoder = encoder
        self.scorer = scorer

    def forward(self, pixels: Tensor, noise: Tensor | None = None) -> LayerScores:
        """See the class."""
        z0 = self.encoder(pixels)
        outputs: LayerScores = self.scorer(z0, z0.unsqueeze(1)[:, :0] if noise is None else noise)
        return outputs


def score_rows(scorer: Scorer, z0: Tensor, digests: Digests, seed: int) -> LayerScores:
    """Score any number of rows, a bounded number at once; their noise is that of their digests and the seed."""
    return in_rows(scorer, z0, digests, scorer.noise_vectors, seed)


@torch.inference_mode()
def in_rows(
    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    z0: Tensor,
    digests: Digests,
    noise_vectors: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Apply a function of rows and their noise to a bounded number of rows at once, and join what it gives."""
    parts = []
    for start in range(0, len(z0), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        noise = noise_for(digests[rows], seed, noise_vectors, z0.shape[1]).to(z0.device)
        parts.append(function(z0[rows], noise))
    return torch.cat([first for first, _ in parts]), torch.cat([second for _, second in parts])


def _over_draws(rows: Tensor, draws: int) -> Tensor:
    """Mean over draws: `(N * draws, ..)` to `(N, ..)`."""
    return rows.reshape(-1, draws, *rows.shape[1:]).mean(dim=1)


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(prefix + ".")}
