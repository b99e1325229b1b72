"""The paper's tables from the command line: small stand-ins for all of their datasets, and all of their detectors."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from baselines.tiny import TINY
from bench import stand_ins
from dlsr.baselines import DETECTORS
from dlsr.bench.paper import PAPER
from dlsr.bench.reproduction import ALSO, TABLES
from shared import small

SCORES = ("mse", "lr", "mfsim")
SETTINGS = TINY | {f"dlsr+{score}": small(score) for score in SCORES}
SETTINGS |= {score: small(score) for score in ("autoencoder", "feature-vae")}
ENCODER = ("--encoder", "test_resnet", "--weights", "random")


@pytest.fixture(scope="module")
def root(tmp_path_factory, photographs):
    root = tmp_path_factory.mktemp("paper")
    stand_ins.write_all(root, photographs)
    return root


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """One folder for all tables, as a reader would have: tables on the same images share finished runs."""
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(autouse=True)
def fitted_in_a_moment(monkeypatch):
    for name, settings in SETTINGS.items():
        own = {k: v for k, v in settings.items() if k not in ("score", "encoder", "weights")}
        monkeypatch.setitem(DETECTORS, name, replace(DETECTORS[name], reduced=own))


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
def test_a_table_runs_to_its_end_with_every_detector_and_dataset(run, root, output, table):
    options = ("--data-root", root, "--reduced", *ENCODER, "--store", output / "store", "-o", output)
    done = run("bench", table, *options, "--quiet")
    assert done.status == 0, done.err
    report = json.loads((output / f"{table}.json").read_text())
    text = (output / f"{table}.md").read_text()
    assert report["command"].startswith(f"dlsr bench {table} --data-root ")
    assert "annot run" not in text
    parts = [part for part in PAPER if part.table == table]
    assert list(report["ids"]) == list(dict.fromkeys(part.id for part in parts))
    for part in parts:
        measured = report["ids"][part.id]
        assert measured["missing"] == {}
        assert measured["images"] == {"train": stand_ins.TRAIN, "ID": stand_ins.TEST} | dict.fromkeys(
            part.ood, stand_ins.TEST
        )
        assert [row["detector"] for row in measured["rows"]] == list(dict.fromkeys([*part.rows, *ALSO]))
        for row in measured["rows"]:
            assert set(row["datasets"]) == set(part.ood), row
            assert all(0 <= numbers["mean"][part.metric] <= 1 for numbers in row["datasets"].values())
        (below,) = [below for below in text.split("### ") if below.startswith(f"{table}, ID {part.id}\n")]
        for detector, numbers in part.rows.items():
            cells = " | ".join("-" if number is None else f"{number:.2f}" for number in numbers)
            assert f"| {detector} | {cells} |" in below
            assert f"| {detector} | {DETECTORS[detector].kind} | " in below
        with Image.open(output / f"{table}-{part.id}-failures.png") as picture:
            assert picture.width > 500


@pytest.mark.parametrize(
    ("table", "encoder"), [("table5", "efficientnet_lite0"), ("table6", "resnet50"), ("table7", "resnet50")]
)
def test_tables_6_and_7_are_about_resnet50(run, tmp_path, monkeypatch, table, encoder):
    from dlsr.bench import reproduction

    used = []

    def run_table(name, where, settings, *args, **options):
        used.append(settings.encoder)
        return {"table": name, "ids": {}}

    monkeypatch.setattr(reproduction, "run_table", run_table)
    for options in ([], ENCODER):
        assert run("bench", table, *options, "-o", tmp_path).status == 0
    assert used == [encoder, "test_resnet"]
