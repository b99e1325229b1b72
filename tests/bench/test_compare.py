import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dlsr import ArtifactError, Detector, evaluate_scores
from dlsr.baselines import DETECTORS, make_detector
from dlsr.bench.compare import (
    CompareSettings,
    Task,
    _key,
    code_of,
    compare,
    read_run,
    read_scores,
    scored_images,
    write_failures,
)
from dlsr.bench.render import comparison_table, summary_table
from dlsr.images.sources import ImageDataset, failing_item
from dlsr.images.transforms import protocol_transform

TINY = {"encoder": "test_resnet", "weights": "random"}
SMALL_PAPER = {"width": 32, "blocks": 2, "epochs": 2, "lr": 1e-3}
SMALL_VAE = {"width": 4, "latent": 4, "epochs": 1, "regret_steps": 2}
SETTINGS = CompareSettings(
    detectors=("dlsr+mse", "dlsr+mfsim", "mahalanobis", "msp", "vae"),
    parameters={"dlsr+mse": SMALL_PAPER, "dlsr+mfsim": SMALL_PAPER, "vae": SMALL_VAE},
    limit=20,
    **TINY,
)
MAHALANOBIS = replace(SETTINGS, detectors=("mahalanobis",))


class Comparison:
    """`compare` in a folder, with every message."""

    def __init__(self, folder, task):
        self.folder = folder
        self.task = task
        self.messages = []

    def run(self, settings, **options):
        self.messages.clear()
        return compare(self.task, settings, self.folder, on_message=self.messages.append, **options)

    def epochs_of(self):
        """The detector of each message on an epoch."""
        return [line.split(",")[0] for line in self.messages if ": epoch " in line]


@pytest.fixture(autouse=True)
def every_message(monkeypatch):
    monkeypatch.setattr("dlsr.bench.compare.SECONDS_BETWEEN_MESSAGES", 0)


@pytest.fixture
def comparison(tmp_path, task):
    return Comparison(tmp_path, task)


@pytest.fixture(scope="module")
def compared(tmp_path_factory, task):
    """All detectors of `SETTINGS`: the comparison and its report, read back from JSON."""
    folder = tmp_path_factory.mktemp("compared")
    comparison = Comparison(folder, task)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dlsr.bench.compare.SECONDS_BETWEEN_MESSAGES", 0)
        report = json.loads(json.dumps(comparison.run(SETTINGS, store=folder / "store")))
    return comparison, report, list(comparison.messages)


def rows_of(report):
    return {row["detector"]: row for row in report["rows"]}


def test_other_weights_under_the_same_name_are_other_runs(tmp_path):
    weights = tmp_path / "w.pth"
    keys = []
    for content in (b"one", b"two", b"one"):
        weights.write_bytes(content)
        detector = Detector(score="mahalanobis", **TINY | {"weights": str(weights)})
        keys.append(_key(detector, SETTINGS, {}, "mahalanobis", ""))
    assert keys[0] == keys[2] != keys[1]


def test_other_labels_are_other_runs_of_detectors_that_need_them(task):
    detectors = {name: make_detector(name) for name in ("msp", "vae")}
    keys = {name: {_key(detector, SETTINGS, {}, name, given) for given in "ab"} for name, detector in detectors.items()}
    assert {name: len(found) for name, found in keys.items()} == {"msp": 2, "vae": 1}


def test_the_code_that_fits_and_groups_images_is_a_part_of_the_key(monkeypatch):
    monkeypatch.setattr("dlsr.bench.compare.code_digest", lambda *modules: modules)
    behind = code_of(Detector(score="mahalanobis"))
    assert {"dlsr.fitting", "dlsr.calibration.copies", "dlsr.scorers.mahalanobis"} <= set(behind)


def test_images_that_cannot_be_read_are_named_also_if_runs_are_read(comparison, task):
    broken = ImageDataset([*task.test.items[:15], failing_item("bad.png", "no such disk")])
    comparison.task = replace(task, test=broken)
    for _ in range(2):
        assert comparison.run(MAHALANOBIS)["unreadable"] == {"ID": {"bad.png": "no such disk"}}


def test_a_report_holds_the_scores_and_metrics_of_each_detector(compared, task):
    comparison, report, _ = compared
    rows = rows_of(report)
    assert list(rows) == list(SETTINGS.detectors)
    assert report["images"] == {"train": 90, "ID": 20, "svhn": 20}
    own = Detector(score="mahalanobis", **TINY).fit(task.train)
    images = scored_images(task, SETTINGS)
    scores = read_scores(comparison.folder, rows["mahalanobis"]["run_files"][0])
    np.testing.assert_allclose(own.score_samples(images["svhn"]), scores["svhn"], rtol=1e-4)
    auroc = evaluate_scores(own.score_samples(images["ID"]), own.score_samples(images["svhn"])).auroc
    assert rows["mahalanobis"]["datasets"]["svhn"]["mean"]["auroc"] == pytest.approx(auroc)
    assert rows["mahalanobis"]["images_per_second"] > 0


def test_scores_of_the_same_network_are_fitted_once(compared):
    _, report, messages = compared
    rows = rows_of(report)
    assert rows["dlsr+mse"]["fit_seconds"] == rows["dlsr+mfsim"]["fit_seconds"]
    assert rows["dlsr+mse"]["datasets"] != rows["dlsr+mfsim"]["datasets"]
    assert not any(line.startswith("dlsr+mfsim, seed 0: epoch") for line in messages)


def test_messages_follow_the_fits(compared):
    _, _, messages = compared
    assert sum("fitting" in line for line in messages) == 5
    assert any(line.startswith("vae, seed 0: epoch 1 of at most 1, loss ") for line in messages)


def test_finished_runs_are_not_repeated(compared):
    comparison, report, _ = compared
    again = comparison.run(SETTINGS)
    assert comparison.messages == []
    assert json.loads(json.dumps(again["rows"])) == report["rows"]
    comparison.run(replace(MAHALANOBIS, protocol="matched"))
    assert "mahalanobis, seed 0: fitting" in comparison.messages


def test_tables_are_sorted_by_auroc(compared):
    _, report, _ = compared
    summary = summary_table(report).splitlines()[2:]
    expected = sorted((round(100 * row["average_auroc"], 2) for row in report["rows"]), reverse=True)
    assert [float(line.split("|")[2]) for line in summary] == expected
    averages = [float(line.split("|")[4]) for line in comparison_table(report).splitlines()[2:]]
    assert averages == sorted(averages, reverse=True)


def test_the_worst_failures_are_written_as_a_picture(compared, task, tmp_path):
    comparison, report, _ = compared
    write_failures(comparison.folder, task, SETTINGS, report, tmp_path / "failures.png")
    with Image.open(tmp_path / "failures.png") as picture:
        assert picture.width > 800


def test_a_detector_that_cannot_run_has_a_reason(task, tmp_path):
    without_labels = Task(task.train, None, task.test, task.ood)
    report = compare(without_labels, replace(SETTINGS, detectors=("msp", "mahalanobis")), tmp_path)
    assert "'msp' needs a label" in report["rows"][0]["why"]
    assert "cannot run" in comparison_table(report)
    assert report["rows"][1]["average_auroc"] > 0


def test_a_damaged_run_is_not_read(comparison):
    report = comparison.run(MAHALANOBIS)
    damaged = comparison.folder / report["rows"][0]["run_files"][0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert read_run(damaged) is None
    with pytest.raises(ArtifactError, match="run the comparison again"):
        read_scores(comparison.folder, damaged.name)
    comparison.run(MAHALANOBIS)
    assert "mahalanobis, seed 0: fitting" in comparison.messages


def test_the_matched_protocol_also_changes_training_images(comparison, task):
    settings = replace(MAHALANOBIS, protocol="matched")
    report = comparison.run(settings)
    scores = read_scores(comparison.folder, report["rows"][0]["run_files"][0])["svhn"]
    matched, images = protocol_transform("matched"), scored_images(task, settings)["svhn"]
    own = Detector(score="mahalanobis", **TINY).fit(task.train, transform=matched)
    np.testing.assert_allclose(own.score_samples(images, transform=matched), scores, rtol=1e-4)
    native = Detector(score="mahalanobis", **TINY).fit(task.train)
    assert not np.allclose(native.score_samples(images, transform=matched), scores, rtol=1e-2)


def test_an_interrupted_fit_resumes(comparison, task, tmp_path, monkeypatch):
    from dlsr.training.checkpoint import Checkpoint

    parameters = {"vae": SMALL_VAE | {"epochs": 3}}
    settings = replace(SETTINGS, detectors=("vae",), parameters=parameters, limit=8, train_limit=30)
    save, saved = Checkpoint.save, []

    def interrupted(self, state):
        save(self, state)
        saved.append(self.path)
        if len(saved) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            comparison.run(settings)
    assert saved[0].exists()
    resumed = comparison.run(settings)
    (epoch,) = [line for line in comparison.messages if "epoch" in line]
    assert "epoch 3 of at most 3" in epoch
    assert not saved[0].exists()
    whole = compare(task, settings, tmp_path / "whole")
    assert resumed["rows"][0]["datasets"] == whole["rows"][0]["datasets"]


def test_detectors_of_a_family_train_their_network_once(task, tmp_path):
    small = {"width": 4, "steps": 2, "epochs": 2, "batch_size": 64}
    parameters = {"ddpm": {**small, "starts": 1}, "lmd": {**small, "attempts": 1}}
    settings = replace(SETTINGS, detectors=("ddpm", "lmd"), parameters=parameters, limit=4, train_limit=32)
    together = Comparison(tmp_path / "together", task)
    report = together.run(settings)
    assert together.epochs_of() == ["ddpm"] * 2
    assert not list(together.folder.glob("*.checkpoint"))
    alone = compare(task, replace(settings, detectors=("lmd",)), tmp_path / "alone")
    assert alone["rows"][0]["datasets"] == report["rows"][1]["datasets"]


def test_another_network_of_the_family_is_trained_anew(task, tmp_path):
    small = {"width": 4, "steps": 2, "epochs": 1, "batch_size": 64}
    parameters = {"ddpm": {**small, "starts": 1}, "lmd": {**small, "attempts": 1, "width": 8}}
    settings = replace(SETTINGS, detectors=("ddpm", "lmd"), parameters=parameters, limit=4, train_limit=32)
    comparison = Comparison(tmp_path, task)
    comparison.run(settings)
    assert comparison.epochs_of() == ["ddpm", "lmd"]


def test_seeds_give_means_and_standard_deviations(comparison, monkeypatch):
    few_images = replace(DETECTORS["vae"], reduced_images=30)
    monkeypatch.setattr("dlsr.bench.compare.DETECTORS", dict(DETECTORS) | {"vae": few_images})
    settings = CompareSettings(detectors=("vae",), seeds=2, reduced=True, limit=8, parameters={"vae": SMALL_VAE})
    (row,) = comparison.run(settings)["rows"]
    assert (row["seeds"], row["training_images"]) == (2, 30)
    scores = [read_scores(comparison.folder, file) for file in row["run_files"]]
    aurocs = [evaluate_scores(by_name["ID"], by_name["svhn"]).auroc for by_name in scores]
    numbers = row["datasets"]["svhn"]
    assert numbers["mean"]["auroc"] == pytest.approx(np.mean(aurocs))
    assert numbers["std"]["auroc"] == pytest.approx(np.std(aurocs))
    table = comparison_table({"rows": [row], "images": {"train": 0, "ID": 0, "svhn": 0}})
    assert f"{100 * np.mean(aurocs):.2f} ± {100 * np.std(aurocs):.2f}" in table


def test_the_command_compares_the_simple_methods_by_default(root, tmp_path, monkeypatch):
    from dlsr.cli import main

    cifar = root / "cifar10"
    command = [
        "dlsr", "bench", "compare", "--id", cifar / "train", "--id-test", cifar / "test", "--ood",
        f"svhn={root / 'svhn_crops.tar'}", "--output", tmp_path / "out", "--encoder", "test_resnet",
        "--weights", "random", "--limit", "20", "--no-store", "--quiet",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", [str(part) for part in command])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["detector"] for row in report["rows"]] == ["dlsr", "mahalanobis", "knn"]
