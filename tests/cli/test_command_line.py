import csv
import json
import os
import resource
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import dlsr
from conftest import SMALL
from dlsr import Detector, MissingExtraError
from dlsr.cli import main
from dlsr.demo import demo_sets

TINY = ["--encoder", "test_resnet", "--weights", "random", "--backend", "torch", "--epochs", "2", "--width", "32"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: exit status, stdout, stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["dlsr", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err

    return call


def error_line(result):
    """The one line of an error a user can put right."""
    status, _, err = result
    assert status == 2
    assert "Traceback" not in err
    lines = err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


def test_fit_score_evaluate_info(run, image_folder, odd_folder, tmp_path):
    model = tmp_path / "model"
    status, out, err = run("fit", image_folder, "-o", model, *TINY)
    assert (status, out) == (0, "")
    assert "calibrated on" in err
    assert not (tmp_path / "model.checkpoint").exists()

    status, out, _ = run("score", model, odd_folder, "--backend", "torch")
    rows = list(csv.DictReader(out.splitlines()))
    assert status == 0
    assert list(rows[0]) == ["path", "score", "p_value", "is_ood", "top_layer", "error"]
    assert len(rows) == 40
    expected = Detector.load(model, backend="torch").score_samples(odd_folder)
    np.testing.assert_allclose([float(row["score"]) for row in rows], expected, atol=1e-5)

    status, out, err = run(
        "evaluate", model, "--id", image_folder, "--ood", f"flower={odd_folder}", "--seeds", 2, "-o", tmp_path / "e",
        "--backend", "torch", "--protocol", "matched",
    )  # fmt: skip
    assert status == 0
    assert "AUROC" in out
    assert "±" in out
    report = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert report["protocol"] == "matched"
    for name in ("histogram.png", "roc.png"):
        with Image.open(tmp_path / "e" / name) as picture:
            assert picture.width > 500
            assert len(picture.convert("RGB").getcolors(1_000_000)) > 10

    status, out, _ = run("info", model)
    assert status == 0
    assert "test_resnet" in out
    assert json.loads(run("info", model, "--json")[1])["channels"] == report_channels(model)


def report_channels(model):
    return list(Detector.load(model).channels_)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_score_to_a_file_with_unreadable_images(run, model, image_folder, tmp_path, suffix):
    folder = tmp_path / "in ö"
    folder.mkdir()
    source = sorted(image_folder.rglob("*.png"))[0]
    (folder / "good.png").write_bytes(source.read_bytes())
    (folder / "empty.jpg").write_bytes(b"")
    output = tmp_path / f"scores.{suffix}"
    status, out, err = run("score", model, folder, "-o", output, "--backend", "torch", "--quiet")
    assert (status, out) == (0, "")
    assert "1 of 2 images could not be read" in err
    assert "empty.jpg: empty file" in err
    if suffix == "csv":
        rows = [{k: v or None for k, v in row.items()} for row in csv.DictReader(output.open())]
    elif suffix == "jsonl":
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    else:
        rows = pq.read_table(output).to_pylist()
    bad, good = rows
    assert bad["error"] == "empty file"
    assert bad["score"] is None
    assert bad["is_ood"] is None
    assert good["error"] is None
    assert float(good["p_value"]) > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in ö", output.name]


@contextmanager
def files_no_larger_than(size):
    """Makes the operating system itself refuse to write more, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("target", ["checkpoint", "model", "store", "csv", "jsonl", "parquet", "report"])
def test_no_space_is_one_line_and_leaves_nothing(run, model, image_folder, odd_folder, tmp_path, target):
    folder = tmp_path / "out"
    folder.mkdir()
    output = folder / "x"
    score = ["score", model, image_folder, "--backend", "torch"]
    commands = {
        "checkpoint": ["fit", image_folder, "-o", output, *TINY, "--no-store"],
        "model": ["fit", image_folder, "-o", output, *TINY, "--no-store", "--score", "mahalanobis"],
        "store": [*score, "--store", output],
        "csv": [*score, "-o", output.with_suffix(".csv"), "--no-store"],
        "jsonl": [*score, "-o", output.with_suffix(".jsonl"), "--no-store"],
        "parquet": [*score, "-o", output.with_suffix(".parquet"), "--no-store"],
        "report": ["evaluate", model, "--id", image_folder, "--ood", f"a={odd_folder}", "-o", output, "--no-store",
                   "--backend", "torch"],
    }  # fmt: skip
    with files_no_larger_than(100):
        line = error_line(run(*commands[target]))
    assert "check space and permissions" in line
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_json_outputs(run, model, odd_folder, image_folder, tmp_path):
    lines = run("score", model, odd_folder, "--json", "--backend", "torch", "-q")[1].splitlines()
    assert {json.loads(line)["error"] for line in lines} == {None}
    status, out, _ = run("fit", image_folder, "-o", tmp_path / "m", *TINY, "--score", "knn", "--json")
    assert status == 0
    assert json.loads(out)["training_images"] == 95
    out = run("evaluate", model, "--id", image_folder, "--ood", f"a={odd_folder}", "--json", "--backend", "torch")[1]
    assert json.loads(out)["sets"][0]["name"] == "a"


def test_false_alarm_rate_changes_without_refitting(run, model, odd_folder, tmp_path):
    import shutil

    own = tmp_path / "m"
    shutil.copytree(model, own)
    before = Detector.load(own).threshold_
    assert run("calibrate", own, "--false-alarm-rate", 0.2)[0] == 0
    assert Detector.load(own).threshold_ < before
    assert run("calibrate", own, "--images", odd_folder, "--backend", "torch")[0] == 0
    assert Detector.load(own).fit_summary_.calibration_images == 40
    assert "nothing to change" in error_line(run("calibrate", own))
    assert "at least 999" in error_line(run("calibrate", own, "--false-alarm-rate", 0.001))
    assert Detector.load(own).false_alarm_rate == 0.2, "a refused rate is not saved"


def test_what_users_get_wrong_is_one_line(run, model, image_folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "x.png").write_bytes(b"no")
    fit, output = ["fit", image_folder, "-o"], tmp_path / "new"
    cases = {
        "does not exist": ["fit", tmp_path / "none", "-o", output],
        "no image in": ["fit", empty, "-o", output],
        "none of 1 images": ["fit", bad, "-o", output, *TINY],
        "holds other files": [*fit, image_folder],
        "unknown encoder": [*fit, output, "--encoder", "none"],
        "unknown score": [*fit, output, "--score", "none"],
        "whole numbers": [*fit, output, "--t", "a"],
        "stages 0..4": [*fit, output, *TINY, "--stages", "7"],
        "no weights file": [*fit, output, "--weights", tmp_path / "none.pth"],
        "too few": [*fit, output, *TINY, "--false-alarm-rate", "0.001"],
        "no model directory": ["score", empty, image_folder],
        "end the name in one of .csv": ["score", model, image_folder, "-o", tmp_path / "x.txt"],
        "cannot write": ["score", model, image_folder, "-o", "/proc/none/x.csv", "--backend", "torch"],
        "none of the 1 images": ["score", model, bad, "--backend", "torch"],
        "NAME=FOLDER": ["evaluate", model, "--id", image_folder, "--ood", "x"],
        "no image of 'x'": ["evaluate", model, "--id", image_folder, "--ood", f"x={bad}", "--backend", "torch"],
        "cannot use device": ["score", model, image_folder, "--device", "warp"],
    }
    for message, arguments in cases.items():
        assert message in error_line(run(*arguments)), message
    assert not output.exists()


def test_missing_extra_is_one_line(run, model, image_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    line = error_line(run("score", model, image_folder, "-o", tmp_path / "x.parquet"))
    assert "pip install 'dlsr[parquet]'" in line
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(MissingExtraError, match=r"dlsr\[demo\]"):
        demo_sets()


def test_demo_sets_are_real_images_alike_in_size_and_colour():
    train, test, ood = demo_sets()
    assert len(ood) == 5
    for images in (train, test, *ood.values()):
        assert images.dtype == np.uint8
        assert images.shape[1:] == (8, 8)
        assert len(images) >= 150
        assert images.std() > 10
    shared = {image.tobytes() for image in train} & {image.tobytes() for image in test}
    assert len(shared) < 5


def test_demo_runs(run, tmp_path, monkeypatch):
    """The whole demo with a small network in the place of the encoder; `make demo` runs it as it is."""
    from dlsr import demo

    monkeypatch.setattr(
        demo,
        "Detector",
        type(
            "Small",
            (),
            {
                "__new__": lambda cls, **options: Detector("test_resnet", weights="random", **SMALL, **options),
                "load": Detector.load,
            },
        ),
    )
    status, out, err = run("demo", "-o", tmp_path, "--backend", "torch")
    assert status == 0
    assert "unseen" in out
    assert "histogram.png" in err
    assert (tmp_path / "model" / "model.json").exists()


def test_interrupt_says_how_to_go_on(run, monkeypatch, model, image_folder):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Detector, "load", interrupted)
    status, _, err = run("score", model, image_folder)
    assert status == 130
    assert "goes on when the same command is run again" in err


def test_usage_errors(run):
    status, _, err = run("score")
    assert status == 2
    assert "Missing argument" in err
    assert run("fit", "x", "-o", "y", "--backend", "tpu")[0] == 2
    assert run("--help")[0] == 0


def test_a_killed_fit_goes_on_when_run_again(tmp_path, image_folder):
    command = [sys.executable, "-m", "dlsr", "fit", image_folder, "-o", tmp_path / "m", *TINY[:-4]]
    command += ["--epochs", "40", "--width", "64", "--lr", "1e-5"]
    checkpoint = tmp_path / "m.checkpoint"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert checkpoint.exists()
    assert not (tmp_path / "m").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(Detector.load(tmp_path / "m").fit_summary_.log) > 1
    assert not checkpoint.exists()


def test_help_is_quick():
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "dlsr", "--help"], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 2  # 0.2 s alone, but tests share the machine
    assert "fit" in done.stdout
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, dlsr, dlsr.cli.app; print('torch' in sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert loaded.stdout.strip() == "False"


def test_public_surface():
    assert set(dlsr.__all__) == {
        "ENCODERS", "PRESETS", "SCORES", "ArtifactError", "Detector", "DlsrError", "Encoder", "EncoderSpec",
        "Evaluation", "ExportError", "FeatureError", "ImageError", "ImageDataset", "ImageTooLargeError", "InputError",
        "Metrics", "MissingExtraError", "NoImagesError", "NotFittedError", "OutputError", "Report", "Result",
        "Settings", "SettingsError", "TooFewImagesError", "UnreadableImagesWarning", "WeightsError", "encoder_spec",
        "evaluate", "evaluate_scores", "open_images", "p_values", "threshold",
    }  # fmt: skip
    assert sorted(dlsr.__all__) == dir(dlsr)
    for name in dlsr.__all__:
        assert getattr(dlsr, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = dlsr.nothing
    errors = [
        value for name in dlsr.__all__ if isinstance(value := getattr(dlsr, name), type) and name.endswith("Error")
    ]
    assert all(issubclass(error, dlsr.DlsrError) for error in errors)


def test_bench_lists_and_compares(run, image_folder, odd_folder, tmp_path):
    status, out, _ = run("bench", "--list")
    assert status == 0
    assert all(name in out for name in ("glow", "dlsr+mfsim", "ash-s", "pyod+lof", "labels"))
    assert "Reproduce table 3 of the paper." in run("bench")[1]
    sets = ["--id", image_folder, "--id-test", image_folder, "--ood", f"flower={odd_folder}", "-o", tmp_path / "out"]
    tiny = ["--encoder", "test_resnet", "--weights", "random", "--no-store", "--limit", "30"]
    status, out, _ = run("bench", "compare", *sets, *tiny, "--detectors", "mahalanobis,msp", "--protocol", "matched")
    assert status == 0
    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert report["command"].startswith("dlsr bench compare --id ")
    assert [row["detector"] for row in report["rows"] if "why" not in row] == ["mahalanobis", "msp"]
    assert f"{100 * report['rows'][0]['average_auroc']:.2f}" in out
    assert out.strip() in (tmp_path / "out" / "compare.md").read_text()
    assert (tmp_path / "out" / "failures.png").stat().st_size > 1000
    error = error_line(run("bench", "compare", *sets, *tiny, "--detectors", "mahalanobi"))
    assert "unknown detector 'mahalanobi'; choose among glow, " in error


def test_bench_tables_and_figures_say_what_is_missing(run, image_folder, tmp_path):
    status, out, _ = run("bench", "table9", "--data-root", tmp_path, "-o", tmp_path / "out", "--quiet")
    assert status == 0
    assert "Cannot run: the dataset 'cifar10' is not below" in out
    assert "--set cifar10=PATH" in error_line(run("bench", "fig4", "--data-root", tmp_path, "-o", tmp_path / "out"))
    places = ["--set", f"cifar10={image_folder}", "--set", f"svhn={image_folder}"]
    tiny = ["--encoder", "test_resnet", "--weights", "random", "--no-store", "--epochs", "1", "--limit", "20"]
    status, _, err = run("bench", "fig3", *places, *tiny, "-o", tmp_path / "out")
    assert status == 0
    assert "the dataset 'lsun-c' is not given" in err
    assert json.loads((tmp_path / "out" / "fig3.json").read_text())["epochs"] == 1
