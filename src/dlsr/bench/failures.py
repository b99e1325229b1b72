"""Contact sheets of the worst failures (paper, appendix D): ID images refused and OOD images accepted."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dlsr.files import replacing
from dlsr.images.decode import decode
from dlsr.images.sources import ImageDataset

SHOWN = 8
"""Images of each dataset."""
THUMBNAIL = 96
"""Longest side of a thumbnail, in pixels."""


def save_failures(
    path: Path, images: Mapping[str, ImageDataset], scores: Mapping[str, NDArray[np.float64]], title: str
) -> None:
    """Write a sheet with the ID images of the highest scores, and the images of each OOD dataset of the lowest scores.

    The number above an image is the share of ID images that score as high or higher: the false-alarm rate, if its score
    were the threshold.

    Args:
        path: PNG to write.
        images: images by dataset; `ID` is the ID dataset.
        scores: scores of the images by dataset; NaN for unreadable images.
        title: title of the sheet.

    Raises:
        OutputError: if it cannot be written.
    """
    names = ["ID", *(name for name in images if name != "ID")]
    figure = Figure(figsize=(1.2 * SHOWN, 1.6 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), SHOWN, squeeze=False)
    inside = np.sort(scores["ID"][np.isfinite(scores["ID"])])
    for row, name in zip(grid, names, strict=True):
        order = [i for i in np.argsort(scores[name]) if np.isfinite(scores[name][i])]
        chosen = order[::-1][:SHOWN] if name == "ID" else order[:SHOWN]
        for axes, i in zip(row, [*chosen, *[None] * (SHOWN - len(chosen))], strict=True):
            axes.set_axis_off()
            if i is not None:
                image = decode(images[name].items[i].read())
                image.thumbnail((THUMBNAIL, THUMBNAIL))
                axes.imshow(np.asarray(image), interpolation="nearest")
                share = 1 - np.searchsorted(inside, scores[name][i], side="left") / len(inside)
                axes.set_title(f"{100 * share:.1f} %", fontsize=8)
        row[0].text(
            -0.15, 0.5, f"{name}: most {'OOD' if name == 'ID' else 'ID'}", transform=row[0].transAxes, rotation=90,
            ha="right", va="center", fontsize=8,
        )  # fmt: skip
    figure.suptitle(title, fontsize=10)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)
