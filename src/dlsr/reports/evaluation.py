"""Reports as files: JSON and pictures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlsr.evaluation import Evaluation
from dlsr.files import replacing
from dlsr.reports.plots import save_histogram, save_roc


def write_evaluation(folder: Path, done: Evaluation, threshold: float) -> list[Path]:
    """Write `evaluation.json`, `histogram.png` and `roc.png`.

    Raises:
        OutputError: if they cannot be written.
    """
    paths = [folder / name for name in ("evaluation.json", "histogram.png", "roc.png")]
    write_json(paths[0], done.report.model_dump(mode="json"))
    save_histogram(paths[1], done.id_scores, done.ood_scores, threshold)
    save_roc(paths[2], done.id_scores, done.ood_scores)
    return paths


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a report as JSON.

    Raises:
        OutputError: if it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
