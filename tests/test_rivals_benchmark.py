"""The parts of `benchmarks/rivals.py` that need no datasets."""

import json
from dataclasses import replace

import numpy as np
import pytest
import typer
from PIL import Image

import ddpm_levels
import lmd_distances
from dlsr import open_images
from dlsr.bench.tasks import SuiteTask
from rivals import main, markdown, run

SMALL = {"grey": True, "size": 28, "width": 4, "epochs": 8, "batch_size": 8, "lr": 1e-2}


@pytest.fixture(autouse=True)
def few_images_in_an_epoch(monkeypatch):
    monkeypatch.setattr("rivals.EPOCH", 64)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Two classes of grey images, lying and standing stripes; OOD: slanting ones, some hardly."""
    folder = tmp_path_factory.mktemp("stripes")
    random = np.random.default_rng(0)
    rows, columns = np.indices((28, 28))
    for kind, slants in {"id/0": (0, 0), "id/1": (90, 90), "ood/2": (0, 90)}.items():
        (folder / kind).mkdir(parents=True)
        for i in range(64):
            slant = np.deg2rad(random.uniform(*slants))
            waves = np.sin(np.cos(slant) * rows + np.sin(slant) * columns + random.uniform(0, 6))
            pixels = np.uint8(np.clip(128 + 50 * waves + random.normal(0, 50, (28, 28)), 0, 255))
            Image.fromarray(pixels).save(folder / kind / f"{i:02}.png")
    images = open_images(folder / "id")
    train, test = (images.subset(range(start, 128, 2)) for start in range(2))
    return SuiteTask("stripes", None, "native", train, test, {"slanting": open_images(folder / "ood")})


@pytest.mark.parametrize("name", ["msp+trained", "energy+trained", "dice+trained", "ash-s+trained"])
def test_pytorch_ood_measures_the_same_of_a_trained_classifier(task, tmp_path_factory, name):
    work = tmp_path_factory.getbasetemp() / "classifiers"  # of all four, which share a network
    row = run(task, name, {"detector": name} | SMALL, work)
    assert row["pytorch_ood_auroc"] == pytest.approx(row["auroc"], abs=1e-3)
    assert 0 < row["auroc"] < 1
    assert row["accuracy"] > 0.9
    assert row["epochs"] == 8
    table = markdown({"command": "rivals", "rows": [row]})
    assert f"| {100 * row['pytorch_ood_auroc']:.2f} | {100 * row['accuracy']:.2f} | 64 | 8 |" in table


def test_colour_images_are_changed_by_the_protocol_for_both(task, tmp_path):
    matched = replace(task, protocol="matched", ood=task.ood | {"same": task.test})
    row = run(matched, "msp+trained", SMALL | {"detector": "msp+trained", "grey": False, "size": 32}, tmp_path)
    assert row["datasets"].keys() == {"slanting", "same"}
    assert row["datasets"]["same"]["auroc"] == pytest.approx(0.5)
    assert row["auroc"] == pytest.approx(np.mean([metrics["auroc"] for metrics in row["datasets"].values()]))
    table = markdown({"command": "rivals", "rows": [row]})
    assert f"| slanting {100 * row['datasets']['slanting']['auroc']:.2f}, same 50.00 | msp+trained |" in table
    # The datasets are of one size, so the AUROC of both together is the mean.
    assert row["pytorch_ood_auroc"] == pytest.approx(row["auroc"], abs=1e-3)


def test_pytorch_ood_measures_the_energy_of_diffguards_classifier(task, tmp_path):
    settings = SMALL | {"detector": "diffguard", "epochs": 1, "classifier_epochs": 8, "steps": 2}
    row = run(task, "diffguard", settings, tmp_path)
    assert row["accuracy"] > 0.9
    assert 0 < row["pytorch_ood_auroc"] < 1
    assert row["pytorch_ood_auroc"] != row["auroc"]
    assert row["epochs"] == 9


def test_a_detector_on_features_is_measured(task, tmp_path):
    row = run(task, "autoencoder", {"detector": "autoencoder", "width": 8, "epochs": 2}, tmp_path)
    assert 0 < row["auroc"] < 1
    assert row["epochs"] == 2


def test_a_finished_run_is_read(task, tmp_path):
    settings = {"detector": "msp+trained"} | SMALL | {"epochs": 1}
    row = run(task, "msp+trained", settings, tmp_path)
    (path,) = tmp_path.glob("stripes/*.json")
    path.write_text(json.dumps(row | {"auroc": 0.123}))
    assert run(task, "msp+trained", settings, tmp_path)["auroc"] == 0.123


def test_fewer_images_get_more_epochs(task, tmp_path, monkeypatch):
    monkeypatch.setattr("rivals.EPOCH", 192)
    assert run(task, "msp+trained", {"detector": "msp+trained"} | SMALL | {"epochs": 1}, tmp_path)["epochs"] == 3


def test_rows_of_an_earlier_report_stay_while_their_settings_do(tmp_path, monkeypatch):
    tasks = tmp_path / "rivals.toml"
    tasks.write_text(
        "[detectors]\n"
        'same = { detector = "msp+trained", epochs = 1 }\nchanged = { detector = "msp+trained", epochs = 2 }\n'
        'new = { detector = "msp+trained", epochs = 1 }\n'
        '[[tasks]]\nname = "stripes"\ntraining_images = 8\nid = { images = "id" }\nood.other = { images = "ood" }\n'
    )
    row = {
        "task": "stripes", "ood": "other", "detector": "same", "settings": {"detector": "msp+trained", "epochs": 1},
        "training_images": 8, "test_images": 4, "epochs": 1, "training_seconds": 60.0, "auroc": 0.5,
    }  # fmt: skip
    output = tmp_path / "rivals.json"
    output.write_text(json.dumps({"rows": [row, row | {"detector": "changed"}]}))
    new = row | {"detector": "new"}
    monkeypatch.setattr("rivals.run", lambda task, name, settings, work: new)
    for name in ("id", "ood"):
        (tmp_path / name).mkdir()
        for i in range(12):
            Image.new("L", (8, 8), i).save(tmp_path / name / f"{i}.png")
    main(data=tmp_path, work=tmp_path / "work", tasks=tasks, output=output, only="stripes/new")
    assert json.loads(output.read_text())["rows"] == [row, new]
    assert "| stripes | other | same |  | 50.00 |" in output.with_suffix(".md").read_text()


def test_an_unknown_run_is_refused(tmp_path):
    with pytest.raises(typer.BadParameter, match=r"no run is called mnist/sift; choose among fashion-mnist/glow, "):
        main(data=tmp_path, work=tmp_path, only="mnist/glow,mnist/sift")


def test_what_the_diffusion_rivals_are_analysed_by_runs_on_their_trained_network(tmp_path, monkeypatch):
    """Both scripts on a tiny task: the whole of `ddpm_levels` and `lmd_distances`."""
    tasks, random = tmp_path / "tiny.toml", np.random.default_rng(0)
    tasks.write_text(
        "[detectors]\n"
        'ddpm = { detector = "ddpm", width = 4, starts = 2, steps = 2, epochs = 1, batch_size = 64 }\n'
        'lmd = { detector = "lmd", width = 4, attempts = 2, steps = 2, epochs = 1, batch_size = 64 }\n'
        '[[tasks]]\nname = "tiny"\ntraining_images = 30\nid = { images = "id" }\nood.flat = { images = "flat" }\n'
    )
    for name, noise in (("id", 255), ("flat", 1)):
        (tmp_path / name).mkdir()
        for i in range(60):
            pixels = random.integers(0, noise, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    for script in (ddpm_levels, lmd_distances):
        monkeypatch.setattr(script, "TASKS", tasks)
        output = tmp_path / f"{script.__name__}.json"
        script.main(data=tmp_path, work=tmp_path / "work", output=output, images=8)
        assert "flat" in output.with_suffix(".md").read_text()
    by_distance = json.loads(output.read_text())["auroc"]
    assert len(by_distance) == 8
    assert by_distance["squared error"]["flat"] in (0.0, 1.0), "noise is inpainted unlike black"
    with Image.open(output.with_suffix(".png")) as picture:
        assert picture.size == (3 * 32 * 3, 2 * 4 * 32 * 3)
