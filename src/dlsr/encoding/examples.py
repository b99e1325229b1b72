"""Example ID images saved with a model, so that reports can show the most similar ones beside a new image."""

import io
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlsr.encoding.pipeline import Encoded
from dlsr.images.decode import UNREADABLE, decode
from dlsr.images.sources import ImageDataset

SIDE = 96
"""Longer side of a thumbnail in pixels."""
QUALITY = 85
"""JPEG quality of thumbnails."""


@dataclass(frozen=True)
class Examples:
    """Thumbnails and features of some in-distribution images."""

    names: tuple[str, ...]
    z0: NDArray[np.float32]
    """Shape `(n, c)`."""
    thumbnails: tuple[bytes, ...]
    """JPEG files."""

    def nearest(self, z0: NDArray[np.float32], count: int) -> NDArray[np.intp]:
        """Indices of the nearest examples by Euclidean distance for features `z0`: `(N, c)` to `(N, min(count, n))`."""
        squares = np.square(self.z0).sum(axis=1) - 2 * z0 @ self.z0.T
        return np.argsort(squares, axis=1, kind="stable")[:, :count]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays, for saving."""
        return {
            "names": np.frombuffer(json.dumps(self.names).encode(), np.uint8),
            "z0": self.z0,
            "sizes": np.array([len(content) for content in self.thumbnails], np.int64),
            "thumbnails": np.frombuffer(b"".join(self.thumbnails), np.uint8),
        }

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> "Examples":
        """The inverse of `arrays`.

        Raises:
            KeyError: if an array is missing.
            ValueError: if the arrays do not belong together.
        """
        content, sizes = arrays["thumbnails"].tobytes(), arrays["sizes"]
        if sizes.ndim != 1 or not np.issubdtype(sizes.dtype, np.integer) or (sizes < 0).any():
            raise ValueError("the sizes of thumbnails are not whole numbers")
        ends = np.cumsum(sizes, dtype=np.int64)
        starts = [0, *ends[:-1].tolist()]
        names = tuple(json.loads(arrays["names"].tobytes()))
        if len(ends) != len(names) or [*ends[-1:]] != [len(content)] or not all(isinstance(n, str) for n in names):
            raise ValueError("the names and sizes of thumbnails do not belong to them")
        thumbnails = tuple(content[start:end] for start, end in zip(starts, ends.tolist(), strict=True))
        return cls(names, arrays["z0"], thumbnails)


def choose_examples(images: ImageDataset, encoded: Encoded, count: int, seed: int) -> Examples | None:
    """Choose at most `count` readable images at random; None if there are none.

    Images that have become unreadable since they were encoded are passed over.
    """
    readable = np.flatnonzero(encoded.readable)
    chosen: list[int] = []
    thumbnails: list[bytes] = []
    order = np.random.default_rng(seed).permutation(len(readable))
    order[:count].sort()  # frames of a clip are read fastest in their order
    for position in order:
        if len(chosen) == count:
            break
        with suppress(*UNREADABLE):
            thumbnails.append(thumbnail(images.items[readable[position]].read()))
            chosen.append(position)
    if not chosen:
        return None
    names = tuple(Path(encoded.names[readable[position]]).name for position in chosen)
    return Examples(names, encoded.z0[chosen], tuple(thumbnails))


def more_examples(
    before: Examples | None, n: int, images: ImageDataset, encoded: Encoded, count: int, seed: int
) -> Examples | None:
    """At most `count` examples as if drawn from earlier images and new ones alike; None if there are none.

    Args:
        before: those drawn from the earlier images.
        n: number of images that they were drawn from.
        images: new ones.
        encoded: the same.
        count: how many at most.
        seed: of the draw.
    """
    drawn = np.random.default_rng(seed).permutation(n + len(images))[:count]
    new = choose_examples(images, encoded, int((drawn >= n).sum()), seed)
    if before is None or new is None:
        return before or new
    kept = np.sort(np.random.default_rng(seed).permutation(len(before.names))[: count - len(new.names)])
    return Examples(
        (*(before.names[i] for i in kept), *new.names),
        np.concatenate([before.z0[kept], new.z0]),
        (*(before.thumbnails[i] for i in kept), *new.thumbnails),
    )


def thumbnail(raw: object, side: int = SIDE) -> bytes:
    """An image as a small JPEG.

    Args:
        raw: see `dlsr.images.decode.decode`.
        side: longer side in pixels.

    Raises:
        ImageError: if it cannot be decoded.
    """
    image = decode(raw)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
