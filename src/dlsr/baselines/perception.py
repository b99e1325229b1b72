"""A perceptual distance of images from the activations of a pretrained encoder.

The papers use LPIPS (Zhang et al. 2018), whose weights have to be downloaded. As LPIPS does, this compares unit-length
activations at each position and at several depths of a network trained on ImageNet.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlsr.encoders.network import PixelsToZ0, feature_network
from dlsr.encoders.presets import encoder_spec


class Perception(nn.Module):
    """The encoder `efficientnet_lite0` at a low resolution."""

    SIZE = 64

    def __init__(self) -> None:
        super().__init__()
        spec = encoder_spec("efficientnet_lite0")
        self.encoder = PixelsToZ0(feature_network(spec), spec.mean, spec.std).eval()

    @staticmethod
    @lru_cache(maxsize=1)
    def shared(device: str) -> "Perception":
        """The instance that all detectors of this process share."""
        return Perception().to(device)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances of images in `[-1, 1]`: `(n, C, H, W)` twice to `(n,)`; 0 for equal images."""
        return self.by_stage(a, b).mean(dim=0)

    @torch.no_grad()
    def by_stage(self, a: Tensor, b: Tensor) -> Tensor:
        """Their distances in each stage of the encoder: `(n, C, H, W)` twice to `(stages, n)`."""
        both = zip(self._maps(a), self._maps(b), strict=True)
        return torch.stack([(x - y).square().sum(dim=1).mean(dim=(1, 2)) for x, y in both])

    def _maps(self, images: Tensor) -> list[Tensor]:
        colour = images.expand(-1, 3, -1, -1)
        larger = F.interpolate(colour, size=(self.SIZE, self.SIZE), mode="bilinear")
        pixels = (127.5 * (larger + 1)).permute(0, 2, 3, 1)
        return [F.normalize(maps, dim=1) for maps in self.encoder.network(self.encoder.normalised(pixels))]
