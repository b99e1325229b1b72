"""Maps of where images deviate, drawn over the images, as files."""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path, PurePath

from dlsr.anomaly_maps import AnomalyMap
from dlsr.encoding.pipeline import Progress
from dlsr.files import replacing
from dlsr.naming import distinct
from dlsr.results import Results

QUALITY = 90
"""JPEG quality."""
LONGEST_NAME = 240
"""Bytes of a file's name, so that there is room for a number and a suffix."""


def write_maps(
    folder: Path,
    parts: Iterable[tuple[Results, list[AnomalyMap]]],
    names: Sequence[str],
    progress: Progress | None = None,
) -> Iterator[Results]:
    """Write a JPEG for each image that can be read, and pass on the results of some images when theirs are written.

    Args:
        folder: to write to, created if missing. Files of the same names are replaced.
        parts: see `FittedDetector.detect_with_maps`.
        names: of all images, in order; those of the files follow from them.
        progress: callback with the number of images done since the last call.

    Raises:
        OutputError: if they cannot be written.
    """
    remaining = zip(names, file_names(names), strict=True)
    for results, maps in parts:
        for anomaly_map in maps:
            # Frames behind the end of a clip have no map.
            file = next(path for name, path in remaining if name == anomaly_map.path)
            if anomaly_map.error is None:
                with replacing(folder / file) as temporary:
                    anomaly_map.drawn().save(temporary, "JPEG", quality=QUALITY)
        yield results
        if progress is not None:
            progress(len(results))


def file_names(names: Sequence[str]) -> list[PurePath]:
    """Relative paths of JPEGs for images: their own without the folder that is common to all, and a suffix.

    None leads out of the folder that they are written to, and all differ.
    """
    parts = [[part for part in PurePath(name).parts if part not in ("..", PurePath(name).anchor)] for name in names]
    shared = sum(
        1 for _ in takewhile(lambda folders: len(set(folders)) == 1, zip(*(path[:-1] for path in parts), strict=False))
    )
    inside = (
        PurePath(*path[shared:-1], os.fsdecode(os.fsencode(path[-1] if path else "image")[:LONGEST_NAME]))
        for path in parts
    )
    stems = distinct(inside, lambda path, number: path.with_name(f"{path.name}-{number}"))
    return [path.with_name(f"{path.name}.jpg") for path in stems]
