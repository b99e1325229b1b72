import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch
from pydantic import Field

from dlsr import Detector
from dlsr.cli.console import ProgressBars
from dlsr.files import write_arrays
from dlsr.scorers import SCORES, Scorer, ScorerSettings
from dlsr.scorers.base import in_every_preset

ENCODER = ["--encoder", "test_resnet", "--weights", "random", "--backend", "torch"]
TINY = [*ENCODER, "--score", "residual", "--epochs", "2", "--width", "32"]


@pytest.fixture
def new_score(monkeypatch):
    """A score with settings of its own, known to this test alone."""

    class ConstantSettings(ScorerSettings):
        level: float = Field(default=0.0, description="The score of every image.")

    class ConstantScorer(Scorer):
        name = "constant"
        summary = "the same score for all images"
        Settings = ConstantSettings
        presets = in_every_preset(ConstantSettings())

        def __init__(self, settings, channels):
            super().__init__(settings, channels)
            self.register_buffer("level", torch.tensor(settings.level))

        def fit(self, data, trainer):
            return []

        def forward(self, z0, noise):
            scores = self.level.expand(z0.shape[0])
            return scores, scores[:, None].expand(-1, len(self.channels))

    monkeypatch.setitem(SCORES, "constant", ConstantScorer)


@pytest.mark.slow
def test_fit_writes_a_model_and_removes_its_checkpoint(run, image_folder, tmp_path):
    settings = ["--epochs", "2", "--width", "32", "--t", "9,6,3", "--T", "50"]
    done = run("fit", image_folder, "-o", tmp_path / "model", *ENCODER, "--score", "mfsim", *settings)
    assert (done.status, done.out) == (0, "")
    assert "calibrated on" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    settings = Detector.load(tmp_path / "model").settings_.scorer
    assert (settings.epochs, settings.width, settings.t, settings.T) == (2, 32, (9, 6, 3), 50)


def test_fit_prints_its_summary_as_json(run, image_folder, tmp_path):
    done = run("fit", image_folder, "-o", tmp_path / "m", *ENCODER, "--score", "knn", "--neighbours", "7", "--json")
    assert done.status == 0
    summary = json.loads(done.out)
    assert summary["training_images"] == summary["calibration_images"] == 120
    assert summary["model"] == str(tmp_path / "m")
    assert Detector.load(tmp_path / "m").settings_.scorer.neighbours == 7


@pytest.mark.slow
def test_pooling_is_an_option_that_info_shows(run, image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    given = ["--pooling", "mean+std", "--score", "mahalanobis", "-q"]
    assert run("fit", image_folder, "-o", tmp_path / "m", *ENCODER, *given).status == 0
    assert Detector.load(tmp_path / "m").extractor_.spec.pooling == "mean+std"
    assert "pooling mean+std\n" in re.sub(" +\n", "\n", run("info", tmp_path / "m").out)
    refused = run("fit", image_folder, "-o", tmp_path / "n", *ENCODER, "--pooling", "max")
    assert refused.status == 2
    assert "mean+std+max" in refused.err
    assert not (tmp_path / "n").exists()


def test_the_help_of_fit_lists_every_score_and_setting(run, monkeypatch, new_score):
    monkeypatch.setenv("COLUMNS", "200")
    text = re.sub(r"[│\s]+", " ", run("fit", "--help").out)
    for name, scorer in SCORES.items():
        assert name in text
        for setting in scorer.Settings.model_fields:
            assert f"--{setting.replace('_', '-')} " in text
    assert "constant: the same score for all images." in text
    assert "--level FLOAT The score of every image." in text
    assert "default (local)" in text


def test_a_new_score_and_its_settings_need_no_change_of_the_command(run, image_folder, tmp_path, new_score):
    done = run("fit", image_folder, "-o", tmp_path / "m", *ENCODER, "--score", "constant", "--level", "2.5", "-q")
    assert (done.status, done.err) == (0, "")
    assert Detector.load(tmp_path / "m").threshold_ == 2.5


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("does not exist", "fit none -o new"),
        ("no image in", "fit {empty} -o new"),
        ("none of 1 images", "fit {broken} -o new {tiny}"),
        ("holds other files", "fit {images} -o {images}"),
        ("unknown encoder", "fit {images} -o new --encoder none"),
        ("unknown score 'none'; choose one of", "fit {images} -o new --score none"),
        ("unknown preset 'none'; choose one of", "fit {images} -o new --preset none"),
        ("t.0: ", "fit {images} -o new --score mfsim --t a"),
        ("lr: ", "fit {images} -o new --score residual --lr 0"),
        ("has no setting 't'", "fit {images} -o new --score knn --t 70"),
        ("--stages takes whole numbers", "fit {images} -o new --stages a"),
        ("stages 0..4", "fit {images} -o new {tiny} --stages 7"),
        ("no weights file", "fit {images} -o new --weights none.pth"),
        ("too few", "fit {images} -o new {tiny} --false-alarm-rate 0.001"),
    ],
)
def test_an_error_is_one_line_and_leaves_no_model(run, image_folder, tmp_path, monkeypatch, message, options):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "x.png").write_bytes(b"no")
    places = {"images": image_folder, "empty": "empty", "broken": "broken", "tiny": " ".join(TINY)}
    assert message in run(*options.format(**places).split()).error
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_killed_fit_resumes_when_run_again(run, image_folder, tmp_path, monkeypatch):
    arguments = ["fit", image_folder, "-o", tmp_path / "m", *TINY, "--epochs", "40", "--width", "64", "--lr", "1e-5"]
    checkpoint = tmp_path / "m.checkpoint"
    process = subprocess.Popen(
        [sys.executable, "-m", "dlsr", *map(str, arguments)], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert checkpoint.exists()
    assert not (tmp_path / "m").exists()

    epochs = []
    monkeypatch.setattr(ProgressBars, "epochs", lambda self, name: lambda entry, total: epochs.append(entry.epoch))
    assert run(*arguments).status == 0
    log = Detector.load(tmp_path / "m").fit_summary_.log
    assert epochs[0] > 1
    assert [entry.epoch for entry in log] == list(range(1, epochs[-1] + 1))
    assert not checkpoint.exists()


def test_files_that_are_not_images_are_named(run, image_folder, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in image_folder.rglob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "notes.txt").write_text("no image")
    done = run("fit", folder, "-o", tmp_path / "m", *ENCODER, "--score", "mahalanobis")
    assert "skipped 1 files whose suffix is not an image's, such as" in done.err
    assert "notes.txt" in done.err


def test_groups_and_confidence_are_options_that_info_shows(run, image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    given = [
        "--group-by",
        r"(\d\d)\.png$",
        "--confidence",
        "0.9",
        "--score",
        "mahalanobis",
        "--false-alarm-rate",
        "0.2",
    ]
    done = run("fit", image_folder, "-o", tmp_path / "m", *ENCODER, *given)
    assert done.status == 0, done.err
    assert "at a false-alarm rate of 20 % with confidence 0.9" in done.err
    detector = Detector.load(tmp_path / "m")
    assert (detector.fit_summary_.groups, detector.confidence) == (100, 0.9)
    shown = " ".join(run("info", tmp_path / "m").out.split())
    assert r"100, grouped by (\d\d)\.png$" in shown
    assert "120 calibration, each left out in turn" in shown
    assert "with confidence 0.9" in shown


def test_near_copies_are_told_of(run, image_folder, tmp_path):
    for path in sorted(image_folder.rglob("*.png"))[::3]:
        for i in range(2):
            (tmp_path / "images").mkdir(exist_ok=True)
            (tmp_path / "images" / f"{path.stem}-{i}.png").write_bytes(path.read_bytes())
    done = run("fit", tmp_path / "images", "-o", tmp_path / "m", *ENCODER, "--score", "knn")
    assert re.search(r"80 images, about (3\d|40) distinct: near copies were found and grouped", done.err)
    assert "use --group-by if you know the groups" in done.err
    alone = run("fit", tmp_path / "images", "-o", tmp_path / "n", *ENCODER, "--score", "knn", "--group-by", "none")
    assert "the false-alarm rate may not hold: " in alone.err
    assert "say which belong together (group_by)" in alone.err
    assert "may not hold" in run("info", tmp_path / "n").out


@pytest.mark.parametrize(
    ("group_by", "message"),
    [
        ("video", "'video' gives no group to 120 of 120 images"),
        ("part(", "no regular expression"),
        ("missing.csv", "cannot read 'missing.csv'"),
        ("folder", "120 images in 2 groups"),
    ],
)
def test_groups_that_cannot_be_used_are_one_clear_line(run, image_folder, tmp_path, group_by, message):
    done = run("fit", image_folder, "-o", tmp_path / "m", *ENCODER, "--score", "knn", "--group-by", group_by)
    assert message in done.error
    assert not (tmp_path / "m").exists()


def test_a_confidence_of_a_model_can_be_changed(run, image_folder, tmp_path):
    assert run("fit", image_folder, "-o", tmp_path / "m", *ENCODER, "--score", "knn", "-q").status == 0
    before = Detector.load(tmp_path / "m").threshold_
    done = run("calibrate", tmp_path / "m", "--confidence", "0.9")
    assert "with confidence 0.9" in done.err
    assert Detector.load(tmp_path / "m").threshold_ >= before
    assert "confidence" not in run("calibrate", tmp_path / "m", "--confidence", "0").err
    without = Detector.load(tmp_path / "m")
    assert (without.confidence, without.threshold_) == (None, before)
    assert "give --images" in run("calibrate", tmp_path / "m").error
    assert "give both" in run("calibrate", tmp_path / "m", "--group-by", "folder", "--confidence", "0.5").error


def test_a_fit_removes_the_unfinished_checkpoints_of_killed_fits(run, image_folder, tmp_path):
    for seconds in (0, 100):
        path = tmp_path / f".writing-{seconds:032}-model.checkpoint"
        path.touch()
        os.utime(path, (time.time() - seconds,) * 2)
    assert run("fit", image_folder, "--output", tmp_path / "model", *TINY).status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".writing-{0:032}-model.checkpoint", "model"]


def test_files_of_others_beside_a_model_are_kept(run, image_folder, tmp_path):
    (tmp_path / "model.checkpoint").write_bytes(b"weights of another tool")
    (tmp_path / "model.encoding").mkdir()
    (tmp_path / "model.encoding" / "thesis.txt").write_text("precious")
    assert run("fit", image_folder, "--output", tmp_path / "model", *ENCODER, "--score", "knn").status == 0
    assert (tmp_path / "model.checkpoint").read_bytes() == b"weights of another tool"
    assert (tmp_path / "model.encoding" / "thesis.txt").read_text() == "precious"
    fit = run("fit", image_folder, "--output", tmp_path / "model", *ENCODER, "--score", "knn", "--engine", "ray")
    assert "model.encoding' holds other files, but is needed" in fit.error
    shutil.rmtree(tmp_path / "model.encoding")
    (tmp_path / "model.encoding").mkdir()
    (tmp_path / "model.encoding" / "run.json").write_text("{}")
    write_arrays(tmp_path / "model.checkpoint", {}, {"dlsr-checkpoint": "{}"})
    assert run("fit", image_folder, "--output", tmp_path / "model", *ENCODER, "--score", "knn").status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_model_may_go_into_the_working_directory(run, image_folder, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for _ in range(2):
        assert run("fit", image_folder, "--output", ".", *TINY).status == 0
        assert run("info", ".").status == 0
    assert len(list((tmp_path / "here").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_identical_images_give_valid_json_or_a_clear_line(run, image_folder, odd_folder, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    one = (image_folder / "one" / "001.png").read_bytes()
    for i in range(60):
        (images / f"{i}.png").write_bytes(one)
    assert "are too few groups" in run("fit", images, "--output", tmp_path / "m", *ENCODER).error
    fitted = run("fit", images, "--output", tmp_path / "m", "--group-by", "none", "--json", *ENCODER)
    json.loads(fitted.out, parse_constant=pytest.fail)
    scored = run("score", tmp_path / "m", odd_folder, "--output", tmp_path / "out.jsonl", "--backend", "torch")
    assert scored.status == 0, scored.err
    rows = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 40
    assert all(row["is_ood"] and row["error"] is None for row in rows)
