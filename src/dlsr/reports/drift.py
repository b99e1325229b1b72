"""A picture of drift: distributions of the scores, and of the properties that moved."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlsr.calibration.two_samples import Sample, Values
from dlsr.reports.plots import bare, empty_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3
CLIPPED = 0.5
"""Per cent of the values at each end that are counted in the first and last bar, so that outliers squeeze no others."""
BINS = 25
_BEFORE = {"color": "0.45", "alpha": 0.6, "label": "before"}
_AFTER = {"histtype": "step", "linewidth": 1.8, "color": "C1", "label": "now"}


def save_drift(
    path: Path,
    scores: Values,
    calibration: Values,
    samples: tuple[Sample, Sample] | None,
    moved: Sequence[str],
) -> None:
    """Write the picture `drift_figure`.

    Args:
        path: file to write; its suffix chooses the format.
        scores: as for `drift_figure`, as are the others.
        calibration: as for `drift_figure`.
        samples: as for `drift_figure`.
        moved: as for `drift_figure`.

    Raises:
        OutputError: if the file cannot be written.
    """
    save_figure(drift_figure(scores, calibration, samples, moved), path)


def drift_figure(
    scores: Values, calibration: Values, samples: tuple[Sample, Sample] | None, moved: Sequence[str]
) -> "Figure":
    """Distributions of the scores, and of each property that moved.

    Args:
        scores: of the images, shape `(n,)`.
        calibration: of the calibration images, shape `(m,)`.
        samples: reference images, and images compared with them; None if none were.
        moved: names of properties to show.
    """
    shown: list[tuple[str, Values, Values]] = [("score (larger = more OOD)", calibration, scores)]
    if samples is not None:
        before, after = samples
        shown += [(name, before.properties[name], after.properties[name]) for name in moved]
    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = empty_figure(4.2 * columns, 0.4 + 2.8 * rows)
    every = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, earlier, later) in zip(every, shown, strict=False):
        (_bars if earlier.dtype.kind == "U" else _histograms)(axes, earlier, later)
        axes.set_xlabel(name)
        bare(axes)
    for axes in every[len(shown) :]:
        axes.set_visible(False)
    figure.legend(*every[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)
    return figure


def _histograms(axes: Any, before: Values, after: Values) -> None:
    low, high = np.percentile(np.concatenate([before, after]), [CLIPPED, 100 - CLIPPED])
    bins = np.linspace(low, high, BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
    for values, style in ((before, _BEFORE), (after, _AFTER)):
        axes.hist(np.clip(values, low, high), bins=bins.tolist(), density=True, **style)
    axes.set_yticks([])


def _bars(axes: Any, before: Values, after: Values) -> None:
    kinds = np.unique(np.concatenate([before, after]))
    places = np.arange(len(kinds))
    for values, shift, color in ((before, -0.2, "0.65"), (after, 0.2, "C1")):
        axes.bar(places + shift, [100 * float((values == kind).mean()) for kind in kinds], 0.38, color=color)
    axes.set_xticks(places, [str(kind) for kind in kinds])
    axes.set_ylabel("% of images")
