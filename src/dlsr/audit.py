"""An image folder examined before a fit: copies, leaks into another folder, faulty images, images unlike the rest."""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlsr.calibration.copies import FEWEST, exact_groups, found_groups
from dlsr.detector import Detector
from dlsr.encoding.extractor import FeatureExtractor
from dlsr.encoding.pipeline import Encoded, Progress
from dlsr.encoding.store import empty_table
from dlsr.errors import TooFewImagesError
from dlsr.files import replacing
from dlsr.fitting import UNLIKE, deviations_of
from dlsr.images.quality import MEASURES, Quality, faults_of, quality_of, table_of
from dlsr.images.sources import ImageDataset, ImageItem, ImagesLike, open_images
from dlsr.method.noise import DIGEST_BYTES
from dlsr.results import write_rows

FAULTS = {
    "unreadable": "cannot be read",
    "exact-copies": "the same pixels as another image of the folder",
    "near-copies": "almost the same as another image of the folder",
    "exact-leaks": "the same pixels as an image of the other folder",
    "near-leaks": "almost the same as an image of the other folder",
    "unlike": "unlike the rest: may not belong here",
    "dark": "almost all pixels are dark",
    "bright": "almost all pixels are white",
    "blurry": "out of focus",
    "low-information": "few different colours",
    "grey": "greyscale among coloured images",
    "odd-aspect": "much longer than wide, or wider than long",
    "odd-size": "much smaller or larger than the others",
}
"""What each fault means, by its name."""
COLUMNS = ("path", "faults", "exact_set", "near_set", "leak", "deviation", *MEASURES, "error")
"""Columns of the table of an audit."""

LISTED = 24
"""Images least like the rest that `Audit.as_dict` names."""

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class CopySet:
    """Images that are copies of each other."""

    images: tuple[int, ...]
    """Positions in the folder."""
    others: tuple[int, ...] = ()
    """Positions in the other folder."""


@dataclass(frozen=True)
class Audit:
    """What was found in an image folder.

    Attributes:
        names: of the images, in their order.
        against: names of the images of the other folder, in their order; None if there was none.
        errors: why an image cannot be read; None for the others.
        against_unreadable: reasons by name, of images of the other folder.
        measures: measures of the images by their names, see `dlsr.images.quality.Quality`; shape `(N,)`, NaN for
            unreadable images.
        sets: sets of `exact-copies`, `near-copies`, `exact-leaks` and `near-leaks`, the largest first.
        deviations: how far the score of each image, left out of the fit in turn, lies above the median, in standard
            deviations; shape `(N,)`. NaN where that is not known: for unreadable images, and in folders of more than
            10,000 images for many.
        faults: positions of the images with each fault that was looked for, in the order of `FAULTS`. Those of
            `unlike`, with a deviation over `dlsr.fitting.UNLIKE`, are ordered by it.
        notes: what could not be looked for, and why.
    """

    names: list[str]
    against: list[str] | None
    errors: list[str | None]
    against_unreadable: dict[str, str]
    measures: dict[str, NDArray[np.float64]]
    sets: dict[str, list[CopySet]]
    deviations: NDArray[np.float64]
    faults: dict[str, list[int]]
    notes: list[str]

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        """Names and reasons. Two images may have one name."""
        return [(name, error) for name, error in zip(self.names, self.errors, strict=True) if error is not None]

    def faulty(self, kinds: Sequence[str] = tuple(FAULTS)) -> int:
        """How many images have one of these faults, or several."""
        return len({i for kind in kinds for i in self.faults.get(kind, ())})

    def least_like_the_rest(self, count: int) -> list[int]:
        """Positions of the images with the highest deviations, the highest first, whether or not they are a fault."""
        order = np.argsort(-self.deviations, kind="stable")
        return [int(i) for i in order[:count] if np.isfinite(self.deviations[i])]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The values of `COLUMNS` for each image, by name; None where there is none.

        `exact_set` and `near_set` number the sets of copies from 1, `leak` is the name of a copy in the other folder.
        """
        exact, near = (self._set_numbers(kind) for kind in ("exact-copies", "near-copies"))
        leaks = {
            i: one.others[0]
            for kind in ("near-leaks", "exact-leaks")
            for one in self.sets.get(kind, ())
            for i in one.images
        }
        found = {kind: set(positions) for kind, positions in self.faults.items()}
        for i, (name, error) in enumerate(zip(self.names, self.errors, strict=True)):
            measured = {key: _known(values[i].item()) for key, values in self.measures.items()}
            given = {
                "path": name,
                "faults": " ".join(kind for kind, positions in found.items() if i in positions),
                "exact_set": exact.get(i),
                "near_set": near.get(i),
                "leak": self.against[leaks[i]] if self.against and i in leaks else None,
                "deviation": _known(self.deviations[i].item()),
                "error": error,
            }
            yield {column: (given | measured).get(column) for column in COLUMNS}

    def _set_numbers(self, kind: str) -> dict[int, int]:
        return {i: number for number, one in enumerate(self.sets.get(kind, ()), 1) for i in one.images}

    def to_csv(self, path: str | Path) -> None:
        """Write a row for each image, with `COLUMNS`; `faults` has names separated by spaces, and is empty if none.

        Raises:
            OutputError: if the file cannot be written.
        """
        with replacing(Path(path)) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            write_rows(file, COLUMNS, self.rows())

    def as_dict(self) -> dict[str, Any]:
        """Everything but the measures, with names in place of positions, for JSON."""
        others = self.against or []
        return {
            "images": len(self.names),
            "against": len(others),
            "faulty": self.faulty(),
            "faults": {kind: [self.names[i] for i in positions] for kind, positions in self.faults.items()},
            "sets": {
                kind: [
                    {"images": [self.names[i] for i in one.images], "against": [others[i] for i in one.others]}
                    for one in sets
                ]
                for kind, sets in self.sets.items()
            },
            "least_like_the_rest": [
                {"path": self.names[i], "deviation": self.deviations[i].item()}
                for i in self.least_like_the_rest(LISTED)
            ],
            "unreadable": [{"path": name, "error": error} for name, error in self.unreadable],
            "against_unreadable": self.against_unreadable,
            "notes": self.notes,
        }


def audit(
    images: ImagesLike,
    *,
    against: ImagesLike | None = None,
    detector: Detector | None = None,
    progress: Progress | None = None,
    against_progress: Progress | None = None,
) -> Audit:
    """Examine an image folder before a fit. Each image is read and encoded once; a fit then finds its features.

    Args:
        images: see `dlsr.open_images`.
        against: images that must not be among them, such as those of the test; only copies are looked for.
        detector: its encoder finds near copies, and its score the images unlike the rest; it is not changed. None for
            the default, which keeps no features on disk.
        progress: callback with the number of images done since the last call.
        against_progress: the same for `against`.

    Raises:
        InputError: if there are no images, or none of `against` can be read. If no image of `images` can be read, that
            is the result.
        WeightsError: if the encoder's weights cannot be had.
    """
    chosen = detector or Detector()
    found, other = open_images(images), None if against is None else open_images(against)
    extractor = chosen.prepare_extractor().with_ranges(found, chosen.seed)
    here = _examined(extractor, found, progress)
    there = None if other is None else _examined(extractor, other, against_progress)
    if there is not None:
        there.encoded.check_readable("images to compare with")
    readable = here.readable
    notes: list[str] = []
    deviations = np.full(len(readable), np.nan)
    sets: dict[str, list[CopySet]] = {}
    faulty: dict[str, Iterable[int]] = {}
    table = table_of(here.qualities)
    if len(readable):
        exact, near = exact_groups(here.digests), found_groups(here.encoded.z0, here.digests)
        sets = _copies(exact, near, readable) | ({} if there is None else _leaks(here, there))
        deviations = _deviations(chosen, extractor, here, near, notes)
        faulty = {name: readable[found] for name, found in faults_of(table).items()}
        _check_enough(exact, notes)
    faulty |= {"unreadable": np.flatnonzero(~here.encoded.readable), "unlike": _unlike(deviations, readable)}
    faulty |= {kind: sorted(i for one in some for i in one.images) for kind, some in sets.items()}
    return Audit(
        names=here.encoded.names,
        against=None if there is None else there.encoded.names,
        errors=here.encoded.errors,
        against_unreadable={} if there is None else there.encoded.unreadable,
        measures={name: _spread(values, readable, len(here.encoded.names)) for name, values in table.items()},
        sets=sets,
        deviations=_spread(deviations, readable, len(here.encoded.names)),
        faults={kind: [int(i) for i in faulty[kind]] for kind in FAULTS if kind in faulty},
        notes=notes,
    )


@dataclass(frozen=True)
class _Examined:
    """Encoded images, and the measures and digests of those that can be read."""

    encoded: Encoded
    qualities: list[Quality]
    digests: NDArray[np.uint8]

    @property
    def readable(self) -> Indices:
        """Positions of the images that can be read."""
        return np.flatnonzero(self.encoded.readable)


def _examined(extractor: FeatureExtractor, images: ImageDataset, progress: Progress | None) -> _Examined:
    """Measure images while they are read for the encoder."""
    measured: list[tuple[Quality, bytes] | None] = [None] * len(images)

    def read(i: int, item: ImageItem) -> object:
        raw = item.read()
        measured[i] = quality_of(raw)
        return raw

    items = [ImageItem(item.name, partial(read, i, item)) for i, item in enumerate(images.items)]
    encoded = extractor.encode(ImageDataset(items), progress=progress)
    there = (measured[i] for i in encoded.positions_in(images))
    both = [one for one, error in zip(there, encoded.errors, strict=True) if one is not None and error is None]
    digests = np.frombuffer(b"".join(digest for _, digest in both), np.uint8).reshape(-1, DIGEST_BYTES)
    return _Examined(encoded, [quality for quality, _ in both], digests)


def _spread(values: NDArray[np.float64], readable: Indices, n: int) -> NDArray[np.float64]:
    every = np.full(n, np.nan)
    every[readable] = values
    return every


def _members(groups: Indices) -> list[Indices]:
    """Indices of the members of each group, the largest group first."""
    parts = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    return sorted(parts, key=len, reverse=True)


def _copies(exact: Indices, near: Indices, readable: Indices) -> dict[str, list[CopySet]]:
    """Copies within a folder, from the groups of its readable images, shape `(R,)`. Near ones differ in pixels."""
    alike = [some for some in _members(exact) if len(some) > 1]
    close = [some for some in _members(near) if len(np.unique(exact[some])) > 1]
    return {
        kind: [CopySet(tuple(readable[some].tolist())) for some in found]
        for kind, found in (("exact-copies", alike), ("near-copies", close))
    }


def _leaks(here: _Examined, there: _Examined) -> dict[str, list[CopySet]]:
    """Images of one folder that have copies in another one."""
    n, m = len(here.digests), len(there.digests)
    digests = np.concatenate([here.digests, there.digests])
    z0 = empty_table(n + m, here.encoded.z0.shape[1], None)
    z0[:n], z0[n:] = here.encoded.z0, there.encoded.z0

    def across(groups: Indices, but: Indices) -> list[CopySet]:
        """Groups with images of both folders, without some of the first; none if no other is left."""
        found = []
        for some in _members(groups):
            own, others = np.setdiff1d(some[some < n], but), some[some >= n] - n
            if len(own) and len(others):
                found.append(CopySet(tuple(here.readable[own].tolist()), tuple(there.readable[others].tolist())))
        return found

    exact = across(exact_groups(digests), np.empty(0, np.intp))
    known = np.searchsorted(here.readable, [i for one in exact for i in one.images])
    return {"exact-leaks": exact, "near-leaks": across(found_groups(z0, digests), known)}


def _deviations(
    detector: Detector, extractor: FeatureExtractor, here: _Examined, near: Indices, notes: list[str]
) -> NDArray[np.float64]:
    """Deviations of the readable images, as in `Audit`."""
    deviations, groups = np.full(len(near), np.nan), len(np.unique(near))
    if groups < FEWEST:
        notes.append(
            f"images unlike the rest were not looked for: that takes {FEWEST} images that are no copies, there are "
            f"{groups}"
        )
        return deviations
    encoded, scoring = here.encoded, copy.copy(detector)
    # No rate is promised here. This one needs the fewest images.
    scoring.false_alarm_rate, scoring.confidence, scoring.calibration = 0.5, None, "auto"
    try:
        fitted = scoring.fit_features(
            encoded.z0, extractor.encoder.channels, digests=encoded.digests, groups=near.tolist()
        )
    except TooFewImagesError:
        notes.append(f"images unlike the rest were not looked for: {len(near)} images are too few for this score")
        return deviations
    summary = fitted.fit_summary_
    if summary.left_out:
        return deviations_of(fitted.calibration_scores_, near)
    notes.append(
        f"{summary.examined_images} of {len(near)} images, drawn at random, were compared with the rest; only those "
        "unlike it have a deviation"
    )
    for position, deviation in summary.unlike.items():
        deviations[int(position)] = deviation
    return deviations


def _unlike(deviations: NDArray[np.float64], readable: Indices) -> Indices:
    order = np.argsort(-deviations, kind="stable")
    return readable[order[deviations[order] > UNLIKE]]


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _check_enough(exact: Indices, notes: list[str]) -> None:
    """Note that near copies cannot be told from other images if there are too few."""
    different = len(np.unique(exact))
    if different < FEWEST:
        notes.append(
            f"near copies were not looked for, but for those that the encoder cannot tell apart: that takes {FEWEST} "
            f"different images, there are {different}"
        )
