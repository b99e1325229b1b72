"""Simple properties of images, by which people see what changed: brightness, sharpness, size, colour, file type."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageStat

from dlsr.calibration.reasons import MEASURED, Ranges
from dlsr.errors import NoSuchImageError
from dlsr.images.decode import DRAFT_MARGIN, UNREADABLE, decode, opened, orientation_of, reason_of, undecodable
from dlsr.images.sources import ImageDataset, ImageItem
from dlsr.streaming import map_ahead

MEASURED_SIDE = 512
"""Pixels of larger images are averaged in blocks first, until no side is longer than this. Of a JPEG that is more than
twice as large, this is done by decoding it at reduced size."""

QUARTER_TURNS = range(5, 9)
"""EXIF orientations that turn an image by 90 degrees."""
DRAFTED = ("JPEG", "MPO")
"""Formats that may be decoded at reduced size."""

Properties = dict[str, float | str]
"""Properties of one image by name: numbers, and the file type."""


@dataclass(frozen=True)
class MeasuredImages:
    """Properties of the R readable images of a dataset."""

    properties: dict[str, NDArray[Any]]
    """Each property's values by its name, of shape `(R,)`, in the order of the images: float64, or strings."""
    unreadable: dict[str, str]
    """Reasons by name, of images that cannot be read."""


def properties_of(raw: object) -> Properties:
    """Properties of an image, each chosen to change little with the others.

    - `brightness`: mean grey value, in [0, 1].
    - `contrast`: standard deviation of the grey values.
    - `sharpness`: variance of the Laplacian (Pech-Pacheco et al. 2000), divided by the variance of the grey values, so
      that a darker image is not a blurred one; 0 for an image of one colour.
    - `saturation`: mean HSV saturation, in [0, 1].
    - `warmth`: `(red - blue) / (red + blue)` of the mean colour, in [-1, 1]; above 0 for reddish images.
    - `width` and `height` in pixels, after EXIF rotation; `aspect ratio`: width / height.
    - of encoded images also `file size` in bytes, and `file type`: Pillow's name of the format, such as JPEG.
    - of JPEGs also `compression`: the mean step by which brightness is quantised; about 29 at quality 75, 1 at 100.

    Args:
        raw: an image as `dlsr.images.decode.decode` takes it.

    Raises:
        ImageError: with the reason, if it cannot be decoded.
    """
    image = decode(raw, draft=MEASURED_SIDE // DRAFT_MARGIN if isinstance(raw, bytes) else None)
    width, height = image.size
    if isinstance(raw, bytes):
        with undecodable():
            encoded = opened(raw)
            if encoded.format in DRAFTED:
                width, height = encoded.size[::-1] if orientation_of(encoded) in QUARTER_TURNS else encoded.size
            file_type, tables = str(encoded.format), getattr(encoded, "quantization", None)
    found: Properties = {**_of_pixels(image), "width": float(width), "height": float(height)}
    found["aspect ratio"] = width / height
    if isinstance(raw, bytes):
        found |= {"file size": float(len(raw)), "file type": file_type}
        if tables:
            found["compression"] = float(np.mean(tables[min(tables)]))
    return found


def measure(images: ImageDataset, *, workers: int = 2, progress: Callable[[int], None] | None = None) -> MeasuredImages:
    """Properties of all images of a dataset that can be read. Only those that all of them have are given.

    Args:
        images: images to read.
        workers: threads that read and decode.
        progress: callback with the number of images done since the last call.
    """

    def read(item: ImageItem) -> Properties | str | None:
        try:
            return properties_of(item.read())
        except NoSuchImageError:
            return None
        except UNREADABLE as error:
            return reason_of(error)

    found: list[Properties] = []
    unreadable: dict[str, str] = {}
    for item, outcome in zip(images.items, map_ahead(read, images.items, workers, ahead=8 * workers), strict=True):
        if isinstance(outcome, str):
            unreadable[item.name] = outcome
        elif outcome is not None:
            found.append(outcome)
        if progress is not None:
            progress(1)
    names = [name for name in (found[0] if found else {}) if all(name in image for image in found)]
    return MeasuredImages({name: np.array([image[name] for image in found]) for name in names}, unreadable)


def sharpness_of(image: Image.Image) -> float:
    """The property `sharpness` of an RGB image, see `properties_of`."""
    return _sharpness(_grey(_reduced(image)))


def _reduced(image: Image.Image) -> Image.Image:
    return image.reduce(-(-max(image.size) // MEASURED_SIDE))


def _grey(image: Image.Image) -> NDArray[np.float32]:
    grey: NDArray[np.float32] = np.asarray(image.convert("L"), np.float32) / np.float32(255)
    return grey


def ranges_of(images: ImageDataset, seed: int, workers: int = 2) -> Ranges:
    """Ranges of the properties of ID images, from `MEASURED` of them drawn at random; unreadable ones are left out."""
    return Ranges.of(measure(images.sample(MEASURED, seed), workers=workers).properties)


def _of_pixels(image: Image.Image) -> dict[str, float]:
    image = _reduced(image)
    grey = _grey(image)
    red, _, blue = ImageStat.Stat(image).mean
    return {
        "brightness": float(grey.mean()),
        "contrast": float(grey.var()) ** 0.5,
        "sharpness": _sharpness(grey),
        "saturation": ImageStat.Stat(image.convert("HSV")).mean[1] / 255,
        "warmth": (red - blue) / (red + blue) if red + blue > 0 else 0.0,
    }


def _sharpness(grey: NDArray[np.float32]) -> float:
    variance = float(grey.var())
    return float(_laplacian(grey).var()) / variance if variance > 0 else 0.0


def _laplacian(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """The Laplacian at each pixel; the border is repeated outwards."""
    padded = np.pad(grey, 1, mode="edge")
    return padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * grey
