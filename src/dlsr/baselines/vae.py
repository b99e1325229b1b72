"""VAE on pixels with likelihood regret (Xiao et al. 2020, "Likelihood regret: an OOD detection score for VAEs").

The regret is the gain in likelihood when the trained encoder is trained further on a single image: small for images
like those it was trained on, large for others.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlsr.baselines.pixels import PixelBaseline
from dlsr.config import TrainingSettings
from dlsr.training.loop import Draws, Trainer

LEVELS = 256
LIKELIHOODS_AT_ONCE = 4
"""Images whose likelihood is estimated at once: each takes 3 MB for each sample of the code."""


class ConvVAE(nn.Module):
    """Convolutional VAE whose decoder predicts a distribution over 256 levels for each value, as in the paper.

    Args:
        width: channels of the first convolution; they double whenever the image is halved.
        latent: dimension of the code.
        size: pixels a side, a multiple of 8.
        image_channels: `C`, 1 for grey images and 3 for colour.
    """

    def __init__(self, width: int, latent: int, size: int, image_channels: int = 3) -> None:
        super().__init__()
        side = size // 8
        self.encoder = nn.Sequential(
            nn.Conv2d(image_channels, width, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 4, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(4 * width * side**2, 2 * latent),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(latent, 4 * width * side**2), nn.ReLU(), nn.Unflatten(1, (4 * width, side, side)),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(width, image_channels * LEVELS, 1),
        )  # fmt: skip

    def encode(self, pixels: Tensor) -> Tensor:
        """Mean and log variance of the code, joined: uint8 `(n, C, H, W)` to `(n, 2 * latent)`."""
        encoded: Tensor = self.encoder(pixels.float() / 255)
        return encoded

    def negative_elbo(self, pixels: Tensor, encoded: Tensor, noise: Tensor) -> Tensor:
        """In nats, with a single sample of the code.

        Args:
            pixels: uint8, shape `(n, C, H, W)`.
            encoded: as `encode` returns it.
            noise: standard normal, shape `(n, latent)`.

        Returns:
            Shape `(n,)`.
        """
        mean, log_variance = encoded.chunk(2, dim=1)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2
        return self._reconstruction(pixels, mean + (log_variance / 2).exp() * noise) + divergence

    def negative_likelihood(self, pixels: Tensor, encoded: Tensor, noise: Tensor) -> Tensor:
        """In nats, from `K` weighted samples of the code (Burda et al. 2016): a tighter bound than `negative_elbo`.

        Args:
            pixels: one image, shape `(1, C, H, W)`.
            encoded: as `encode` returns it.
            noise: standard normal, shape `(K, latent)`.

        Returns:
            Shape `()`.
        """
        mean, log_variance = encoded.chunk(2, dim=1)
        code = mean + (log_variance / 2).exp() * noise
        # Logarithm of prior over posterior, whose constants are the same.
        ratio = (noise.square() + log_variance - code.square()).sum(dim=1) / 2
        weights = ratio - self._reconstruction(pixels.expand(len(noise), -1, -1, -1), code)
        return math.log(len(noise)) - weights.logsumexp(dim=0)

    def _reconstruction(self, pixels: Tensor, code: Tensor) -> Tensor:
        """Negative log-likelihood of images given their codes: shape `(n,)`."""
        logits = self.decoder(code).reshape(len(pixels), LEVELS, *pixels.shape[1:])
        return F.cross_entropy(logits, pixels.long(), reduction="none").flatten(1).sum(dim=1)


@dataclass(kw_only=True, repr=False, eq=False)
class VAE(PixelBaseline):
    """Likelihood regret of a VAE.

    Args:
        width: channels of the first convolution.
        latent: dimension of the code.
        epochs: epochs of training; the paper's are 200 (appendix B.2).
        batch_size: images in a training step.
        lr: learning rate.
        regret_steps: Adam steps on each single image.
        regret_lr: learning rate of these steps.
        regret_samples: samples of the code from which the likelihood is estimated before and after them; the paper's
            code has 1,000.
    """

    name = "vae"
    scoring_batch = 25

    width: int = 64
    latent: int = 200
    epochs: int = 200
    batch_size: int = 64
    lr: float = 5e-4
    regret_steps: int = 100
    regret_lr: float = 1e-4
    regret_samples: int = 20

    network_: ConvVAE = field(init=False)

    def _build(self, classes: int) -> ConvVAE:
        self._check_size(8)
        return ConvVAE(self.width, self.latent, self.size, self.image_channels)

    def _learn(self, pixels: Tensor, labels: Tensor | None, trainer: Trainer) -> None:
        def loss(samples: Tensor, draws: Draws) -> Tensor:
            encoded = self.network_.encode(samples)
            return self.network_.negative_elbo(samples, encoded, draws.normal(self.latent)).mean()

        settings = TrainingSettings(
            epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, training_precision="float32", ema_decay=0.999
        )
        self._train(pixels, loss, settings, trainer)

    def _scores(self, pixels: Tensor) -> Tensor:
        noise = self._noise(pixels, self.regret_steps + self.regret_samples, self.latent)
        before, after = self._likelihoods(pixels, noise)
        return before - after

    @torch.no_grad()
    def _likelihoods(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Negative likelihoods before and after the encoder is trained on each single image, each of shape `(n,)`.

        Each step has noise of its own, which an encoder cannot fit; both estimates have the same.

        Args:
            pixels: uint8, shape `(n, C, H, W)`.
            noise: shape `(n, regret_steps + regret_samples, latent)`.
        """
        network = self.network_
        own = {k: v.expand(len(pixels), *v.shape).clone() for k, v in network.encoder.named_parameters()}

        def encoded(encoder: Mapping[str, Tensor], image: Tensor) -> Tensor:
            found: Tensor = torch.func.functional_call(network.encoder, dict(encoder), image[None].float() / 255)
            return found

        def loss(encoder: Mapping[str, Tensor], image: Tensor, draw: Tensor) -> Tensor:
            return network.negative_elbo(image[None], encoded(encoder, image), draw[None])[0]

        def likelihood(encoder: Mapping[str, Tensor], image: Tensor, draws: Tensor) -> Tensor:
            return network.negative_likelihood(image[None], encoded(encoder, image), draws)

        likelihoods = torch.func.vmap(likelihood, chunk_size=LIKELIHOODS_AT_ONCE)
        gradient = torch.func.vmap(torch.func.grad(loss))
        steps, samples = noise[:, : self.regret_steps], noise[:, self.regret_steps :]
        before = likelihoods(own, pixels, samples)
        first = {k: torch.zeros_like(v) for k, v in own.items()}
        second = {k: torch.zeros_like(v) for k, v in own.items()}
        for step, draws in enumerate(steps.unbind(dim=1), start=1):
            for k, g in gradient(own, pixels, draws).items():
                first[k].lerp_(g, 0.1)
                second[k].lerp_(g.square(), 0.001)
                size = self.regret_lr * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
                own[k] -= size * first[k] / (second[k].sqrt() + 1e-8)
        return before, likelihoods(own, pixels, samples)
