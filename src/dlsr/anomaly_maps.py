"""Maps of where images deviate, on one scale for all images of a model.

How far a score lies above ordinary ones is shared out over the image by `dlsr.method.maps.odd_places`: an image that
scores like most ID images has a dark map, however its places compare with each other. The unit is fixed on ID images.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dlsr.encoders.encoder import Encoder
from dlsr.encoding.extractor import FeatureExtractor
from dlsr.encoding.pipeline import Prepared, encoded_of, prepare
from dlsr.errors import SettingsError
from dlsr.images.sources import ImageDataset
from dlsr.method.maps import odd_places
from dlsr.model import FittedModel
from dlsr.results import Result, Results
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
DETECTED = 32
"""Images whose results are computed at once."""
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


def detect_with_maps(
    model: FittedModel, extractor: FeatureExtractor, images: ImageDataset, rate: float, confidence: float | None
) -> Iterator[tuple[Results, list[AnomalyMap]]]:
    """Results and maps of some images at a time, in their order: each is encoded once, and its features are kept.

    Args:
        model: fitted with maps.
        extractor: of this model.
        images: any number of them; memory does not grow with it.
        rate: see `FittedModel.detect`, as is `confidence`.
        confidence: of the rate.

    Raises:
        SettingsError: for a model that was fitted without maps.
        TooFewImagesError: if the calibration images are too few for the rate.
    """
    if model.map_peaks is None:
        raise SettingsError(NO_MAPS)
    model.calibration.check_size(rate, confidence)
    calibration = model.calibration.scores
    ordinary = excess(np.quantile(calibration, np.linspace(0, 1, CALIBRATION)), calibration)
    unit = max(float(np.quantile(np.outer(ordinary, model.map_peaks), UNIT)), TINY)

    def map_of(result: Result, place: _Places | None) -> AnomalyMap:
        if place is None or result.score is None:
            return AnomalyMap(result.path, error=result.error)
        above = excess(np.array([result.score]), calibration)[0]
        return AnomalyMap(result.path, place.odd * np.float32(above / unit), place.image)

    def detected(found: Sequence[_Found]) -> tuple[Results, list[AnomalyMap]]:
        encoded = encoded_of([image for image, _ in found], extractor.encoder.c)
        results = model.detect(encoded, rate, confidence)
        return results, [map_of(result, place) for result, (_, place) in zip(results, found, strict=True)]

    return map(detected, in_groups(_places(model, extractor, images), DETECTED))


def peaks_of(model: FittedModel, extractor: FeatureExtractor, images: ImageDataset) -> NDArray[np.float64]:
    """The highest values of `odd_places` of some of the images, at least one of which can be read: shape `(n,)`.

    Raises:
        SettingsError: for an encoder without maps.
    """
    found = _places(model, extractor, images.sample(PEAK_IMAGES, model.settings.seed))
    return np.array([place.odd.max() for _, place in found if place is not None], np.float64)


def excess(scores: NDArray[np.float64], calibration: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far scores lie above the median of the calibration scores, in standard deviations; nearly 0 below it.

    Softened (softplus), so that the darkest map still tells which of its places is the oddest.
    """
    median, high = np.quantile(calibration, [0.5, 0.84])
    softened: NDArray[np.float64] = np.logaddexp(0, (scores - median) / max(high - median, TINY))
    return softened


@dataclass(frozen=True)
class _Places:
    """Where an image is odd."""

    image: Image.Image
    """For people."""
    odd: Map
    """See `odd_places`."""


_Found = tuple[Prepared, _Places | None]
"""An image with its features, and where it is odd; None if it cannot be read."""


def _places(model: FittedModel, extractor: FeatureExtractor, images: ImageDataset) -> Iterator[_Found]:
    """Features and `odd_places` of images, in their order."""
    encoder = extractor.encoder
    if not encoder.spec.map_names:
        raise SettingsError("this model's encoder has no maps; fit one with stages")

    def derive(items: list[Prepared]) -> list[_Found]:
        return list(zip(items, _of_images(model, encoder, items), strict=True))

    streams = encoder.streams
    # Read one by one, in order, as frames of a clip have to be.
    prepared = map_ahead(
        lambda item: prepare(item, encoder, shown=LONGEST), images.items, extractor.workers, ahead=8 * AT_ONCE
    )
    with closing(prepared), extractor.saver() as saver:
        there = (item for item in prepared if item is not None)
        with closing(map_ahead(derive, in_groups(there, AT_ONCE), streams, ahead=2 * streams)) as groups:
            for group in groups:
                for image, place in group:
                    saver.add(image)
                    yield image, place


def _of_images(model: FittedModel, encoder: Encoder, items: list[Prepared]) -> list[_Places | None]:
    """Encode images, and find where they are odd."""
    there = [(item, item.pixels, item.digest) for item in items if item.pixels is not None and item.digest is not None]
    places: list[_Places] = []
    if there:
        pixels, digests = np.stack([of_it for _, of_it, _ in there]), np.stack([digest for *_, digest in there])
        z0, maps = encoder.encode_with_maps(pixels)
        if encoder.spec.precision != "float32":
            # Engines round in other places if maps are asked for, and the calibration images were encoded without.
            z0 = encoder.encode(pixels)
        gradient = model.scorer.gradient(z0, digests, model.settings.seed)
        for i, (item, *_) in enumerate(there):
            item.encoded(z0[i])
            of_image = [of_stage[i] for of_stage in maps]
            odd = odd_places(of_image, gradient[i], model.channels, encoder.spec.pooling)
            assert item.shown is not None
            places.append(_Places(item.shown, odd))
    readable = iter(places)
    return [None if item.error else next(readable) for item in items]
