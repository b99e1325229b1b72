"""The split of ID images into training, validation and calibration."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlsr.calibration.conformal import fewest_calibration_images
from dlsr.errors import TooFewImagesError

FEWEST_TRAINING_IMAGES = 20
VALIDATION_SHARE = 0.05
CALIBRATION_SHARE = 0.10
MOST_HELD_OUT = 50_000
"""Largest number of validation images, and of calibration images unless the false-alarm rate needs more."""


@dataclass(frozen=True)
class Split:
    """Disjoint indices of images."""

    training: NDArray[np.intp]
    validation: NDArray[np.intp]
    """Images that decide when training stops, and to which scores are scaled."""
    calibration: NDArray[np.intp]


def split(n: int, rate: float, seed: int, *, validation: bool = True, calibration: bool = True) -> Split:
    """Split `n` images at random.

    Calibration gets a tenth of the images, at most 50,000, or more if the rate needs more. Validation gets a twentieth.
    Without these parts, all are training images.

    Args:
        n: number of images.
        rate: false-alarm rate, in (0, 1).
        seed: seed of the random order.
        validation: whether images are held out for validation.
        calibration: whether images are held out for calibration.

    Raises:
        TooFewImagesError: if fewer than 20 images are left for training, or all are too few for the rate.
    """
    fewest = fewest_calibration_images(rate)
    calibrating = max(min(math.ceil(CALIBRATION_SHARE * n), MOST_HELD_OUT), fewest) if calibration else 0
    validating = max(min(math.ceil(VALIDATION_SHARE * n), MOST_HELD_OUT), 5) if validation else 0
    training = n - calibrating - validating
    if training < FEWEST_TRAINING_IMAGES or n < fewest:
        smallest = max(FEWEST_TRAINING_IMAGES + validating + (fewest if calibration else 0), fewest)
        raise TooFewImagesError(
            f"{n} readable images are too few to fit with a false-alarm rate of {rate:g}; give at least {smallest}, "
            "or allow a higher rate"
        )
    order = np.random.default_rng(seed).permutation(n)
    return Split(order[:training], order[training : training + validating], order[training + validating :])
