"""Faults that show in the pixels of an image: too dark, too bright, blurry, empty, grey, of an odd shape or size.

Measures and limits are those of cleanvision 0.3 (https://github.com/cleanlab/cleanvision), so that counts can be
compared with it, except for blur. `docs/audit.md` tells where the two differ.
"""

from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from dlsr.images.decode import decode
from dlsr.images.properties import sharpness_of
from dlsr.method.noise import content_digest

MOST_BRIGHTNESSES = 2**20
"""Of an image with more pixels, every second, third, .. row and column is measured."""
LUMINANCE = (0.241, 0.691, 0.068)
"""Weights of the squares of red, green and blue in the perceived brightness."""

DARK = 0.32
"""A dark image has 99 % of its pixels below this brightness."""
BRIGHT = 0.95
"""A bright image has 95 % of its pixels above this brightness."""
LOW_ENTROPY = 3.0
"""Bits."""
BLURRY = 0.01
"""A blurry image is less sharp than this. Of 4,869 images of six real datasets one is, of 400 blurred ones 364 are
(`docs/cleanvision.md`)."""
ODD_ASPECT = 0.35
"""Shorter side divided by the longer one."""
ODD_SIZE = 3.0
"""The square root of the area is this many interquartile ranges below the first quartile, or above the third."""


@dataclass(frozen=True)
class Quality:
    """Measures of one image."""

    width: int
    height: int
    """After EXIF rotation, in pixels, as is `width`."""
    dark_end: float
    """5th percentile of the pixels' brightness, in [0, 1]."""
    bright_end: float
    """99th percentile of the pixels' brightness, in [0, 1]."""
    entropy: float
    """Of the histogram of grey values, or of that of all three colours of a coloured image, in bits."""
    sharpness: float
    """See `dlsr.images.properties.properties_of`."""
    grey: bool
    """Whether all pixels are grey."""


MEASURES = tuple(field.name for field in fields(Quality))


def quality_of(raw: object) -> tuple[Quality, bytes]:
    """Measures of an image, and a 16-byte digest of its pixels: exact copies have the same, whatever their files are.

    Args:
        raw: an image as `dlsr.images.decode.decode` takes it.

    Raises:
        ImageError: with the reason, if it cannot be decoded.
    """
    image = decode(raw)
    red, green, blue = image.split()
    grey = ImageChops.difference(red, green).getbbox() is None and ImageChops.difference(red, blue).getbbox() is None
    dark_end, bright_end = np.percentile(_brightness(image), [5, 99])
    quality = Quality(
        width=image.width,
        height=image.height,
        dark_end=float(dark_end),
        bright_end=float(bright_end),
        entropy=float((red if grey else image).entropy()),
        sharpness=sharpness_of(image),
        grey=grey,
    )
    return quality, content_digest(image.tobytes(), image.size)


def _brightness(image: Image.Image) -> NDArray[np.float32]:
    """Perceived brightness of the pixels, in [0, 1]."""
    every = int(np.ceil((image.width * image.height / MOST_BRIGHTNESSES) ** 0.5))
    pixels = np.asarray(image)[::every, ::every].astype(np.float32) / np.float32(255)
    brightness: NDArray[np.float32] = np.sqrt(np.square(pixels) @ np.array(LUMINANCE, np.float32))
    return brightness


def table_of(qualities: list[Quality]) -> dict[str, NDArray[np.float64]]:
    """Each measure of all images by its name, shape `(N,)`."""
    values = np.array([astuple(quality) for quality in qualities], np.float64).reshape(-1, len(MEASURES))
    return dict(zip(MEASURES, values.T, strict=True))


def faults_of(measures: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.bool_]]:
    """Which of a folder's images have each fault, shape `(N,)`, by its name.

    Grey images are a fault if at most half of the images are grey. `odd-size` compares with the other images.

    Args:
        measures: as `table_of` gives them.
    """
    sides = measures["width"], measures["height"]
    grey = measures["grey"] > 0
    size = np.sqrt(sides[0] * sides[1])
    low, high = np.percentile(size, [25, 75]) if len(size) else (0.0, 0.0)
    reach = ODD_SIZE * (high - low)
    return {
        "dark": measures["bright_end"] < DARK,
        "bright": measures["dark_end"] > BRIGHT,
        # An image of one colour has a sharpness of 0, and is none that is out of focus.
        "blurry": (measures["sharpness"] > 0) & (measures["sharpness"] < BLURRY),
        "low-information": measures["entropy"] < LOW_ENTROPY,
        "grey": grey & (2 * grey.sum() <= len(grey)),
        "odd-aspect": np.minimum(*sides) < ODD_ASPECT * np.maximum(*sides),
        "odd-size": (size < low - reach) | (size > high + reach),
    }
