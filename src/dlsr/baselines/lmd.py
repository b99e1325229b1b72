"""LMD (Liu et al. 2023, "Unsupervised OOD detection with diffusion inpainting")."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dlsr.baselines.diffusion import PixelDiffusion, T, scaled
from dlsr.baselines.perception import Perception
from dlsr.method.diffusion import distort, skipping_steps
from dlsr.method.schedule import cosine_alpha_bar


@dataclass(kw_only=True, repr=False, eq=False)
class LMD(PixelDiffusion):
    """Lift off the manifold by masking, map back by inpainting; the distance to the image is the score.

    The mask is a checkerboard of 8 x 8 fields, its two halves in turn; the score is the median over attempts of a
    perceptual distance (LPIPS in the paper, here see `dlsr.baselines.perception`).

    Args:
        attempts: inpaintings of each image.
        steps: denoising steps of an inpainting.
    """

    name = "lmd"

    attempts: int = 10
    steps: int = 100

    @torch.no_grad()
    def _scores(self, pixels: Tensor) -> Tensor:
        x0, perception = scaled(pixels), Perception.shared(str(pixels.device))
        noise = self._noise(pixels, self.attempts * (self.steps + 1))
        distances = []
        for i in range(self.attempts):
            draws = noise[:, i * (self.steps + 1) : (i + 1) * (self.steps + 1)]
            distances.append(perception.distance(x0, self._inpainted(x0, checkerboard(self.size, i % 2), draws)))
        return torch.stack(distances).median(dim=0).values

    def _inpainted(self, x0: Tensor, kept: Tensor, noise: Tensor) -> Tensor:
        """Sample what is not kept: at each step the kept part is that of the distorted image itself."""
        alpha_bar = cosine_alpha_bar(T).to(x0.device)
        kept = kept.to(x0.device)
        xt = noise[:, 0]
        times = skipping_steps(T, self.steps)
        for i, (t, t_next) in enumerate(zip(times, [*times[1:], 0], strict=True)):
            known = distort(x0.flatten(1), t, alpha_bar, noise[:, i + 1].flatten(1)).reshape(x0.shape)
            xt = torch.where(kept, known, xt)
            guess = self._x0_of(xt, t, alpha_bar)
            if t_next == 0:
                xt = guess
            else:
                # A fresh draw for the next time: ancestral sampling through the guess.
                xt = distort(guess.flatten(1), t_next, alpha_bar, noise[:, i].flatten(1)).reshape(x0.shape)
        return torch.where(kept, x0, xt)


def checkerboard(size: int, parity: int) -> Tensor:
    """Which pixels are kept: bool of shape `(size, size)`, fields of an eighth of the side."""
    field = torch.arange(size) * 8 // size
    return (field[:, None] + field[None, :]) % 2 == parity
