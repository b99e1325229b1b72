"""Base of the baselines that take small images."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dlsr.baselines.base import Baseline, Inputs
from dlsr.errors import SettingsError
from dlsr.images.sources import ImageDataset
from dlsr.images.transforms import Transform, read_pixels
from dlsr.method.noise import noise_for, pixel_digest


@dataclass(kw_only=True, repr=False, eq=False)
class PixelBaseline(Baseline):
    """A detector that takes small square images, uint8 of shape `(n, C, H, W)`.

    Args:
        size: images are resized to this many pixels a side.
        grey: read images as one channel of grey (`C = 1`) instead of three of colour (`C = 3`).
    """

    size: int = 32
    grey: bool = False

    @property
    def image_channels(self) -> int:
        """`C`: 1 for grey images, 3 for colour."""
        return 1 if self.grey else 3

    def _check_size(self, multiple: int) -> None:
        if self.size < multiple or self.size % multiple:
            raise SettingsError(f"'{self.name}' needs a size that is a multiple of {multiple}, not {self.size}")

    def _read(self, images: ImageDataset, transform: Transform | None) -> tuple[Inputs, list[str | None]]:
        def apply(image: Image.Image) -> Image.Image:
            changed = transform.apply(image) if transform else image
            return changed.convert("L").convert("RGB") if self.grey else changed

        pixels, errors = read_pixels(images, self.size, "bicubic", apply=apply, workers=self.workers)
        return pixels[..., : self.image_channels], errors

    def _tensor(self, inputs: Inputs) -> Tensor:
        return torch.from_numpy(inputs).permute(0, 3, 1, 2).contiguous().to(self._device())

    def _noise(self, pixels: Tensor, draws: int, *shape: int) -> Tensor:
        """Standard normal noise, a function of each image and the seed: `(n, C, H, W)` to `(n, draws, *shape)`."""
        digests = np.stack([pixel_digest(image) for image in pixels.permute(0, 2, 3, 1).cpu().numpy()])
        noise = noise_for(digests, self.seed, draws, math.prod(shape))
        return torch.from_numpy(noise).reshape(len(pixels), draws, *shape).to(pixels.device)
