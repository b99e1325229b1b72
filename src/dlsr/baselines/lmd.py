"""LMD (Liu et al. 2023, "Unsupervised OOD detection with diffusion inpainting")."""

import torch
from torch import Tensor

from dlsr.baselines.diffusion import PixelDiffusion, T, scaled
from dlsr.baselines.perception import Perception
from dlsr.diffusion import distort, skipping_steps
from dlsr.schedule import cosine_alpha_bar


class LMD(PixelDiffusion):
    """Lift off the manifold by masking, map back by inpainting; the distance to the image is the score.

    The mask is a checkerboard of 8 x 8 fields, its two halves in turn; the score is the median over attempts of a
    perceptual distance (LPIPS in the paper, here see `dlsr.baselines.perception`).

    Args:
        width: channels of the U-Net's first stage.
        attempts: inpaintings of each image.
        steps: denoising steps of an inpainting.
        epochs: of training.
        batch_size: likewise.
        lr: likewise.
        seed: of everything random.
        device: `auto`, `cpu`, `cuda`, ..
        workers: threads that decode.
    """

    name = "lmd"

    def __init__(
        self,
        width: int = 128,
        attempts: int = 10,
        steps: int = 100,
        epochs: int = 350,
        batch_size: int = 128,
        lr: float = 2e-4,
        seed: int = 0,
        device: str = "auto",
        workers: int = 2,
    ) -> None:
        self.width = width
        self.attempts = attempts
        self.steps = steps
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.seed = seed
        self.device = device
        self.workers = workers

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
