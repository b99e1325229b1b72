"""More images for a fitted model: a fit to the earlier images and to new ones, and what it changes.

The features of the earlier images come from the feature store, so they are not encoded again. The model is that of a
fit to all images with the same settings, the earlier images first, except that

- copies of earlier images, by their pixels, are left out: to add a folder twice is to add it once;
- the thumbnails differ: earlier ones are kept as far as they are needed, since the files may be gone;
- an encoder in 8 bits keeps its ranges, or all features would change;
- groups that were given stay, and those of new images are other ones.

Calibration images that were given since (`calibrate`) are replaced by those of the fit.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from dlsr.calibration.groups import Groups
from dlsr.config import GIVEN
from dlsr.encoding.examples import more_examples
from dlsr.encoding.extractor import FeatureExtractor
from dlsr.encoding.fitted_images import FittedImages
from dlsr.encoding.pipeline import Encoded, Progress, joined
from dlsr.errors import NoImagesError, NotFittedError, SettingsError
from dlsr.fitting import fit_images, own_settings
from dlsr.images.groups import taken_from
from dlsr.images.properties import ranges_of
from dlsr.images.sources import ImageDataset, ImagesLike, warn_of_unreadable
from dlsr.model import Array, FittedModel
from dlsr.training.loop import Trainer


class Spread(BaseModel):
    """Scores of in-distribution images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int
    mean: float
    median: float
    max: float

    @classmethod
    def of(cls, scores: Array) -> Self:
        """Of scores, shape `(n,)`."""
        return cls(images=len(scores), mean=scores.mean(), median=np.median(scores), max=scores.max())


class Addition(BaseModel):
    """What changed when images were added to those that a model was fitted to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images_before: int
    """Readable images that the model was fitted to."""
    added: int
    """New images that it is fitted to now, too."""
    copies: int
    """Images that were left out, since the model was fitted to the same before."""
    unreadable: dict[str, str]
    """Reasons by name, of the images that could not be read."""
    threshold_before: float
    threshold: float
    """Now, at the same false-alarm rate."""
    ood_before: int
    """How many of the added images the model called OOD before."""
    ood: int
    """How many it calls OOD now: each as if left out of the fit, if the model was calibrated so. If not, some of them
    were trained on, and this is too low."""
    paired: bool
    """Whether both spreads are of the earlier images, each left out of the fit in turn. If not, each is of all images
    that the model was calibrated on."""
    scores_before: Spread
    """Calibration scores before."""
    scores: Spread
    """Calibration scores now."""
    largest_change: float | None
    """Largest change of an image's score, up or down; None if the spreads are not of the same images."""
    recalibrated: bool
    """Whether other images had been given to calibrate on. They no longer count."""


@dataclass(frozen=True)
class NewImages:
    """What is given to add."""

    images: ImageDataset
    groups: Sequence[Hashable] | None = None
    """A label for each image; None to find groups as the model does."""
    old: ImagesLike | None = None
    """The earlier images, if the feature store does not hold their features."""
    progress: Progress | None = None
    """Callback with the number of images that were encoded since the last call."""


def with_added(
    before: FittedModel,
    extractor: FeatureExtractor,
    given: NewImages,
    grouped: Callable[[Encoded, None], Groups],
    device: str,
    trainer: Trainer,
) -> tuple[FittedModel, Addition]:
    """The model that was fitted to the earlier images and to new ones, and what changed. Warns of unreadable ones.

    Args:
        before: the model.
        extractor: that of the model.
        given: the new images.
        grouped: finds the groups of images as the model does.
        device: `auto`, `cpu`, `cuda`, ..
        trainer: trains networks.

    Raises:
        NotFittedError: if it is not known what the model was fitted to.
        InputError: if features of earlier images are missing.
        NoImagesError: if no image is new.
        SettingsError: for groups of new images where the fit was given none, or the other way round.
    """
    known = before.images
    if known is None:
        raise NotFittedError(
            "it is not known which images the model was fitted to, as these were features or transformed; fit anew"
        )
    _check_groups(given, known)
    again = None
    if given.old is not None:
        again = extractor.encode_shared(given.old, trainer.ranks, progress=given.progress)
    old = known.encoded(extractor, again)
    new = extractor.encode_shared(given.images, trainer.ranks, progress=given.progress)
    warn_of_unreadable(new.unreadable)
    copies = _among(new.digests, old.digests)
    rows = np.flatnonzero(new.readable)[~copies]
    if not len(rows):
        raise NoImagesError(
            f"there is nothing to add: of {len(given.images)} images, the model was fitted to {len(copies)} before, "
            f"and {len(new.unreadable)} cannot be read; give other images"
        )
    names = [new.names[row] for row in rows]
    there = new.positions_in(given.images)
    places = [there[row] for row in rows]
    added = Encoded(names, [None] * len(names), new.z0[~copies], new.digests[~copies], new.keys[~copies])
    every = joined([old, added], len(known) + len(names), extractor.encoder.c, extractor.store)
    groups = _joined_groups(known, given, places) or grouped(every, None)
    settings, encoder = own_settings(before.settings), extractor.encoder
    after = fit_images(before.config, settings, every, encoder, groups, device, trainer)
    summary = after.summary.model_copy(update={"unreadable": before.summary.unreadable | new.unreadable})
    count, images = before.config.thumbnails, given.images.subset(places)
    examples = more_examples(before.examples, len(known), images, added, count, before.config.seed) if count else None
    # How uneven ordinary maps are is known from earlier images, which are not read again.
    ranges = before.ranges
    if ranges is not None:
        ranges = ranges.joined(ranges_of(images, settings.seed, extractor.workers))
    after = replace(after, summary=summary, examples=examples, map_peaks=before.map_peaks, ranges=ranges)
    return after, _addition(before, after, added, int(copies.sum()), new.unreadable)


def _check_groups(given: NewImages, known: FittedImages) -> None:
    if given.groups is None and known.groups is not None:
        raise SettingsError("groups were given to the fit; give a group for each new image, too")
    if given.groups is not None and known.groups is None:
        raise SettingsError("the fit found groups by itself; leave out those of new images")
    if given.groups is not None and len(given.groups) != len(given.images):
        raise SettingsError(f"there are {len(given.images)} images, but {len(given.groups)} groups; give one for each")


def _joined_groups(known: FittedImages, given: NewImages, places: Sequence[int]) -> Groups | None:
    if known.groups is None or given.groups is None:
        return None
    new = Groups.of(taken_from(given.groups, places), GIVEN).numbers
    return Groups(np.concatenate([known.groups, new + known.groups.max() + 1]), GIVEN)


def _among(some: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether each digest, shape `(n, 16)`, is one of the others."""
    known = set(map(bytes, others))
    return np.array([digest in known for digest in map(bytes, some)], dtype=np.bool_)


def _addition(
    before: FittedModel, after: FittedModel, added: Encoded, copies: int, unreadable: dict[str, str]
) -> Addition:
    rate, confidence = before.config.false_alarm_rate, before.config.confidence
    old_cut, cut = (model.calibration.threshold(rate, confidence) for model in (before, after))
    scores_before, scores = before.calibration.scores, after.calibration.scores
    paired = before.summary.left_out and after.summary.left_out
    n = len(added.names)
    now = scores[-n:] if after.summary.left_out else after.score(added.z0, added.digests)[0]
    if paired:
        scores = scores[:-n]
    changes = scores - scores_before if paired else None
    return Addition(
        images_before=len(before.images or ()),
        added=n,
        copies=copies,
        unreadable=unreadable,
        threshold_before=old_cut,
        threshold=cut,
        ood_before=int((before.score(added.z0, added.digests)[0] > old_cut).sum()),
        ood=int((now > cut).sum()),
        paired=paired,
        scores_before=Spread.of(scores_before),
        scores=Spread.of(scores),
        largest_change=None if changes is None else float(changes[np.abs(changes).argmax()]),
        recalibrated=before.summary.recalibrated,
    )
