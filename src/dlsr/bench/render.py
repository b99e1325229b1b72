"""Tables of comparisons in Markdown, beside the numbers printed in the paper."""

from collections.abc import Mapping
from typing import Any

import numpy as np

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
    numbers = row["sets"][name]
    text = f"{100 * numbers['mean'][metric]:.2f}"
    return text if row["seeds"] == 1 else f"{text} ± {100 * numbers['std'][metric]:.2f}"


def _average(row: Mapping[str, Any], names: list[str], metric: str) -> float:
    return float(np.mean([100 * row["sets"][name]["mean"][metric] for name in names]))
