"""LMD (Liu et al. 2023, "Unsupervised OOD detection with diffusion inpainting")."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dlsr.baselines.diffusion import ALPHA_BAR, PixelDiffusion, T, scaled
from dlsr.baselines.perception import Perception
from dlsr.method.diffusion import ddim_step, distort, skipping_steps


@dataclass(kw_only=True, repr=False, eq=False)
class LMD(PixelDiffusion):
    """Distance of an image to its inpaintings: masking lifts it off the manifold of ID images, inpainting maps it back.

    The mask is a checkerboard of 8 x 8 fields whose two halves take turns. The score is the median over attempts of a
    perceptual distance: LPIPS in the paper, that of `dlsr.baselines.perception` here.

    Args:
        attempts: inpaintings of each image.
        steps: denoising steps of an inpainting.
    """

    name = "lmd"
    scoring_batch = 16  # the noise of an image takes 25 MB at full size

    attempts: int = 10
    steps: int = 100

    @torch.no_grad()
    def inpaintings(self, pixels: Tensor) -> Iterator[Tensor]:
        """The inpaintings of a few images, once for each attempt.

        Takes uint8, shape `(n, C, H, W)`, and yields that shape in `[-1, 1]`.
        """
        noise = self._noise(pixels, self.attempts * 2 * self.steps, *pixels.shape[1:])
        for i, draws in enumerate(torch.split(noise, 2 * self.steps, dim=1)):
            yield self._inpainted(scaled(pixels), checkerboard(self.size, i % 2), draws)

    def _scores(self, pixels: Tensor) -> Tensor:
        x0, perception = scaled(pixels), Perception.shared(str(pixels.device))
        return torch.stack([perception.distance(x0, image) for image in self.inpaintings(pixels)]).quantile(0.5, dim=0)

    def _inpainted(self, x0: Tensor, kept: Tensor, noise: Tensor) -> Tensor:
        """Sample the pixels that are not kept, as RePaint does without resampling (Lugmayr et al. 2022, Algorithm 1).

        At each time the kept pixels are those of the distorted image, and the others follow from those at the time
        before by ancestral sampling (Eq. 3 with eta = 1). Both use noise of their own, as the start does.

        Args:
            x0: images in `[-1, 1]`, shape `(n, C, H, W)`.
            kept: which pixels are kept: bool, shape `(H, W)`.
            noise: standard normal, shape `(n, 2 * steps, C, H, W)`.
        """
        alpha_bar = ALPHA_BAR.to(x0.device)
        kept = kept.to(x0.device)
        draws = iter(noise.unbind(dim=1))

        xt = next(draws)
        times = skipping_steps(T, self.steps)
        for t, t_next in zip(times, [*times[1:], 0], strict=True):
            xt = torch.where(kept, distort(x0, t, alpha_bar, next(draws)), xt)
            estimate = self._x0_of(xt, t, alpha_bar)
            xt = ddim_step(xt, estimate, t, t_next, alpha_bar, 1.0, next(draws)) if t_next else estimate
        return torch.where(kept, x0, xt)


def checkerboard(size: int, parity: int) -> Tensor:
    """Which pixels are kept: bool, shape `(size, size)`, in fields of an eighth of the side."""
    field = torch.arange(size) * 8 // size
    return (field[:, None] + field[None, :]) % 2 == parity
