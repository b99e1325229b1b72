"""Which images train, which validate and which calibrate."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlsr.errors import TooFewImagesError

SMALLEST_TRAINING_SET = 20
VALIDATION_SHARE = 0.05
CALIBRATION_SHARE = 0.10
MOST_HELD_OUT = 50_000
"""Validation takes at most this many images; so does calibration, unless the false-alarm rate needs more."""


@dataclass(frozen=True)
class Split:
    """Indices of the images that train, that decide when to stop and how to scale, and that calibrate; disjoint."""

    training: NDArray[np.intp]
    validation: NDArray[np.intp]
    calibration: NDArray[np.intp]


def split(n: int, rate: float, seed: int) -> Split:
    """Split `n` images at random; calibration gets a tenth (50,000 at most), or what the rate needs, if more.

    Args:
        n: number of images.
        rate: false-alarm rate, in (0, 1).
        seed: of the order.

    Raises:
        TooFewImagesError: if that leaves too few to train on.
    """
    calibration = max(min(math.ceil(CALIBRATION_SHARE * n), MOST_HELD_OUT), math.ceil(1 / rate - 1 - 1e-9))
    validation = max(min(math.ceil(VALIDATION_SHARE * n), MOST_HELD_OUT), 5)
    training = n - calibration - validation
    if training < SMALLEST_TRAINING_SET:
        smallest = SMALLEST_TRAINING_SET + validation + math.ceil(1 / rate - 1 - 1e-9)
        raise TooFewImagesError(
            f"{n} readable images are too few to fit with a false-alarm rate of {rate:g}: give at least {smallest}, "
            "or allow a higher rate"
        )
    order = np.random.default_rng(seed).permutation(n)
    return Split(order[:training], order[training : training + validation], order[training + validation :])
