"""Maps of where images deviate, on one scale for all images of a model.

How far a score lies above ordinary ones is shared out over the image by `dlsr.method.maps.odd_places`: an image that
scores like most ID images has a dark map, however its places compare with each other. The unit is fixed on ID images.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dlsr.encoders.encoder import Encoder
from dlsr.encoding.extractor import FeatureExtractor
from dlsr.errors import NoSuchImageError, SettingsError
from dlsr.images.decode import UNREADABLE, reason_of
from dlsr.images.sources import ImageDataset, ImageItem
from dlsr.method.maps import odd_places
from dlsr.method.noise import pixel_digest
from dlsr.model import FittedModel
from dlsr.scoring import NO_MAPS
from dlsr.streaming import in_groups, map_ahead

PEAK_IMAGES = 60
"""The unit is taken from at most this many images of a fit."""
UNIT = 0.95
"""In this share of ID images no place exceeds 1."""
CALIBRATION = 201
"""Calibration scores enter by so many quantiles, which take no time."""
TINY = 1e-12
"""Divisors are at least this."""
LONGEST = 512
"""Pixels of the longer side of an image that a map is drawn over."""
AT_ONCE = 4
"""Images that are encoded and derived at once, in each thread."""
FAINT, FULL = 0.5, 3.0
"""From the first value on a place is drawn over, from the second on in full strength."""
STRENGTH = 0.75
"""Opacity of a place that is drawn over in full strength."""
LOW, HIGH = (255, 96, 0), (255, 240, 64)
"""Colours of the first and the last values."""

Map = NDArray[np.float32]


@dataclass(frozen=True)
class AnomalyMap:
    """Where an image deviates. Of an unreadable image only path and error are known."""

    path: str
    values: Map | None = None
    """Shape `(28, 28)`, at least 0; in 95 % of ID images none is above 1. They cover the whole image, whatever its
    aspect."""
    image: Image.Image | None = None
    """The image, its longer side at most 512 pixels."""
    error: str | None = None
    """Why it cannot be read."""

    def overlay(self, size: tuple[int, int]) -> Image.Image:
        """A transparent picture to lay over the image: RGBA, `size` are its width and height in pixels."""
        assert self.values is not None
        level = ((self.values - FAINT) / (FULL - FAINT)).clip(0, 1)
        colours = np.array(LOW) + level[..., None] * (np.array(HIGH) - np.array(LOW))
        opacity = np.where(self.values > FAINT, np.sqrt(level), 0) * STRENGTH * 255
        rgba = np.concatenate([colours, opacity[..., None]], axis=2).round().astype(np.uint8)
        return Image.fromarray(rgba, "RGBA").resize(size, Image.Resampling.BILINEAR)

    def drawn(self) -> Image.Image:
        """The image with the map laid over it."""
        assert self.image is not None
        return Image.alpha_composite(self.image.convert("RGBA"), self.overlay(self.image.size)).convert("RGB")


def anomaly_maps(model: FittedModel, extractor: FeatureExtractor, images: ImageDataset) -> Iterator[AnomalyMap]:
    """Maps of images, in their order. Memory does not grow with their number.

    Raises:
        SettingsError: for a model that was fitted without maps.
    """
    if model.map_peaks is None:
        raise SettingsError(NO_MAPS)
    return _on_one_scale(model, model.map_peaks, extractor, images)


def _on_one_scale(
    model: FittedModel, peaks: NDArray[np.float64], extractor: FeatureExtractor, images: ImageDataset
) -> Iterator[AnomalyMap]:
    calibration = model.calibration.scores
    ordinary = excess(np.quantile(calibration, np.linspace(0, 1, CALIBRATION)), calibration)
    unit = max(float(np.quantile(np.outer(ordinary, peaks), UNIT)), TINY)
    for path, found in _places(model, extractor, images):
        if isinstance(found, str):
            yield AnomalyMap(path, error=found)
        else:
            above = excess(np.array([found.score]), calibration)[0]
            yield AnomalyMap(path, found.odd * np.float32(above / unit), found.image)


def peaks_of(model: FittedModel, extractor: FeatureExtractor, images: ImageDataset) -> NDArray[np.float64]:
    """The highest values of `odd_places` of some of the images, at least one of which can be read: shape `(n,)`.

    Raises:
        SettingsError: for an encoder without maps.
    """
    found = _places(model, extractor, images.sample(PEAK_IMAGES, model.settings.seed))
    return np.array([place.odd.max() for _, place in found if not isinstance(place, str)], np.float64)


def excess(scores: NDArray[np.float64], calibration: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far scores lie above the median of the calibration scores, in standard deviations; nearly 0 below it.

    Softened (softplus), so that the darkest map still tells which of its places is the oddest.
    """
    median, high = np.quantile(calibration, [0.5, 0.84])
    softened: NDArray[np.float64] = np.logaddexp(0, (scores - median) / max(high - median, TINY))
    return softened


@dataclass(frozen=True)
class _Places:
    image: Image.Image
    score: float
    odd: Map


def _places(
    model: FittedModel, extractor: FeatureExtractor, images: ImageDataset
) -> Iterator[tuple[str, _Places | str]]:
    """By name: score and `odd_places`, or the reason why an image cannot be read."""
    encoder = extractor.encoder
    if not encoder.spec.map_names:
        raise SettingsError("this model's encoder has no maps; fit one with stages")

    def derive(items: list[_Decoded]) -> list[tuple[str, _Places | str]]:
        places = iter(_of_images(model, encoder, [item for item in items if item.error is None]))
        return [(item.name, item.error or next(places)) for item in items]

    streams = encoder.streams
    # Read one by one, in order, as frames of a clip have to be.
    decoded = map_ahead(lambda item: _decode(item, encoder), images.items, extractor.workers, ahead=8 * AT_ONCE)
    with closing(decoded):
        there = (item for item in decoded if item is not None)
        for group in map_ahead(derive, in_groups(there, AT_ONCE), streams, ahead=2 * streams):
            yield from group


@dataclass(frozen=True)
class _Decoded:
    name: str
    image: Image.Image | None = None
    """For people."""
    pixels: NDArray[np.uint8] | None = None
    """For the encoder."""
    error: str | None = None


def _decode(item: ImageItem, encoder: Encoder) -> _Decoded | None:
    """An image, decoded; None for a frame behind the end of a clip."""
    try:
        image = encoder.spec.decode(item.read())
        pixels = encoder.spec.resize(image)
    except NoSuchImageError:
        return None
    except UNREADABLE as error:
        return _Decoded(item.name, error=reason_of(error))
    small = image.copy()
    small.thumbnail((LONGEST, LONGEST))
    return _Decoded(item.name, small, pixels)


def _of_images(model: FittedModel, encoder: Encoder, images: list[_Decoded]) -> list[_Places]:
    shown = [(item.image, item.pixels) for item in images if item.image is not None and item.pixels is not None]
    if not shown:
        return []
    digests = np.stack([pixel_digest(pixels) for _, pixels in shown])
    z0, maps = encoder.encode_with_maps(np.stack([pixels for _, pixels in shown]))
    scores = model.score(z0, digests)[0]
    gradient = model.scorer.gradient(z0, digests, model.settings.seed)
    odd = [
        odd_places([of_stage[i] for of_stage in maps], gradient[i], model.channels, encoder.spec.pooling)
        for i in range(len(shown))
    ]
    return [_Places(image, float(score), of_it) for (image, _), score, of_it in zip(shown, scores, odd, strict=True)]
