"""The input-complexity score (Serrà et al. 2020, "Input complexity and OOD detection with likelihood-based models").

A likelihood model gives simple images a high likelihood whatever they show, so the size of the losslessly compressed
image is subtracted: `S = -log2 p(x) - L(x)`, both in bits per dimension.
"""

import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

FORMATS: dict[str, dict[str, Any]] = {
    "PNG": {"optimize": True},
    "JPEG2000": {"irreversible": False},
    "WEBP": {"lossless": True, "quality": 100, "method": 6},
}
"""Lossless formats of Pillow, with the options that make the smallest files."""


def complexity(pixels: NDArray[np.uint8]) -> float:
    """Bits per dimension of an image in the smallest of `FORMATS`: uint8, shape `(H, W, 1 | 3)`.

    The paper uses the smallest of PNG, JPEG 2000 and FLIF; Pillow has no FLIF, so lossless WebP is taken instead.
    """
    image = Image.fromarray(pixels.squeeze(axis=2) if pixels.shape[2] == 1 else pixels)
    sizes = []
    for kind, options in FORMATS.items():
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        sizes.append(len(buffer.getvalue()))
    return 8 * min(sizes) / pixels.size


def complexity_of(pixels: Tensor) -> Tensor:
    """`complexity` of each image: uint8 of shape `(n, C, H, W)` to `(n,)`, on the CPU."""
    return torch.tensor([complexity(image) for image in pixels.permute(0, 2, 3, 1).cpu().numpy()])
