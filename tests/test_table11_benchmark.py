"""The parts of `benchmarks/table11.py` that need no datasets."""

import itertools
import json

import pytest

import table11
from dlsr.baselines import make_detector


@pytest.fixture
def measured(monkeypatch):
    """Tasks of the suite whose images are not opened, and detectors that are not fitted."""
    monkeypatch.setattr("table11.TaskOpener", lambda suite, data: type("Opener", (), {"open": lambda _, task: task})())

    def measure(auroc):
        def run_suite(tasks, settings, folder, **_):
            runs = [{"datasets": {"one": {"auroc": auroc}, "other": {"auroc": auroc - 0.1}}}]
            pairs = itertools.product(tasks, settings.detectors)
            return {"rows": [{"task": task.name, "detector": name, "runs": runs} for task, name in pairs]}

        monkeypatch.setattr("table11.run_suite", run_suite)

    return measure


def test_rows_of_other_runs_stay(measured, tmp_path):
    output = tmp_path / "table11.json"
    measured(0.9)
    table11.main(data=tmp_path, folder=tmp_path, output=output, steps="600")
    measured(0.7)
    table11.main(data=tmp_path, folder=tmp_path, output=output, steps="600,3000", only="cifar10")
    measured(0.6)
    table11.main(data=tmp_path, folder=tmp_path, output=output, only="cifar10", blocks=16, networks="autoencoder")
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == 18 * 3 + 3 + 1
    text = output.with_suffix(".md").read_text()
    for start in [
        "| autoencoder | 512 | 4 | 600 | 81.18 | 82.78 | 85.00 | 83.89 | 65.00 |",
        "| autoencoder | 512 | 4 | 3,000 | 81.18 |  |  |  | 65.00 |  |",
        "| autoencoder | 512 | 16 | 600 | 81.18 |  |  |  | 55.00 |  |",
        "| feature-vae | 512 |  | 600 | 96.84 | 82.78 | 85.00 | 83.89 | 65.00 |",
    ]:
        assert text.count(f"\n{start}") == 1


@pytest.mark.parametrize(("name", "printed"), [("autoencoder", 81.18), ("feature-vae", 96.84), ("diffusion", 99.81)])
def test_variants_are_settings_of_detectors(name, printed):
    settings = table11.variant(name, 600, 512, 16)
    detector = make_detector(settings.pop("detector"), **settings)
    assert (detector.min_steps, detector.width) == (600, 512)
    assert table11.printed(name) == pytest.approx(printed, abs=0.01)
