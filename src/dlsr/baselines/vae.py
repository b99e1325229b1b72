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

    def negative_elbo(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """In nats, with a single sample of the code: uint8 `(n, C, H, W)`, noise `(n, latent)`, to `(n,)`."""
        mean, log_variance = self.encoder(pixels.float() / 255).chunk(2, dim=1)
        logits = self.decoder(mean + (log_variance / 2).exp() * noise)
        logits = logits.reshape(len(pixels), LEVELS, *pixels.shape[1:])
        bits = F.cross_entropy(logits, pixels.long(), reduction="none").flatten(1).sum(dim=1)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2
        bound: Tensor = bits + divergence
        return bound


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

    network_: ConvVAE = field(init=False)

    def _build(self, classes: int) -> ConvVAE:
        self._check_size(8)
        return ConvVAE(self.width, self.latent, self.size, self.image_channels)

    def _learn(self, pixels: Tensor, labels: Tensor | None, trainer: Trainer) -> None:
        def loss(samples: Tensor, draws: Draws) -> Tensor:
            return self.network_.negative_elbo(samples, draws.normal(self.latent)).mean()

        settings = TrainingSettings(
            epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, training_precision="float32", ema_decay=0.999
        )
        self._train(pixels, loss, settings, trainer)

    def _scores(self, pixels: Tensor) -> Tensor:
        before, after = self._regret(pixels, self._noise(pixels, 1, self.latent)[:, 0])
        return before - after

    def _regret(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Negative ELBO before and after the encoder is trained on each single image, each of shape `(n,)`.

        All steps use the same noise, shape `(n, latent)`.
        """
        shared = {k: v.detach() for k, v in self.network_.named_parameters() if k.startswith("decoder.")}
        start = {k: v.detach() for k, v in self.network_.named_parameters() if k.startswith("encoder.")}
        own = {k: v.expand(len(pixels), *v.shape).clone() for k, v in start.items()}

        def loss(encoder: Mapping[str, Tensor], image: Tensor, draw: Tensor) -> Tensor:
            bound: Tensor = torch.func.functional_call(
                _NegativeElbo(self.network_), {f"network.{k}": v for k, v in {**encoder, **shared}.items()},
                (image[None], draw[None]),
            )  # fmt: skip
            return bound[0]

        gradient = torch.func.vmap(torch.func.grad_and_value(loss), randomness="error")
        first = {k: torch.zeros_like(v) for k, v in own.items()}
        second = {k: torch.zeros_like(v) for k, v in own.items()}
        values = []
        for step in range(1, self.regret_steps + 1):
            gradients, value = gradient(own, pixels, noise)
            values.append(value)
            for k, g in gradients.items():
                first[k].lerp_(g, 0.1)
                second[k].lerp_(g.square(), 0.001)
                size = self.regret_lr * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
                own[k] -= size * first[k] / (second[k].sqrt() + 1e-8)
        with torch.no_grad():
            values.append(torch.func.vmap(loss)(own, pixels, noise))
        return values[0], torch.stack(values).min(dim=0).values


class _NegativeElbo(nn.Module):
    """`ConvVAE.negative_elbo` as a module's forward, for `functional_call`."""

    def __init__(self, network: ConvVAE) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """See the class."""
        return self.network.negative_elbo(pixels, noise)
