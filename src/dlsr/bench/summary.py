"""Averages of a suite over its tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SUITE_METRICS = ("auroc", "aupr_ood", "fpr95_id_positive")
RATES = (0.01, 0.05, 0.10)
"""False-alarm rates that a suite promises."""


def summarised(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Averages of each detector over the tasks that it could run on; metrics are in `[0, 1]`, times in seconds.

    Args:
        report: from `dlsr.bench.suite.run_suite`.

    Returns:
        By detector: `tasks`, their number; for each metric its mean over tasks (over OOD datasets and seeds) and the
        standard deviation of that over seeds; `halves`, the mean AUROC of each half; `difference`, the mean difference
        of AUROC to the reference where both ran, and `worst`, the task where it is lowest; times.
    """
    aurocs = by_task(report, "auroc")
    halves = {task["name"]: task["half"] for task in report["tasks"]}
    costs = {label: cost["seconds_per_1000"] for label, cost in report["encoders"].items()}
    found: dict[str, dict[str, Any]] = {}
    for name, tasks in aurocs.items():
        rows = [row for row in report["rows"] if row["detector"] == name and "runs" in row]
        if not rows:
            continue
        summary: dict[str, Any] = {"tasks": len(tasks)}
        for metric in SUITE_METRICS:
            by_seed = np.array(list(by_task(report, metric)[name].values())).mean(axis=0)
            summary[metric] = {"mean": float(by_seed.mean()), "std": float(by_seed.std())}
        summary["halves"] = {
            half: float(np.mean([np.mean(values) for task, values in tasks.items() if halves[task] == half]))
            for half in dict.fromkeys(halves[task] for task in tasks)
            if half is not None
        }
        differences = differences_of(report, name)
        if differences:
            worst = min(differences, key=lambda task: differences[task])
            summary["difference"] = float(np.mean(list(differences.values())))
            summary["worst"] = {"task": worst, "difference": differences[worst]}
        runs = [run for row in rows for run in row["runs"]]
        for time in ("fit_seconds", "scoring_seconds_per_1000"):
            summary[time] = float(np.mean([run[time] for run in runs]))
        summary["most_fit_seconds"] = max(run["fit_seconds"] for run in runs)
        summary["encoder"] = encoder = rows[0]["encoder"]
        summary["share_of_encoding"] = summary["scoring_seconds_per_1000"] / costs[encoder] if encoder else None
        found[name] = summary
    return found


def by_task(report: Mapping[str, Any], metric: str) -> dict[str, dict[str, list[float]]]:
    """By detector and task that it ran on, the mean of a metric over OOD datasets, one for each seed."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in report["settings"]["detectors"]}
    for row in report["rows"]:
        if "runs" in row:
            found[row["detector"]][row["task"]] = [_mean(run["datasets"].values(), metric) for run in row["runs"]]
    return found


def differences_of(report: Mapping[str, Any], name: str) -> dict[str, float]:
    """By task, AUROC of a detector less that of the reference, where both ran."""
    aurocs = by_task(report, "auroc")
    own, reference = aurocs[name], aurocs[report["reference"]]
    return {task: float(np.mean(own[task]) - np.mean(reference[task])) for task in own if task in reference}


def _mean(datasets: Any, metric: str) -> float:
    values: Sequence[float] = [metrics[metric] for metrics in datasets]
    return float(np.mean(values))
