"""Groups of refused images: which of them are alike, and what each group shares."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dlsr.calibration.reasons import why_no_reasons
from dlsr.encoding.pipeline import Encoded, Progress, joined
from dlsr.explaining.clusters import cluster
from dlsr.explaining.explain import explain
from dlsr.images.sources import ImageDataset, ImagesLike, open_images
from dlsr.results import Result

if TYPE_CHECKING:
    from dlsr.fitted_detector import FittedDetector

ALONE = "alone"
"""The group of the images that belong to no group."""
MOST = 0.5
"""A group shares the words and the layer that more than this share of its images have ..."""
NEARLY_ALL = 0.8
""".. and the folder, or start of the name, that at least this share has."""


@dataclass(frozen=True)
class Group:
    """Refused images that are alike."""

    name: str
    """A number, `1` for the largest group; or `alone`, for images that are in no group."""
    members: tuple[int, ...]
    """Positions of its images."""
    shared: tuple[str, ...]
    """What its images share, in words; empty for images that are alone."""


def group(
    detector: "FittedDetector", images: ImagesLike, results: Sequence[Result], *, progress: Progress | None = None
) -> tuple[list[Result], list[Group]]:
    """Find groups among the images that were refused, by their features.

    Features of the refused images come from the feature store, or are encoded once more without one. They are held in
    memory: 4 bytes for each dimension and image. The time to cluster them grows with the square of their number.

    Args:
        detector: fitted to images.
        images: see `dlsr.open_images`.
        results: of these images in their order. Reasons that are missing are found, if the model can give any.
        progress: callback with the number of refused images encoded since the last call.

    Returns:
        The results with their `group`, and the groups: the largest first, the images that are alone last.

    Raises:
        MissingExtraError: without scikit-learn.
    """
    found, grouped = open_images(images), list(results)
    refused = [i for i, result in enumerate(grouped) if result.is_ood]
    if not refused:
        return grouped, []
    encoded = encoded_again(detector, found.subset(refused), progress=progress)
    # A file may have changed since it was scored.
    refused = [i for i, error in zip(refused, encoded.errors, strict=True) if error is None]
    members = [grouped[i] for i in refused]
    if why_no_reasons(detector.ranges_) is None and any(result.reasons is None for result in members):
        members = list(explain(detector, found.subset(refused), members))
    return in_groups_of(encoded.z0, members, refused, grouped)


def encoded_again(detector: "FittedDetector", images: ImageDataset, *, progress: Progress | None = None) -> Encoded:
    """Images that were scored, encoded: from the feature store, or anew. A store that cannot be written is no error."""
    extractor = detector.extractor_
    return joined(extractor.encode_chunks(images, progress=progress), len(images), extractor.encoder.c, None)


def in_groups_of(
    z0: NDArray[np.float32], members: Sequence[Result], refused: Sequence[int], results: Sequence[Result]
) -> tuple[list[Result], list[Group]]:
    """All results with their `group`, and the groups, whose members are positions among all results.

    Args:
        z0: features of the refused images, shape `(n, c)`.
        members: their results, with what groups may share.
        refused: their positions among all results.
        results: of all images.

    Raises:
        MissingExtraError: without scikit-learn.
    """
    found = groups_of(z0, members, [result.path for result in results])
    groups = [replace(each, members=tuple(refused[i] for i in each.members)) for each in found]
    grouped = list(results)
    for each in groups:
        for i in each.members:
            grouped[i] = replace(grouped[i], group=each.name)
    return grouped, groups


def groups_of(z0: NDArray[np.float32], members: Sequence[Result], paths: Sequence[str]) -> list[Group]:
    """Groups of refused images: the largest first, the images that are alone last.

    Args:
        z0: their features, shape `(n, c)`.
        members: their results.
        paths: of all images, see `shared`.

    Raises:
        MissingExtraError: without scikit-learn.
    """
    labels, groups = cluster(z0), []
    for label in [*range(int(labels.max(initial=-1)) + 1), -1]:
        places = np.flatnonzero(labels == label).tolist()
        if places:
            words = () if label < 0 else shared([members[i] for i in places], paths)
            groups.append(Group(ALONE if label < 0 else str(label + 1), tuple(places), words))
    return groups


def shared(members: Sequence[Result], paths: Sequence[str]) -> tuple[str, ...]:
    """What images share: words of their reasons, the layer that deviates most, a folder, the start of their names.

    Args:
        members: the images, at least one.
        paths: of all images. A folder or start of a name that nearly all of these have is left out.
    """
    words = Counter(reason.words.removeprefix("very ") for result in members for reason in result.reasons or ())
    found = [word for word, count in words.most_common() if count > MOST * len(members)]
    layer, count = Counter(result.top_layer for result in members).most_common(1)[0]
    if count > MOST * len(members):
        found.append(f"deviate most at {layer}")
    for what, part in (("in folder", _folder), ("names begin with", _start)):
        common = _common(part(result.path) for result in members)
        if common and common != _common(map(part, paths)):
            found.append(f"{what} {common}")
    return tuple(found)


def _common(values: Iterable[str]) -> str:
    """The value that nearly all have; empty if there is none."""
    counts = Counter(values)
    value, count = counts.most_common(1)[0]
    return value if count >= NEARLY_ALL * counts.total() else ""


def _folder(path: str) -> str:
    return PurePath(path).parent.name


def _start(path: str) -> str:
    """The name up to its first digit; empty if that is all of it."""
    name = PurePath(path).stem
    start = re.match(r"\D*", name)
    return start[0] if start and start[0] != name else ""
