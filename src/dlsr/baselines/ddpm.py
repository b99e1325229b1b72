"""DDPM with multi-scale reconstruction (Graham et al. 2023, "Denoising diffusion models for OOD detection")."""

from pathlib import Path

import torch
from torch import Tensor, nn

from dlsr.baselines.diffusion import PixelDiffusion, T, scaled
from dlsr.baselines.perception import Perception
from dlsr.diffusion import skipping_steps

HELD_OUT = 256
"""At most so many training images standardise the errors."""


class DDPM(PixelDiffusion):
    """Reconstruct from several noise levels; the mean of the standardised errors is the score.

    The errors are the mean squared error and a perceptual distance, each standardised for each noise level on ID
    images, as in the paper. Its perceptual distance, LPIPS, needs weights from a hub; ours is that of the
    detector's own encoder, see `dlsr.baselines.perception`.

    Args:
        width: channels of the U-Net's first stage.
        starts: noise levels reconstructed from, evenly spaced.
        steps: DDIM steps of a reconstruction at most.
        epochs: of training; the paper's are 350 (appendix B.2).
        batch_size: likewise.
        lr: likewise.
        seed: of everything random.
        device: `auto`, `cpu`, `cuda`, ..
        workers: threads that decode.
    """

    name = "ddpm"

    def __init__(
        self,
        width: int = 128,
        starts: int = 25,
        steps: int = 100,
        epochs: int = 350,
        batch_size: int = 128,
        lr: float = 2e-4,
        seed: int = 0,
        device: str = "auto",
        workers: int = 2,
    ) -> None:
        self.width = width
        self.starts = starts
        self.steps = steps
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.seed = seed
        self.device = device
        self.workers = workers

    def _build(self, classes: int) -> nn.Module:
        network = super()._build(classes)
        for name in ("error_mean", "error_std"):
            network.register_buffer(name, torch.zeros(2 * self.starts))
        return network

    def _learn(self, pixels: Tensor, labels: Tensor | None, checkpoint: Path | None) -> None:
        super()._learn(pixels, labels, checkpoint)
        self.network_.eval()
        chosen = pixels[torch.randperm(len(pixels))[:HELD_OUT].to(pixels.device)]
        errors = torch.cat([self._errors(rows) for rows in torch.split(chosen, 32)])
        self.network_.get_buffer("error_mean").copy_(errors.mean(dim=0))
        self.network_.get_buffer("error_std").copy_(errors.std(dim=0) + 1e-6)

    def _scores(self, pixels: Tensor) -> Tensor:
        mean, std = (self.network_.get_buffer(name) for name in ("error_mean", "error_std"))
        return ((self._errors(pixels) - mean) / std).mean(dim=1)

    @torch.no_grad()
    def _errors(self, pixels: Tensor) -> Tensor:
        """Both errors at each noise level: shape `(n, 2 * starts)`."""
        x0, perception = scaled(pixels), Perception.shared(str(pixels.device))
        noise = self._noise(pixels, self.starts)
        errors = []
        for i, start in enumerate(skipping_steps(T, self.starts)):
            restored = self._restored(x0, skipping_steps(start, max(1, self.steps * start // T)), noise[:, i])
            errors += [(restored - x0).square().flatten(1).mean(dim=1), perception.distance(x0, restored)]
        return torch.stack(errors, dim=1)
