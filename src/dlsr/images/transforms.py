"""Images as arrays of one size, and changes to them before they are resized: the protocols of an evaluation."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dlsr.errors import SettingsError
from dlsr.images.decode import UNREADABLE, decode, reason_of
from dlsr.images.resizing import Interpolation, Resizer, resize, resizer_version
from dlsr.images.sources import ImageDataset, ImageItem
from dlsr.streaming import map_ahead

PIXELS_VERSION = 4
"""Raise it with every change to decoding, resizing, protocols or content digests that changes their results.

Cached features of earlier versions are then no longer used.
"""


def pixels_version(resizer: Resizer) -> str:
    """Versions of the code that decodes and resizes: dlsr's own, Pillow's and that of the resizer."""
    return f"{PIXELS_VERSION} Pillow {metadata.version('pillow')} {resizer_version(resizer)}"


def read_pixels(
    images: ImageDataset,
    size: int,
    interpolation: Interpolation,
    *,
    apply: Callable[[Image.Image], Image.Image] | None = None,
    workers: int = 2,
) -> tuple[NDArray[np.uint8], list[str | None]]:
    """Decode and resize all images of a dataset.

    Args:
        images: images to read.
        size: width and height in pixels.
        interpolation: used for resizing.
        apply: a change made to each image before it is resized.
        workers: number of threads.

    Returns:
        The R readable images, uint8 of shape `(R, size, size, 3)`; and for each of all N images None, or the reason why
        it cannot be read.
    """

    def read(item: ImageItem) -> NDArray[np.uint8] | str:
        try:
            image = decode(item.read())
            return resize(apply(image) if apply else image, size, interpolation)
        except UNREADABLE as error:
            return reason_of(error)

    outcomes = list(map_ahead(read, images.items, workers, ahead=256))
    pixels = [outcome for outcome in outcomes if not isinstance(outcome, str)]
    errors = [outcome if isinstance(outcome, str) else None for outcome in outcomes]
    return np.stack(pixels) if pixels else np.empty((0, size, size, 3), np.uint8), errors


def recompress(image: Image.Image, size: int, quality: int) -> Image.Image:
    """Resize to `size` x `size` pixels and compress as JPEG with 4:2:0 chroma, as the `matched` protocol does."""
    buffer = io.BytesIO()
    image.resize((size, size), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return Image.open(buffer).convert("RGB")


@dataclass(frozen=True)
class Transform:
    """A change made to each decoded image before it is resized for the encoder."""

    name: str
    """Part of the feature store's key: another change needs another name."""
    apply: Callable[[Image.Image], Image.Image]


Protocol = Literal["native", "matched"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
MATCHED_SIZE = 32
MATCHED_QUALITY = 75


def protocol_transform(
    protocol: Protocol, size: int = MATCHED_SIZE, quality: int = MATCHED_QUALITY
) -> Transform | None:
    """The change that a protocol makes to each image before it is resized for the encoder; None for no change.

    `native` changes nothing, as in the paper. `matched` removes differences in resolution and compression, by which
    alone ID and OOD images could be told apart: each image is resized to `size` x `size` pixels and compressed as JPEG
    at `quality` with 4:2:0 chroma.

    Raises:
        SettingsError: for an unknown protocol.
    """
    if protocol == "native":
        return None
    if protocol != "matched":
        raise SettingsError(f"unknown protocol '{protocol}'; choose one of {', '.join(PROTOCOLS)}")
    return Transform(f"matched-{size}-{quality}", lambda image: recompress(image, size, quality))
