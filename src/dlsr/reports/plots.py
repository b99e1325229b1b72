"""Plots: score histograms, ROC curves and speed.

Every module that draws with matplotlib imports this one.

Raises:
    MissingExtraError: when it is imported without matplotlib.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlsr.errors import MissingExtraError
from dlsr.files import replacing
from dlsr.reports.bins import bar_edges

try:
    from matplotlib.figure import Figure
except ImportError:
    raise MissingExtraError("matplotlib", "fit") from None

Scores = NDArray[np.float64]


def save_histogram(path: Path, id_scores: Scores, ood_scores: Mapping[str, Scores], threshold: float) -> None:
    """Write a plot of the scores of the ID and each OOD dataset, with the threshold.

    Args:
        path: file to write; its suffix chooses the format.
        id_scores: shape `(n,)`.
        ood_scores: scores by the name of the dataset, each of shape `(m,)`.
        threshold: images with a higher score are called OOD.

    Raises:
        OutputError: if the file cannot be written.
    """
    save_figure(score_histogram(id_scores, ood_scores, threshold), path)


def score_histogram(id_scores: Scores, others: Mapping[str, Scores], threshold: float) -> Figure:
    """Histograms of ID scores and of other datasets' scores, with the threshold; arguments as for `save_histogram`."""
    figure, axes = _figure()
    bins = bar_edges([id_scores, *others.values()]).tolist()
    for name, scores in {"ID": id_scores, **others}.items():
        style = {"alpha": 0.6, "color": "0.45"} if name == "ID" else {"histtype": "step", "linewidth": 1.8}
        label = plain(f"{name} ({len(scores)})")
        axes.hist(np.clip(scores, bins[0], bins[-1]), bins=bins, density=True, label=label, **style)
    axes.axvline(threshold, color="black", linestyle="--", linewidth=1, label="threshold")
    axes.set_xlabel("score (larger = more OOD)")
    axes.set_ylabel("density")
    axes.legend(frameon=False)
    return figure


def save_roc(path: Path, id_scores: Scores, ood_scores: Mapping[str, Scores]) -> None:
    """Write a plot with the ROC curve of each OOD dataset; OOD is the positive class.

    Arguments and errors as for `save_histogram`.
    """
    figure, axes = _figure()
    for name, scores in ood_scores.items():
        thresholds = np.append(np.inf, np.unique(np.concatenate([id_scores, scores]))[::-1])
        fpr, tpr = _called_ood(id_scores, thresholds), _called_ood(scores, thresholds)
        area = float(np.trapezoid(tpr, fpr))
        axes.plot(fpr, tpr, label=plain(f"{name}: AUROC {100 * area:.2f} %"))
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.set_xlabel("false positive rate: ID images called OOD")
    axes.set_ylabel("true positive rate: OOD images called OOD")
    axes.legend(frameon=False, loc="lower right")
    save_figure(figure, path)


def plain(label: str) -> str:
    """A label as matplotlib draws it without taking `$` for a formula, or leaving it out for its first `_`."""
    escaped = label.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def _called_ood(scores: Scores, thresholds: Scores) -> Scores:
    """Share of the scores, of shape `(n,)`, that reach each threshold, of shape `(k,)`; shape `(k,)`."""
    return 1 - np.searchsorted(np.sort(scores), thresholds) / len(scores)


def save_speed(path: Path, measured: Mapping[str, Any]) -> None:
    """Write plots of the report of `dlsr.bench.speed`: parts, images per second of each backend, and peak memory."""
    figure = empty_figure(15.0, 4.0)
    spent, rates, costs = figure.subplots(1, 3)
    _draw_parts(spent, measured)
    for row in measured["scoring"]:
        sizes = list(row["end_to_end"])
        line = rates.plot(sizes, row["end_to_end"].values(), marker="o", label=f"{row['backend']}, end to end")[0]
        rates.plot(
            sizes,
            row["encoder_alone"].values(),
            "x--",
            color=line.get_color(),
            label=f"{row['backend']}, encoder alone",
        )
    eager = measured["eager_default_layout_images_per_second"]
    rates.axhline(eager, color="0.5", linewidth=1, label="eager PyTorch, default layout")
    rates.set(xlabel="batch size", ylabel="images per second")
    rates.set_ylim(0, 1.1 * max(max(row["encoder_alone"].values()) for row in measured["scoring"]))
    rates.legend(frameon=False, fontsize="x-small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    counts = [row["images"] for row in measured["growth"]]
    costs.plot(counts, [row["peak_memory_bytes"] / 2**20 for row in measured["growth"]], marker="o")
    costs.set(xlabel="images scored", ylabel="peak memory, MiB", xscale="log")
    costs.set_ylim(0, 1.1 * max(row["peak_memory_bytes"] for row in measured["growth"]) / 2**20)
    for axes in (spent, rates, costs):
        bare(axes)
    save_figure(figure, path)


def _draw_parts(axes: Any, measured: Mapping[str, Any]) -> None:
    """Core-milliseconds an image: the parts one after the other, end to end, and other ways to score."""
    parts, left = measured["parts"], 0.0
    for name, cost in parts["core_ms"].items():
        axes.barh("parts alone", cost, left=left, label=name)
        left += cost
    axes.barh("end to end", parts["end_to_end"], color="0.4")
    for name, rate in measured["others"].items():
        if not isinstance(rate, str):
            axes.barh(name.partition(":")[0], 1000 * parts["cores"] / rate, color="0.7")
    axes.invert_yaxis()
    axes.set(xlabel="core-milliseconds an image")
    axes.legend(frameon=False, fontsize="x-small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=6)


def _figure() -> tuple[Figure, Any]:
    figure = empty_figure(8.0, 4.5)
    axes = figure.subplots()
    bare(axes)
    return figure, axes


def empty_figure(width: float, height: float) -> Figure:
    """A figure of a width and a height in inches, without axes."""
    return Figure(figsize=(width, height), layout="constrained")


def bare(axes: Any) -> None:
    """Remove the top and right borders of a plot."""
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure at 130 dots per inch.

    Raises:
        OutputError: if the file cannot be written.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format=path.suffix[1:])
