"""What is done to a decoded image before the encoder: resizing, and the protocols of an evaluation."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dlsr.errors import ImageError, SettingsError
from dlsr.images.decode import Interpolation, decode, reason_of
from dlsr.images.sources import ImageDataset, ImageItem
from dlsr.streaming import map_ahead

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def resize(image: Image.Image, size: int, interpolation: Interpolation) -> NDArray[np.uint8]:
    """Resize to `size` x `size` pixels: uint8 array of shape `(size, size, 3)`."""
    return np.asarray(image.resize((size, size), _RESAMPLING[interpolation]), dtype=np.uint8)


def read_pixels(
    images: ImageDataset,
    size: int,
    interpolation: Interpolation,
    *,
    apply: Callable[[Image.Image], Image.Image] | None = None,
    workers: int = 2,
) -> tuple[NDArray[np.uint8], list[str | None]]:
    """Decode and resize all images of a set.

    Args:
        images: what to read.
        size: pixels a side.
        interpolation: of the resize.
        apply: a change made to each image before it is resized.
        workers: threads.

    Returns:
        The readable ones, uint8 of shape `(R, size, size, 3)`; and for each image why it cannot be read, or None.
    """

    def read(item: ImageItem) -> NDArray[np.uint8] | str:
        try:
            image = decode(item.read())
            return resize(apply(image) if apply else image, size, interpolation)
        except (ImageError, OSError) as error:
            return reason_of(error)

    read_ones = list(map_ahead(read, images.items, workers, ahead=256))
    pixels = [one for one in read_ones if not isinstance(one, str)]
    errors = [one if isinstance(one, str) else None for one in read_ones]
    return np.stack(pixels) if pixels else np.empty((0, size, size, 3), np.uint8), errors


def recompress(image: Image.Image, size: int, quality: int) -> Image.Image:
    """Resize to `size` x `size`, then JPEG with 4:2:0 chroma: what the `matched` protocol does to every image."""
    buffer = io.BytesIO()
    image.resize((size, size), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return Image.open(buffer).convert("RGB")


@dataclass(frozen=True)
class Transform:
    """A change made to each decoded image before it is resized for the encoder, and the name that keys it."""

    name: str
    apply: Callable[[Image.Image], Image.Image]


Protocol = Literal["native", "matched"]


PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


MATCHED_SIZE = 32


MATCHED_QUALITY = 75


def protocol_transform(
    protocol: Protocol, size: int = MATCHED_SIZE, quality: int = MATCHED_QUALITY
) -> Transform | None:
    """What a protocol does to each image before the encoder's own resize.

    `native` does nothing, as the paper. `matched` takes away the shortcuts of resolution and compression: each
    image, ID or OOD, is resized to `size` and JPEG-compressed at `quality`, 4:2:0.
    """
    if protocol == "native":
        return None
    if protocol != "matched":
        raise SettingsError(f"unknown protocol '{protocol}'; choose one of {', '.join(PROTOCOLS)}")
    return Transform(f"matched-{size}-{quality}", lambda image: recompress(image, size, quality))
