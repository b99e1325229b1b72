"""The paper's figures and the picture of a suite, drawn from measured numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dlsr.bench.summary import by_task, differences_of
from dlsr.reports.plots import bare, plain, save_figure

Scores = NDArray[np.float64]

LARGE = 10.0
"""Difference of AUROC in percentage points that has the strongest colour."""


def save_distributions(path: Path, panels: Mapping[str, Mapping[str, Scores]], label: str) -> None:
    """Figs. 3, 8 and 9: distributions of the scores of each dataset, with a panel for each title."""
    figure = Figure(figsize=(5.5 * len(panels), 4.0), layout="constrained")
    for axes, (title, scores) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        everything = np.concatenate([values[np.isfinite(values)] for values in scores.values()])
        low, high = np.quantile(everything, [0.002, 0.99])
        bins = np.linspace(low, high, 61).tolist()
        for name, values in scores.items():
            style = {"alpha": 0.5, "color": "0.45"} if name == "ID" else {"histtype": "step", "linewidth": 1.6}
            shown = np.clip(values[np.isfinite(values)], low, high)
            axes.hist(shown, bins=bins, density=True, label=plain(name), **style)
        axes.set(title=plain(title), xlabel=f"{label} (larger = more OOD)", ylabel="density")
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


def save_suite(path: Path, report: Mapping[str, Any]) -> None:
    """Detectors by tasks: the difference of AUROC to that of the reference, whose own row has its AUROC, in percent.

    Args:
        path: PNG to write.
        report: from `dlsr.bench.suite.run_suite`.

    Raises:
        OutputError: if it cannot be written.
    """
    reference, tasks = report["reference"], [task["name"] for task in report["tasks"]]
    ranked = sorted(report["summary"], key=lambda name: -report["summary"][name]["auroc"]["mean"])
    names = [reference, *(name for name in ranked if name != reference)]
    columns = [*tasks, "mean"]
    values = np.full((len(names), len(columns)), np.nan)
    for i, name in enumerate(names):
        for task, difference in differences_of(report, name).items():
            values[i, tasks.index(task)] = 100 * difference
        values[i, -1] = 100 * report["summary"][name].get("difference", np.nan)
    own = {task: 100 * float(np.mean(found)) for task, found in by_task(report, "auroc")[reference].items()}
    own["mean"] = 100 * report["summary"][reference]["auroc"]["mean"]
    figure = Figure(figsize=(max(2.2 + 0.62 * len(columns), 6), 1.7 + 0.4 * len(names)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="RdBu", vmin=-LARGE, vmax=LARGE, aspect="auto")
    for i, name in enumerate(names):
        for j, column in enumerate(columns):
            value = values[i, j]
            text = f"{own[column]:.1f}" if name == reference and column in own else f"{value:+.1f}"
            dark = abs(value) > 0.6 * LARGE
            if np.isfinite(value):
                axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.set_xticks(range(len(columns)), [*map(plain, columns)], rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), [plain(name) for name in (f"{reference}: AUROC", *names[1:])])
    axes.axhline(0.5, color="black", linewidth=1)
    axes.axvline(len(tasks) - 0.5, color="black", linewidth=1)
    axes.set_title(plain(f"AUROC less that of {reference}, in percentage points"), fontsize=10)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, extend="both", fraction=0.02, pad=0.01)
    save_figure(figure, path)
