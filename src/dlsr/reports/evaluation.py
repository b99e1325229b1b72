"""An evaluation as files: its numbers as JSON, its scores as plots."""

from pathlib import Path

from dlsr.evaluation import Evaluation
from dlsr.files import write_json
from dlsr.reports.plots import save_histogram, save_roc


def write_evaluation(folder: Path, done: Evaluation, threshold: float) -> list[Path]:
    """Write `evaluation.json`, `histogram.png` and `roc.png`, and return their paths.

    Raises:
        OutputError: if they cannot be written.
    """
    paths = [folder / name for name in ("evaluation.json", "histogram.png", "roc.png")]
    write_json(paths[0], done.report.model_dump(mode="json"))
    save_histogram(paths[1], done.id_scores, done.ood_scores, threshold)
    save_roc(paths[2], done.id_scores, done.ood_scores)
    return paths
