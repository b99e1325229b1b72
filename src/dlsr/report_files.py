"""An evaluation as files: JSON and pictures."""

from pathlib import Path

from dlsr.evaluation import Evaluation
from dlsr.files import replacing
from dlsr.plots import save_histogram, save_roc


def write_evaluation(folder: Path, done: Evaluation, threshold: float) -> list[Path]:
    """Write `evaluation.json`, `histogram.png` and `roc.png`.

    Raises:
        OutputError: if they cannot be written.
    """
    paths = [folder / name for name in ("evaluation.json", "histogram.png", "roc.png")]
    with replacing(paths[0]) as temporary:
        temporary.write_text(done.report.model_dump_json(indent=2) + "\n")
    save_histogram(paths[1], done.id_scores, done.ood_scores, threshold)
    save_roc(paths[2], done.id_scores, done.ood_scores)
    return paths
