"""Noise as a function of an image's content and a seed, so that scores do not depend on the batch or the order."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 16
"""Length of a content digest."""
MOST_NOISE = 2**24
"""At most this many random numbers are held at once."""

Digests = NDArray[np.uint8]


def content_digest(content: bytes | memoryview, shape: Sequence[int] = ()) -> bytes:
    """16-byte digest of decoded pixels, or of a feature vector, and their shape."""
    digest = hashlib.blake2b(repr(tuple(shape)).encode(), digest_size=DIGEST_BYTES)
    digest.update(content)
    return digest.digest()


def pixel_digest(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Content digest of a resized image, uint8 of shape `(size, size, 3)`: uint8 of shape `(16,)`."""
    return np.frombuffer(content_digest(np.ascontiguousarray(pixels).data, pixels.shape), np.uint8)


def row_digests(features: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Digests of feature vectors of shape `(N, c)`, for features without images: uint8 of shape `(N, 16)`."""
    digests = b"".join(content_digest(z0.tobytes()) for z0 in features)
    return np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES)


def noise_for(digests: NDArray[np.uint8], seed: int, draws: int, c: int) -> NDArray[np.float32]:
    """Standard normal noise for each image.

    Args:
        digests: content digests, shape `(N, 16)`.
        seed: the detector's seed.
        draws: number of independent draws for each image.
        c: dimension of a draw.

    Returns:
        float32 of shape `(N, draws, c)`. Item `i` depends on `digests[i]` and `seed` alone. Its first draws do
        not depend on the number of draws.
    """
    noise = np.empty((len(digests), draws, c), np.float32)
    if not noise.size:  # seeding a generator for each image takes longer than some scores
        return noise
    for out, digest in zip(noise, digests, strict=True):
        key = hashlib.blake2b(digest.tobytes(), key=seed.to_bytes(8, "little", signed=True), digest_size=16).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
        generator.standard_normal(out=out, dtype=np.float32)
    return noise


def batches_with_noise(
    digests: Digests, seed: int, draws: int, c: int, size: int
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Consecutive samples, at most `size` and `MOST_NOISE` random numbers at once, with their noise.

    Arguments as for `noise_for`, which also tells the noise's shape.
    """
    size = max(min(size, MOST_NOISE // max(draws * c, 1)), 1)
    for start in range(0, len(digests), size):
        batch = slice(start, start + size)
        yield batch, noise_for(digests[batch], seed, draws, c)
