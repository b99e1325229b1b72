"""The split of ID images into training, validation and calibration."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlsr.calibration.conformal import fewest_calibration_images
from dlsr.errors import TooFewImagesError

FEWEST_TRAINING_IMAGES = 20
FEWEST_VALIDATION_IMAGES = 5
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


def split(
    groups: NDArray[np.integer],
    rate: float,
    seed: int,
    *,
    confidence: float | None = None,
    validation: bool = True,
    calibration: bool = True,
) -> Split:
    """Split images at random. Images of one group stay together.

    Calibration gets a tenth of the images, at most 50,000, or more if the rate needs more. Validation gets a twentieth.
    Without these parts, all are training images. A part gets as many groups as have so many images on average: filling
    it up to this size would put a large group into it nearly always.

    Args:
        groups: a number for each image, shape `(N,)`, the same for images of one group.
        rate: false-alarm rate, in (0, 1).
        seed: seed of the random order.
        confidence: with which the rate shall hold, see `dlsr.calibration.conformal.p_values`.
        validation: whether images are held out for validation.
        calibration: whether images are held out for calibration; if not, the training images calibrate, each left out
            in turn.

    Raises:
        TooFewImagesError: if fewer than 20 images or 2 groups are left for training, or there are too few for the rate.
    """
    n, fewest = len(groups), fewest_calibration_images(rate, confidence, left_out=not calibration)
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    count = len(sizes)
    # Places of the groups in a random order; images follow their groups.
    shuffled = np.random.default_rng(seed).permutation(count)
    order = np.argsort(np.argsort(shuffled)[group_of], kind="stable")
    before = np.concatenate([[0], np.cumsum(sizes[shuffled])])

    def groups_of(share: float) -> int:
        """As many groups as have a share of the images on average."""
        images = min(math.ceil(share * n), MOST_HELD_OUT)
        return -(-images * count // n)

    calibrating = max(groups_of(CALIBRATION_SHARE), fewest) if calibration else 0
    # Validation does with fewer, rather than leave too few to fit to.
    wanted = max(groups_of(VALIDATION_SHARE), FEWEST_VALIDATION_IMAGES)
    validating = max(min(wanted, count - calibrating - 2), 1) if validation else 0
    first_validating = count - calibrating - validating
    training, held_out = (int(before[max(place, 0)]) for place in (first_validating, count - calibrating))
    too_few_validating = validation and held_out - training < FEWEST_VALIDATION_IMAGES
    if training < FEWEST_TRAINING_IMAGES or first_validating < 2 or count < fewest or too_few_validating:
        least = FEWEST_VALIDATION_IMAGES if validation else 0
        smallest = max(FEWEST_TRAINING_IMAGES + least + (fewest if calibration else 0), fewest)
        at = f"{rate:g}" if confidence is None else f"{rate:g} with a confidence of {confidence:g}"
        if n >= smallest:
            raise TooFewImagesError(
                f"{n} images in {count} groups, the largest of {sizes.max()}, are too few groups to fit with a "
                f"false-alarm rate of {at}: {fewest} are needed to calibrate, and others to fit to; make smaller "
                "groups, allow a higher rate, or take each image for itself (group by none)"
            )
        raise TooFewImagesError(
            f"{n} readable images are too few to fit with a false-alarm rate of {at}; give at least {smallest}, "
            "or allow a higher rate"
        )
    return Split(order[:training], order[training:held_out], order[held_out:])
