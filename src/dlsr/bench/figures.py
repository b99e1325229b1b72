"""The paper's figures, drawn from measured numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dlsr.reports.plots import bare, save_figure

Scores = NDArray[np.float64]


def save_distributions(path: Path, panels: Mapping[str, Mapping[str, Scores]], label: str) -> None:
    """Figs. 3, 8 and 9: distributions of the scores of each dataset, with a panel for each title."""
    figure = Figure(figsize=(5.5 * len(panels), 4.0), layout="constrained")
    for axes, (title, scores) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        everything = np.concatenate([values[np.isfinite(values)] for values in scores.values()])
        low, high = np.quantile(everything, [0.002, 0.99])
        bins = np.linspace(low, high, 61).tolist()
        for name, values in scores.items():
            style = {"alpha": 0.5, "color": "0.45"} if name == "ID" else {"histtype": "step", "linewidth": 1.6}
            axes.hist(np.clip(values[np.isfinite(values)], low, high), bins=bins, density=True, label=name, **style)
        axes.set(title=title, xlabel=f"{label} (larger = more OOD)", ylabel="density")
        axes.legend(frameon=False, fontsize="small")
        bare(axes)
    save_figure(figure, path)


def save_over_time(path: Path, times: Sequence[int], found: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Fig. 4: average AUROC and FPR95 of each score over the time that features are distorted to."""
    figure = Figure(figsize=(10.0, 4.0), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, 2), (("auroc", "AUROC"), ("fpr95", "FPR95")), strict=True):
        for score, rows in found.items():
            axes.plot(times, [100 * value for value in rows[key]], marker="o", markersize=3, label=score)
        axes.set(xlabel="t", ylabel=f"average {title}, %", xscale="log")
        axes.legend(frameon=False)
        bare(axes)
    save_figure(figure, path)


def save_bars(path: Path, found: Mapping[str, Mapping[str, float]]) -> None:
    """Fig. 5: metrics of the variants side by side, in percent."""
    figure = Figure(figsize=(7.0, 3.5), layout="constrained")
    axes = figure.subplots()
    keys = list(next(iter(found.values())))
    places = np.arange(len(keys))
    for i, (variant, numbers) in enumerate(found.items()):
        width = 0.8 / len(found)
        bars = axes.bar(places + i * width, [100 * numbers[key] for key in keys], width, label=variant)
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.set_xticks(places + 0.4 - 0.4 / len(found), keys)
    axes.set_ylabel("%")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(found))
    bare(axes)
    save_figure(figure, path)
