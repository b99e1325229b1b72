"""Commands on a fitted model: evaluate, calibrate, info, drift, report."""

import json
import shutil

import pytest
from PIL import Image

from dlsr import Detector, SettingsError
from shared import patches

TORCH = ["--backend", "torch"]


def test_evaluate_prints_a_table_and_writes_a_report_with_plots(run, model, image_folder, odd_folder, tmp_path):
    done = run(
        "evaluate", model, "--id", image_folder, "--ood", f"flower={odd_folder}", "--seeds", 2, "-o", tmp_path / "e",
        "--protocol", "matched", *TORCH,
    )  # fmt: skip
    assert done.status == 0
    assert "AUROC" in done.out
    assert "±" in done.out
    report = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert report["protocol"] == "matched"
    for name in ("histogram.png", "roc.png"):
        with Image.open(tmp_path / "e" / name) as picture:
            assert picture.width > 500
            assert len(picture.convert("RGB").getcolors(1_000_000)) > 10


def test_evaluate_prints_names_as_they_are_and_says_what_it_leaves_out(run, model, image_folder, odd_folder, tmp_path):
    mixed = shutil.copytree(odd_folder, tmp_path / "mixed")
    (mixed / "notes.txt").write_text("no image")
    done = run("evaluate", model, "--id", image_folder, "--ood", f"blur [strong]={mixed}", "--limit", 20, *TORCH)
    assert done.status == 0, done.err
    assert "blur [strong]" in " ".join(done.out.split())
    assert "skipped 1 file" in done.err


def test_info_shows_a_regular_expression_as_it_is(run, image_folder, tmp_path):
    encoder = ["--encoder", "test_resnet", "--weights", "random", "--score", "mahalanobis"]
    fit = run("fit", image_folder, "-o", tmp_path / "m", "--group-by", "([0-9]+)[.]png", *encoder, *TORCH)
    assert fit.status == 0, fit.err
    assert "grouped by ([0-9]+)[.]png" in " ".join(run("info", tmp_path / "m").out.split())


def test_evaluate_prints_json(run, model, image_folder, odd_folder):
    done = run("evaluate", model, "--id", image_folder, "--ood", f"a={odd_folder}", "--json", "--limit", 20, *TORCH)
    report = json.loads(done.out)
    assert report["id_images"] == 20
    assert [(dataset["name"], dataset["images"]) for dataset in report["datasets"]] == [("a", 20)]


@pytest.fixture
def own_model(model, tmp_path):
    return shutil.copytree(model, tmp_path / "model")


def test_calibrate_changes_the_false_alarm_rate_without_refitting(run, own_model):
    before = Detector.load(own_model).threshold_
    assert run("calibrate", own_model, "--false-alarm-rate", 0.2).status == 0
    assert Detector.load(own_model).threshold_ < before
    assert "at least 999" in run("calibrate", own_model, "--false-alarm-rate", 0.001).error
    assert Detector.load(own_model).false_alarm_rate == 0.2, "a rate that was refused is not saved"


def test_calibrate_replaces_the_calibration_images(run, own_model, odd_folder):
    assert run("calibrate", own_model, "--images", odd_folder, *TORCH).status == 0
    assert Detector.load(own_model).fit_summary_.calibration_images == 40


def test_calibrate_names_images_that_cannot_be_read(run, own_model, odd_folder, tmp_path):
    mixed = shutil.copytree(odd_folder, tmp_path / "mixed")
    (mixed / "broken.png").write_bytes(b"no image")
    done = run("calibrate", own_model, "--images", mixed, *TORCH, "--quiet")
    assert done.status == 0, done.err
    assert "1 images could not be read: " in done.err
    assert "broken.png: not an image" in done.err
    assert "Warning" not in done.err


def test_calibrate_needs_something_to_change(run, model):
    assert "nothing to change" in run("calibrate", model).error


def test_info_shows_encoder_settings_and_threshold(run, model, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    done = run("info", model)
    assert done.status == 0
    for text in (
        "test_resnet",
        "pooling mean+std+max",
        "local (preset default)",
        "neighbours = 20",
        "at a false-alarm rate of 5 %",
    ):
        assert text in done.out


def test_info_shows_a_model_whose_encoder_runs_on_the_cpu_alone(run, model, monkeypatch):
    """On a machine with a GPU it was an error, with an option as remedy that the command does not have."""

    def choose(backend, device, precision="float32"):
        if device != "cpu":
            raise SettingsError("int8 is for CPUs")
        return "openvino"

    for place in ("dlsr.runtime.devices", "dlsr.fitted_detector"):
        monkeypatch.setattr(f"{place}.resolve_device", lambda name: "cuda" if name == "auto" else name)
    monkeypatch.setattr("dlsr.runtime.backends.choose_backend", choose)
    assert "device cpu, backend openvino" in " ".join(run("info", model).out.split())


def test_info_tells_whether_there_are_maps(run, model, model_with_maps):
    assert "none: fit it with --maps" in " ".join(run("info", model).out.split())
    assert "maps yes" in " ".join(run("info", model_with_maps).out.split())


def test_info_prints_json(run, model):
    described = json.loads(run("info", model, "--json").out)
    detector = Detector.load(model)
    assert described["channels"] == list(detector.channels_)
    assert described["threshold"] == detector.threshold_


def test_drift_has_status_0_for_images_that_are_in_distribution(run, model, photographs, tmp_path):
    """New ones: images that the model was fitted to are nearer to the training images than any new image is."""
    for i, patch in enumerate(patches(photographs[0], 120, seed=5)):
        Image.fromarray(patch).save(tmp_path / f"{i:03}.png")
    done = run("drift", model, tmp_path, "--json", *TORCH)
    assert done.status == 0, done.err
    report = json.loads(done.out)
    assert (report["drifted"], report["images"], report["first_changed_path"]) == (False, 120, None)


def test_drift_has_status_1_for_images_that_have_changed(run, model, image_folder, odd_folder, tmp_path):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for i, path in enumerate([*sorted(image_folder.rglob("*.png"))[:60], *sorted(odd_folder.iterdir())]):
        (mixed / f"{i:03}.png").write_bytes(path.read_bytes())
    (mixed / "broken.png").write_bytes(b"")
    done = run("drift", model, mixed, "--stream", "--window", "20", *TORCH)
    assert done.status == 1, done.out
    assert "drift: 100 images differ from the calibration images" in " ".join(done.out.split())
    assert "broken.png: empty file" in done.err


def test_drift_refuses_an_alpha_that_is_no_probability(run, model, odd_folder):
    assert "alpha" in run("drift", model, odd_folder, "--alpha", "2", *TORCH).error


def test_report_is_one_page_with_a_title(run, model, odd_folder, tmp_path):
    done = run("report", model, odd_folder, "-o", tmp_path / "report.html", "--title", "flowers", *TORCH)
    assert done.status == 0, done.err
    assert "<h1>flowers</h1>" in (tmp_path / "report.html").read_text()
    assert "of 40 images are out of distribution" in done.err


def test_a_report_at_a_false_discovery_rate(run, model, odd_folder, tmp_path):
    done = run("report", model, odd_folder, "-o", tmp_path / "report.html", "--fdr", "0.0001", *TORCH)
    assert done.status == 0, done.err
    assert "0 of 40 images are out of distribution at a false discovery rate of 0.01 %" in done.err
    assert "no image can be rejected: the smallest p-value there can be is" in done.err


def test_images_unlike_the_rest_are_told_at_the_fit_and_listed(run, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dlsr.fitting.UNLIKE", 1.01)  # an encoder with random weights sees little
    done = run("fit", image_folder, "-o", tmp_path / "model", "--encoder", "test_resnet", "--weights", "random", *TORCH)
    assert done.status == 0
    lines = [line.split("\t") for line in run("info", tmp_path / "model", "--unlike").out.splitlines()]
    assert lines
    assert f"{len(lines)} of 120 images look unlike the rest, above all {lines[0][1]}" in done.err
    assert f"see `dlsr info {tmp_path / 'model'} --unlike`" in done.err
    assert all(float(deviation) > 1 and str(image_folder) in name for deviation, name in lines)
