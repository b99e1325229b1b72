"""Maps of where images deviate, drawn over the images, as files."""

import os
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path, PurePath

from dlsr.anomaly_maps import AnomalyMap
from dlsr.encoding.pipeline import Progress
from dlsr.files import replacing

QUALITY = 90
"""JPEG quality."""
LONGEST_NAME = 240
"""Bytes of a file's name, so that there is room for a number and a suffix."""


def write_maps(folder: Path, maps: Iterable[AnomalyMap], names: Sequence[str], progress: Progress | None = None) -> int:
    """Write a JPEG for each image that can be read.

    Args:
        folder: to write to, created if missing. Files of the same names are replaced.
        maps: see `FittedDetector.anomaly_maps`.
        names: of all images, from which follow those of the files.
        progress: callback with the number of images done since the last call.

    Returns:
        The number of files.

    Raises:
        OutputError: if they cannot be written.
    """
    written = 0
    for anomaly_map, path in zip(maps, file_names(names), strict=True):
        if anomaly_map.error is None:
            with replacing(folder / path) as temporary:
                anomaly_map.drawn().save(temporary, "JPEG", quality=QUALITY)
            written += 1
        if progress is not None:
            progress(1)
    return written


def file_names(names: Sequence[str]) -> list[PurePath]:
    """Relative paths of JPEGs for images: their own without the folder that is common to all, and a suffix.

    None leads out of the folder that they are written to, and all differ.
    """
    parts = [[part for part in PurePath(name).parts if part not in ("..", PurePath(name).anchor)] for name in names]
    shared = sum(
        1 for _ in takewhile(lambda folders: len(set(folders)) == 1, zip(*(path[:-1] for path in parts), strict=False))
    )
    found: list[PurePath] = []
    taken: set[PurePath] = set()
    for path in parts:
        inside = PurePath(*path[shared:-1])
        stem = os.fsdecode(os.fsencode(path[-1] if path else "image")[:LONGEST_NAME])
        file, number = inside / f"{stem}.jpg", 1
        while file in taken:
            number += 1
            file = inside / f"{stem}-{number}.jpg"
        taken.add(file)
        found.append(file)
    return found
