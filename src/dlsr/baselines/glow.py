"""GLOW (Kingma & Dhariwal 2018, by normflows) with the input-complexity score (Serrà et al. 2020)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dlsr.baselines.complexity import complexity_of
from dlsr.baselines.pixels import PixelBaseline
from dlsr.config import TrainingSettings
from dlsr.errors import MissingExtraError
from dlsr.training.loop import Draws, Trainer


@dataclass(kw_only=True, repr=False, eq=False)
class Glow(PixelBaseline):
    """Negative log-likelihood of a normalising flow on pixels, minus the image's complexity.

    Args:
        levels: scales; each halves the image.
        steps: flow steps at each level.
        hidden: channels inside the coupling layers.
        epochs: epochs of training; the paper's are 150 (appendix B.2).
        batch_size: images in a training step.
        lr: learning rate; the paper's is 5e-4.
    """

    name = "glow"

    levels: int = 3
    steps: int = 32
    hidden: int = 512
    epochs: int = 150
    batch_size: int = 64
    lr: float = 5e-4

    def _build(self, classes: int) -> nn.Module:
        self._check_size(2**self.levels)
        try:
            import normflows  # noqa: PLC0415 - an optional extra
        except ImportError:
            raise MissingExtraError("normflows", "bench") from None
        flows, merges, bases = [], [], []
        for level in range(self.levels):
            channels = self.image_channels * 2 ** (self.levels + 1 - level)
            blocks = [normflows.flows.GlowBlock(channels, self.hidden) for _ in range(self.steps)]
            flows.append([*blocks, normflows.flows.Squeeze()])
            # normflows counts levels from the innermost; every other level splits off half of its channels.
            latent, halvings = (channels, self.levels) if level == 0 else (channels // 2, self.levels - level)
            if level > 0:
                merges.append(normflows.flows.Merge())
            side = self.size // 2**halvings
            bases.append(normflows.distributions.DiagGaussian((latent, side, side)))
        network: nn.Module = normflows.MultiscaleFlow(bases, flows, merges)
        return network

    def _bits(self, x: Tensor) -> Tensor:
        """Negative log-likelihood in bits per dimension of images in `[0, 1)`: `(n, C, H, W)` to `(n,)`."""
        network: nn.Module = self.network_
        log_prob: Tensor = network.log_prob(x, None)  # type: ignore[operator]  # a method of MultiscaleFlow
        return 8 - log_prob / (x[0].numel() * math.log(2))

    def _learn(self, pixels: Tensor, labels: Tensor | None, trainer: Trainer) -> None:
        training, _ = self._split(pixels)  # in a random order: files often come sorted by class
        with torch.no_grad():
            self._bits((training[: self.batch_size].float() + 0.5) / 256)  # ActNorm initialises from a first batch

        def loss(samples: Tensor, draws: Draws) -> Tensor:
            uniform = draws.uniform(*samples.shape[1:])
            return self._bits((samples.float() + uniform) / 256).mean()

        settings = TrainingSettings(
            epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, training_precision="float32", ema_decay=0.999
        )
        self._train(pixels, loss, settings, trainer)

    @torch.no_grad()
    def _scores(self, pixels: Tensor) -> Tensor:
        bits = self._bits((pixels.float() + 0.5) / 256)
        return bits.cpu() - complexity_of(pixels)
