"""Why an image is unlike the ID images, in words: the simple properties in which it lies outside their range.

Each property of an image gets a two-sided conformal p-value among those of measured ID images. Several properties are
tested, so words are given only to those that Holm's method (1979) rejects together at `LEVEL`: at most that share of
new ID images gets any word, if they are exchangeable with those measured. The words describe an image. They need not be
what its score is made of.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
"""Largest share of ID images that get a word."""
VERY = 0.2
"""An image is "very" dark if it lies so far beyond all ID images: a fifth of the scale ..."""
VERY_MANY_TIMES = 1.0
""".. or, of what is measured in multiples such as size, a power of two."""
NO_COLOUR = 1 / 255
"""Mean saturations below one grey level are those of greyscale images."""

Values = Mapping[str, float | str]
"""Properties of one image by name, as `dlsr.images.properties` measures them."""


@dataclass(frozen=True)
class _Property:
    """How a property is computed from those measured, and what an image is called that has little or much of it."""

    of: Callable[[Values], float | None]
    low: str
    high: str
    logarithmic: bool = False


def _named(name: str) -> Callable[[Values], float | None]:
    return lambda values: float(values[name]) if name in values else None


def _side(values: Values) -> float:
    return float(np.sqrt(float(values["width"]) * float(values["height"])))


PROPERTIES: Mapping[str, _Property] = {
    "brightness": _Property(_named("brightness"), "dark", "bright"),
    "contrast": _Property(_named("contrast"), "low in contrast", "high in contrast"),
    "sharpness": _Property(_named("sharpness"), "blurry", "sharp or noisy", logarithmic=True),
    "saturation": _Property(_named("saturation"), "pale", "colourful"),
    "warmth": _Property(_named("warmth"), "bluish", "reddish"),
    "side": _Property(_side, "small", "large", logarithmic=True),
    "aspect ratio": _Property(_named("aspect ratio"), "tall", "wide", logarithmic=True),
    "compression": _Property(_named("compression"), "lightly compressed", "heavily compressed", logarithmic=True),
}
"""What is tested. `side` is the square root of the number of pixels; `compression` is that of JPEGs."""

FEWEST = int(np.ceil(2 * len(PROPERTIES) / LEVEL)) - 1
"""With fewer ID images no property can be rejected: its smallest p-value is too large."""
MEASURED = 2 * (FEWEST + 1)
"""This many ID images are measured: with so many, a property is rejected up to the second most extreme image."""


@dataclass(frozen=True)
class Reason:
    """A property in which an image lies outside the range of the ID images."""

    name: str
    """One of `PROPERTIES`."""
    direction: Literal["low", "high"]
    words: str
    """Such as `very dark`."""
    value: float
    p_value: float
    """Two-sided conformal p-value of this property alone."""


@dataclass(frozen=True)
class Ranges:
    """Properties of ID images."""

    values: Mapping[str, NDArray[np.float64]]
    """By name of `PROPERTIES`: values in ascending order, shape `(n,)`. Those that not all images have are left out."""

    @classmethod
    def of(cls, measured: Mapping[str, NDArray[np.float64]]) -> Self:
        """Ranges from the properties of n images, as `dlsr.images.properties.measure` gives them."""
        names = list(measured)
        images = [dict(zip(names, values, strict=True)) for values in zip(*measured.values(), strict=True)]
        found: dict[str, NDArray[np.float64]] = {}
        for name, prop in PROPERTIES.items():
            values = [value for image in images if (value := prop.of(image)) is not None]
            if values and len(values) == len(images):
                found[name] = np.sort(np.array(values, np.float64))
        return cls(found)

    def joined(self, other: Self) -> Self:
        """Ranges of these images and others together."""
        both = self.values.keys() & other.values.keys()
        return replace(
            self, values={name: np.sort(np.concatenate([self.values[name], other.values[name]])) for name in both}
        )

    @property
    def images(self) -> int:
        """Number of ID images measured."""
        return min((len(values) for values in self.values.values()), default=0)


def why_no_reasons(ranges: Ranges | None) -> str | None:
    """Why no image can get a reason; None if images can."""
    remedy = "measure ID images that it was not fitted to: dlsr calibrate MODEL --images FOLDER"
    if ranges is None:
        return f"the model was fitted without measuring properties of its images; {remedy}"
    if ranges.images < FEWEST:
        return f"properties of {ranges.images} ID images are too few, {FEWEST} are needed; {remedy}"
    return None


def reasons(properties: Values, ranges: Ranges) -> tuple[Reason, ...]:
    """In which properties an image lies outside the range of the ID images, the most unusual first.

    Args:
        properties: of the image. A property that it lacks is not tested.
        ranges: of the ID images. With fewer than `FEWEST` of them there are no reasons.
    """
    tested = []
    for name, known in ranges.values.items():
        value = PROPERTIES[name].of(properties)
        if value is not None:
            tested.append(_tested(name, value, known))
    tested.sort(key=lambda test: (test[0].p_value, -test[1]))
    # Corrected for all properties, also for those that this image lacks: the promise is then the same for all images.
    levels = LEVEL / np.arange(len(PROPERTIES), len(PROPERTIES) - len(tested), -1)
    accepted = [i for i, (reason, _) in enumerate(tested) if reason.p_value > levels[i]]
    return tuple(reason for reason, _ in tested[: accepted[0] if accepted else None])


def listed(given: Sequence[Reason]) -> str:
    """Reasons with their p-values, such as "greyscale, very dark (p = 0.003); tall (p = 0.006)"."""
    by_p_value = groupby(given, key=lambda reason: f"{reason.p_value:.2g}")
    return "; ".join(f"{', '.join(reason.words for reason in some)} (p = {p_value})" for p_value, some in by_p_value)


def sentence(verdict: bool, given: Sequence[Reason]) -> str:
    """A verdict with its reasons, such as "Out of distribution; unlike ID images it is greyscale and very dark."."""
    start = "Out of distribution" if verdict else "In distribution"
    words = [reason.words for reason in given]
    if not words:
        return f"{start}."
    every = " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    return f"{start}; unlike ID images it is {every}."


def _tested(name: str, value: float, known: NDArray[np.float64]) -> tuple[Reason, float]:
    """A property as a reason, and how far it lies beyond all ID images, where 1 is "very"."""
    n = len(known)
    at_most = int(np.searchsorted(known, value, side="right"))
    at_least = n - int(np.searchsorted(known, value, side="left"))
    p_value = min(2 * (1 + min(at_most, at_least)) / (n + 1), 1.0)
    low = at_most < at_least
    prop = PROPERTIES[name]
    beyond = _distance(value, float(known[0]), prop) if low else _distance(float(known[-1]), value, prop)
    words = prop.low if low else prop.high
    if name == "saturation" and low and value < NO_COLOUR:
        words = "greyscale"
    elif beyond > 1:
        words = f"very {words}"
    return Reason(name, "low" if low else "high", words, value, p_value), beyond


def _distance(smaller: float, larger: float, prop: _Property) -> float:
    """How much larger one value is than another, where 1 is "very"; negative if it is smaller."""
    if not prop.logarithmic:
        return (larger - smaller) / VERY
    tiny = float(np.finfo(np.float64).tiny)
    return float(np.log2(max(larger, tiny)) - np.log2(max(smaller, tiny))) / VERY_MANY_TIMES
