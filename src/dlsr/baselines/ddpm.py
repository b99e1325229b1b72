"""DDPM with multi-scale reconstruction (Graham et al. 2023, "Denoising diffusion models for OOD detection")."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dlsr.baselines.diffusion import ALPHA_BAR, PixelDiffusion, T, scaled
from dlsr.baselines.perception import Perception
from dlsr.method.diffusion import skipping_steps
from dlsr.training.loop import Trainer

HELD_OUT = 256
"""At most this many images, which the training holds out, standardise the errors."""
FEWEST = 32
"""So many images standardise the errors at least; if fewer are held out, others of the training."""
FIRST_START = 10
"""The lowest noise level to reconstruct from, that of the paper's code."""


@dataclass(kw_only=True, repr=False, eq=False)
class DDPM(PixelDiffusion):
    """Mean standardised error of reconstructions from several noise levels.

    The errors are the mean squared error and a perceptual distance. Each is standardised for each noise level on ID
    images, as in the paper. The noise levels are those of its code, which distorts pixels in `[0, 1]`. The perceptual
    distance is that of `dlsr.baselines.perception` instead of LPIPS.

    Args:
        starts: noise levels to reconstruct from, evenly spaced from `FIRST_START` on.
        steps: most DDIM steps of a reconstruction.
    """

    name = "ddpm"

    starts: int = 25
    steps: int = 100

    @property
    def levels(self) -> list[int]:
        """The noise levels that images are reconstructed from, in 1..T, for pixels in `[0, 1]`."""
        return [FIRST_START + i * (T - FIRST_START) // self.starts for i in range(self.starts)]

    def _build(self, classes: int) -> nn.ModuleDict:
        network = super()._build(classes)
        for name in ("error_mean", "error_std"):
            network.register_buffer(name, torch.zeros(2 * self.starts))
        return network

    def _learn(self, pixels: Tensor, labels: Tensor | None, trainer: Trainer) -> None:
        super()._learn(pixels, labels, trainer)
        self.network_.eval()
        training, held_out = self._split(pixels)
        count = max(min(len(held_out), HELD_OUT), FEWEST)
        chosen = torch.cat([held_out[:count], training[: max(count - len(held_out), 0)]])
        errors = torch.cat([self.errors(batch) for batch in torch.split(chosen, self.scoring_batch)])
        self.network_.get_buffer("error_mean").copy_(errors.mean(dim=0))
        self.network_.get_buffer("error_std").copy_(errors.std(dim=0) + 1e-6)

    def _scores(self, pixels: Tensor) -> Tensor:
        mean, std = (self.network_.get_buffer(name) for name in ("error_mean", "error_std"))
        return ((self.errors(pixels) - mean) / std).mean(dim=1)

    @torch.no_grad()
    def errors(self, pixels: Tensor) -> Tensor:
        """Squared error and perceptual distance of the restoration from each noise level.

        Args:
            pixels: uint8, shape `(n, C, H, W)`.

        Returns:
            Shape `(n, 2 * starts)`: both errors of the first of `self.levels`, both of the second, ..
        """
        x0, perception = scaled(pixels), Perception.shared(str(pixels.device))
        noise = self._noise(pixels, self.starts, *pixels.shape[1:])
        errors = []
        for i, start in enumerate(self.levels):
            times = times_of_unit_pixels(skipping_steps(start, max(1, self.steps * start // T)))
            restored = self._restored(x0, times, noise[:, i])
            errors += [(restored - x0).square().flatten(1).mean(dim=1), perception.distance(x0, restored)]
        return torch.stack(errors, dim=1)


def times_of_unit_pixels(times: Sequence[int]) -> list[int]:
    """The falling times at which pixels in `[-1, 1]` have the signal-to-noise ratios of pixels in `[0, 1]` at `times`.

    Half the amplitude is a quarter of the signal's variance: the times found are later.
    """
    signal = ALPHA_BAR[list(times)]
    same_ratio = signal / (4 - 3 * signal)
    found = torch.searchsorted(-ALPHA_BAR, -same_ratio).clamp(1, T)
    return sorted(set(found.tolist()), reverse=True)
