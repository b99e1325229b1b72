"""Noise that belongs to an image: a function of its content and the seed, never of the batch around it."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DIGEST_BYTES = 16


def content_digest(content: bytes | memoryview, shape: Sequence[int] = ()) -> bytes:
    """Digest of an image's decoded pixels (or of a feature row) and their shape: 16 bytes."""
    digest = hashlib.blake2b(repr(tuple(shape)).encode(), digest_size=DIGEST_BYTES)
    digest.update(content)
    return digest.digest()


def pixel_digest(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Content digest of an image as the encoder sees it, uint8 of shape `(size, size, 3)`: shape `(16,)`."""
    return np.frombuffer(content_digest(np.ascontiguousarray(pixels).data, pixels.shape), np.uint8)


def row_digests(features: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Digests of feature rows, for features that come without images: shape `(N, 16)`."""
    digests = b"".join(content_digest(row.tobytes()) for row in features)
    return np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES)


def noise_for(digests: NDArray[np.uint8], seed: int, draws: int, c: int) -> Tensor:
    """Standard normal noise for each image.

    Args:
        digests: content digests, shape `(N, 16)`.
        seed: the detector's seed.
        draws: independent draws for each image.
        c: numbers in one draw.

    Returns:
        float32 tensor of shape `(N, draws, c)`. Row `i` depends on `digests[i]` and `seed` alone, and its first
        draws do not depend on how many follow.
    """
    noise = np.empty((len(digests), draws, c), np.float32)
    for row, digest in zip(noise, digests, strict=True):
        key = hashlib.blake2b(digest.tobytes(), key=seed.to_bytes(8, "little", signed=True), digest_size=16).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
        generator.standard_normal(out=row, dtype=np.float32)
    return torch.from_numpy(noise)
