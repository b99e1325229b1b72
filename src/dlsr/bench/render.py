"""Tables of comparisons in Markdown, beside the numbers printed in the paper."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dlsr.bench.summary import RATES, SUITE_METRICS, by_task

METRICS = {"auroc": "AUROC", "fpr95_id_positive": "FPR95", "aupr_ood": "AUPR-OOD", "aupr_id": "AUPR-ID"}


def comparison_table(report: Mapping[str, Any], metric: str = "auroc") -> str:
    """One metric of every detector on every OOD dataset, in percent, best average first.

    Args:
        report: from `dlsr.bench.compare.compare`.
        metric: a name of `METRICS`.
    """
    done = [row for row in report["rows"] if "why" not in row]
    names = [name for name in report["images"] if name not in ("train", "ID")]
    larger = metric != "fpr95_id_positive"
    done.sort(key=lambda row: _average(row, names, metric), reverse=larger)
    lines = [
        f"| detector | kind | {' | '.join(names)} | average | images/s | training images | fit, s |",
        "|---" * (len(names) + 6) + "|",
    ]
    for row in done:
        cells = [_cell(row, name, metric) for name in names]
        lines.append(
            f"| {row['detector']} | {row['kind']} | {' | '.join(cells)} | {_average(row, names, metric):.2f} "
            f"| {row['images_per_second']:.3g} | {row['training_images']} | {row['fit_seconds']:.0f} |"
        )
    for row in report["rows"]:
        if "why" in row:
            lines.append(f"| {row['detector']} | | cannot run: {row['why']} " + "| " * (len(names) + 3) + "|")
    return "\n".join(lines)


def summary_table(report: Mapping[str, Any]) -> str:
    """Every metric averaged over the OOD datasets, with speed and the time to fit, best AUROC first."""
    done = [row for row in report["rows"] if "why" not in row]
    names = [name for name in report["images"] if name not in ("train", "ID")]
    done.sort(key=lambda row: _average(row, names, "auroc"), reverse=True)
    lines = [
        f"| detector | {' | '.join(METRICS.values())} | seeds | images/s | training images | fit, s |",
        "|---" * (len(METRICS) + 5) + "|",
    ]
    for row in done:
        cells = " | ".join(f"{_average(row, names, metric):.2f}" for metric in METRICS)
        lines.append(
            f"| {row['detector']} | {cells} | {row['seeds']} | {row['images_per_second']:.3g} "
            f"| {row['training_images']} | {row['fit_seconds']:.0f} |"
        )
    return "\n".join(lines)


def paper_tables(report: Mapping[str, Any]) -> str:
    """A table of the paper for each ID dataset, with the paper's numbers below.

    Args:
        report: from `dlsr.bench.reproduction.run_table`.
    """
    parts: list[str] = []
    for id, comparison in report["ids"].items():
        parts.append(f"### {report['table']}, ID {id}")
        if "why" in comparison:
            parts.append(f"Cannot run: {comparison['why']}")
            continue
        remarks = [f"{name}: {remark}" for name, remarks in comparison["remarks"].items() for remark in remarks]
        remarks += [f"{name} is missing: {why}" for name, why in comparison["missing"].items()]
        if remarks:
            parts.append("\n".join(f"- {remark}" for remark in remarks))
        parts += ["Averages over the OOD datasets, in %:", summary_table(comparison)]
        for metric in ("auroc", "fpr95_id_positive"):
            parts.append(f"{METRICS[metric]} in %, measured:")
            parts.append(comparison_table(comparison, metric))
            for printed in comparison["printed"]:
                if printed["metric"] == metric:
                    parts.append(f"{METRICS[metric]} in %, printed in the paper ({printed['encoder']}):")
                    parts.append(_printed_table(printed["rows"]))
    return "\n\n".join(parts) + "\n"


def _printed_table(rows: Mapping[str, Mapping[str, float | None]]) -> str:
    names = list(next(iter(rows.values())))
    lines = [f"| detector | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for detector, numbers in rows.items():
        cells = ["-" if number is None else f"{number:.2f}" for number in numbers.values()]
        lines.append(f"| {detector} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any], name: str, metric: str) -> str:
    numbers = row["datasets"][name]
    text = f"{100 * numbers['mean'][metric]:.2f}"
    return text if row["seeds"] == 1 else f"{text} ± {100 * numbers['std'][metric]:.2f}"


def _average(row: Mapping[str, Any], names: list[str], metric: str) -> float:
    return float(np.mean([100 * row["datasets"][name]["mean"][metric] for name in names]))


def suite_tables(report: Mapping[str, Any]) -> str:
    """The tables of a suite of tasks, in percent.

    Args:
        report: from `dlsr.bench.suite.run_suite`.
    """
    summary, reference = report["summary"], report["reference"]
    over_seeds = " and over seeds" if report["settings"]["seeds"] > 1 else ""
    promised = " / ".join(f"{100 * rate:g}" for rate in RATES)
    parts = [
        f"AUROC of each detector in %, mean over the OOD datasets of a task{over_seeds}; "
        "in bold the best of each task:",
        _tasks_table(report),
        f"Averages over tasks, in %. The difference is that of AUROC to {reference}; worst: the task with the lowest:",
        _averages_table(report),
        f"False alarms on the ID test images in %, promised {promised} (-: too few images to promise it):",
        _false_alarms_table(report),
        "Times. Scoring is without encoding, for 1,000 vectors; its share is that of encoding as many images:",
        _times_table(report),
    ]
    reasons = [
        f"- {row['detector']} cannot run on {row['task']}: {row['why']}" for row in report["rows"] if "why" in row
    ]
    unreadable = [
        f"- {task['name']}: {len(names)} images of {part} cannot be read"
        for task in report["tasks"]
        for part, names in task["unreadable"].items()
    ]
    if few := [name for name, row in summary.items() if row["tasks"] < len(report["tasks"])]:
        reasons.append(f"- The averages of {', '.join(few)} are over fewer tasks than the others'.")
    return "\n\n".join([*parts, *(["\n".join([*reasons, *unreadable])] if reasons or unreadable else [])]) + "\n"


def _tasks_table(report: Mapping[str, Any]) -> str:
    aurocs, names = by_task(report, "auroc"), list(report["summary"])
    lines = [f"| task | training images | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for task in report["tasks"]:
        values = {name: aurocs[name][task["name"]] for name in names if task["name"] in aurocs[name]}
        best = max((float(np.mean(of_seeds)) for of_seeds in values.values()), default=0.0)
        cells = [_seeds_cell(values.get(name), best) for name in names]
        lines.append(f"| {task['name']} | {_training_images(report, task['name'])} | {' | '.join(cells)} |")
    means = [f"{100 * report['summary'][name]['auroc']['mean']:.2f}" for name in names]
    lines.append(f"| **mean** | | {' | '.join(means)} |")
    for half in dict.fromkeys(task["half"] for task in report["tasks"] if task["half"] is not None):
        cells = [_percent(report["summary"][name]["halves"].get(half)) for name in names]
        lines.append(f"| **mean, {half}** | | {' | '.join(cells)} |")
    return "\n".join(lines)


def _averages_table(report: Mapping[str, Any]) -> str:
    lines = [
        "| detector | AUROC | AUPR-OOD | FPR95 | difference | worst difference | encoder, pooling |",
        "|---" * 7 + "|",
    ]
    for name, row in _best_first(report):
        cells = [_with_std(row[metric], report["settings"]["seeds"]) for metric in SUITE_METRICS]
        difference, worst = "-", "-"
        if "worst" in row and name != report["reference"]:
            difference = f"{100 * row['difference']:+.2f}"
            worst = f"{100 * row['worst']['difference']:+.2f} ({row['worst']['task']})"
        lines.append(f"| {name} | {' | '.join(cells)} | {difference} | {worst} | {row['encoder'] or 'pixels'} |")
    return "\n".join(lines)


def _false_alarms_table(report: Mapping[str, Any]) -> str:
    names = list(report["summary"])
    found: dict[tuple[str, str], str] = {}
    for row in report["rows"]:
        if "runs" in row:
            found[row["task"], row["detector"]] = " / ".join(
                _percent(_mean([run["false_alarms"][f"{rate:g}"] for run in row["runs"]]), 1) for rate in RATES
            )
    lines = [f"| task | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for task in report["tasks"]:
        lines.append(f"| {task['name']} | {' | '.join(found.get((task['name'], name), '-') for name in names)} |")
    return "\n".join(lines)


def _times_table(report: Mapping[str, Any]) -> str:
    lines = ["| detector | fit, s | longest fit, s | scoring, s | share of encoding, % |", "|---" * 5 + "|"]
    for name, row in _best_first(report):
        share = _percent(row["share_of_encoding"], 1)
        lines.append(
            f"| {name} | {row['fit_seconds']:.1f} | {row['most_fit_seconds']:.1f} "
            f"| {row['scoring_seconds_per_1000']:.3g} | {share} |"
        )
    costs = [
        f"{label}: {cost['seconds_per_1000']:.1f} s for 1,000 images of {cost['images_of']}, {cost['c']} features"
        for label, cost in report["encoders"].items()
    ]
    return "\n".join([*lines, "", *(f"Encoding with {cost}." for cost in costs)])


def _best_first(report: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(report["summary"].items(), key=lambda item: float(item[1]["auroc"]["mean"]), reverse=True)


def _training_images(report: Mapping[str, Any], task: str) -> str:
    counts = {run["training_images"] for row in report["rows"] if row["task"] == task for run in row.get("runs", ())}
    return ", ".join(str(count) for count in sorted(counts))


def _seeds_cell(values: list[float] | None, best: float) -> str:
    if values is None:
        return "-"
    text = _with_std({"mean": float(np.mean(values)), "std": float(np.std(values))}, len(values))
    return f"**{text}**" if np.mean(values) == best else text


def _with_std(numbers: Mapping[str, float], seeds: int) -> str:
    text = f"{100 * numbers['mean']:.2f}"
    return text if seeds == 1 else f"{text} ± {100 * numbers['std']:.2f}"


def _percent(share: float | None, digits: int = 2) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f}"


def _mean(shares: list[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return float(np.mean(known)) if known else None
