import json
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from dlsr import InputError, SettingsError, evaluate_scores
from dlsr.baselines import DETECTORS
from dlsr.bench import reproduction
from dlsr.bench.compare import CompareSettings, scored_images
from dlsr.bench.paper import PAPER
from dlsr.bench.render import paper_tables
from dlsr.bench.reproduction import FIGURES, PAPER_SCORES, TABLES, FigureRun, Where, average, draw, open_task, run_table

TINY = {"encoder": "test_resnet", "weights": "random"}
SETTINGS = CompareSettings(detectors=(), limit=20, **TINY)


def test_the_papers_tables_are_complete():
    assert set(TABLES) == {f"table{i}" for i in (1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12)}
    for table in PAPER:
        assert table.rows.keys() <= DETECTORS.keys()
        assert all(len(numbers) == len(table.ood) for numbers in table.rows.values())
        assert all(n is None or 0 <= n <= 100 for numbers in table.rows.values() for n in numbers)


@pytest.mark.parametrize(
    ("name", "printed"), [("table3", 99.34), ("table6", 98.30), ("table5", 2.51), ("table7", 8.89)]
)
def test_the_averages_that_the_paper_prints_follow_from_its_tables(name, printed):
    table = next(table for table in PAPER if table.table == name and table.id == "cifar10")
    assert np.mean(table.rows["dlsr+mfsim"]) == pytest.approx(printed, abs=0.02)


def test_a_task_names_missing_ood_datasets(root):
    task, missing = open_task("cifar10", ("svhn", "mnist"), Where(root, {}))
    assert list(task.ood) == ["svhn"]
    assert list(missing) == ["mnist"]
    with pytest.raises(InputError, match="all OOD datasets are missing; the dataset 'mnist' is not below"):
        open_task("cifar10", ("mnist",), Where(root, {}))


def test_a_table_is_shown_beside_the_printed_one(root, tmp_path):
    settings = CompareSettings(detectors=("mahalanobis",), limit=20, **TINY)
    report = run_table("table9", Where(root, {}), settings, tmp_path / "runs", ood=("svhn", "cifar100"))
    text = paper_tables(json.loads(json.dumps(report)))
    assert "cifar100 is missing: the dataset 'cifar100' is not below" in text
    assert "printed in the paper (efficientnet_b4)" in text
    assert "| diffguard | 89.88 | 91.88 |" in text
    assert (tmp_path / "table9-cifar10-failures.png").exists()


def test_a_table_without_its_id_dataset_cannot_run(root, tmp_path):
    report = run_table("table2", Where(root, {}), SETTINGS, tmp_path / "runs")
    assert "Cannot run: the dataset 'celeba'" in paper_tables(report)


def test_an_unknown_table_is_refused(root, tmp_path):
    with pytest.raises(SettingsError, match="choose one of table1"):
        run_table("table13", Where(root, {}), SETTINGS, tmp_path)


@pytest.mark.slow
def test_figures_are_drawn_from_fitted_networks(task, tmp_path, monkeypatch):
    small = {"width": 32, "blocks": 2}
    original = FigureRun.fit
    monkeypatch.setattr(FigureRun, "fit", lambda self, **changes: original(self, **(small | changes)))
    monkeypatch.setattr(reproduction, "TIMES", (1, 30, 100))
    messages = []
    run = FigureRun(task, SETTINGS, tmp_path / "runs", 1, tmp_path / "store", messages.append)
    for figure in ("fig3", "fig9", "ablation"):
        numbers = json.loads(json.dumps(draw(figure, run, tmp_path)))
        assert (numbers["epochs"], numbers["width"]) == (1, 32)
    # All figures share a network; the ablation has three more.
    assert messages[0] == "fitting the paper's network with width 32, blocks 2"
    assert len(messages) == len(set(messages)) == 4
    checkpoints = list((tmp_path / "runs").glob("*.checkpoint"))
    assert len(checkpoints) == 4, "from which a call with more epochs goes on"
    for name in ("fig3", "fig4", "fig5", "fig9"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 500
    assert set(numbers["over_time"]) == set(PAPER_SCORES) == {"mse", "lr", "mfsim"}
    assert len(numbers["over_time"]["lr"]["auroc"]) == len(numbers["times"]) == 3
    assert [set(scores) for scores in numbers["table4"].values()] == [set(PAPER_SCORES)] * 3


def test_figure_8_shows_the_scores_of_ddpm(task, tmp_path):
    small = {"width": 4, "starts": 1, "steps": 2, "epochs": 1, "batch_size": 32}
    settings = CompareSettings(detectors=(), limit=8, train_limit=32, parameters={"ddpm": small})
    numbers = draw("fig8", FigureRun(task, settings, tmp_path / "runs"), tmp_path)
    assert 0 <= numbers["average"]["auroc"] <= 1
    with Image.open(tmp_path / "fig8.png") as picture:
        assert picture.width > 500


def test_an_unknown_figure_is_refused(task, tmp_path):
    with pytest.raises(SettingsError, match=", ".join(FIGURES)):
        draw("fig1", FigureRun(task, SETTINGS, tmp_path), tmp_path)


@pytest.mark.slow
def test_the_network_of_the_figures_scores_as_its_detector_does(task, tmp_path):
    """And the network after the first epoch scores as a detector that was trained for an epoch."""
    one, two = (FigureRun(task, SETTINGS, tmp_path, epochs).fit(width=32, blocks=2, lr=1e-2) for epochs in (1, 2))
    images = scored_images(task, SETTINGS)["svhn"]
    scores = {name: network.scores(network.scorer("mfsim"))["svhn"] for name, network in (("one", one), ("two", two))}
    np.testing.assert_allclose(scores["two"], two.detector.score_samples(images), atol=1e-6)
    first = two.scores(two.scorer("mfsim", initial=True))["svhn"]
    np.testing.assert_allclose(first, scores["one"], atol=1e-6)
    assert np.abs(first - scores["two"]).max() > 1e-4


def test_other_times_give_other_scores(task, tmp_path):
    network = FigureRun(task, SETTINGS, tmp_path, epochs=1).fit(width=32, blocks=2)
    by_time = [network.scores(network.scorer("mse", (t,)))["svhn"].mean() for t in (10, 50, 100)]
    assert all(before < after for before, after in pairwise(by_time))


def test_averages_are_means_over_ood_datasets():
    random = np.random.default_rng(0)
    scores = {"ID": random.normal(size=50), "near": random.normal(1, size=50), "far": random.normal(4, size=50)}
    metrics = [evaluate_scores(scores["ID"], scores[name]) for name in ("near", "far")]
    expected = {
        "auroc": np.mean([numbers.auroc for numbers in metrics]),
        "fpr95": np.mean([numbers.fpr95_id_positive for numbers in metrics]),
    }
    assert average(scores) == pytest.approx(expected)
