import json
import shutil

import pytest

TINY = ["--encoder", "test_resnet", "--weights", "random", "--no-store", "--limit", "30"]


def test_bench_lists_all_detectors(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    done = run("bench", "--list")
    assert done.status == 0
    for name in ("glow", "dlsr+mfsim", "ash-s", "pyod+lof", "labels"):
        assert name in done.out


def test_bench_offers_every_table_and_figure_of_the_paper(run):
    from dlsr.bench.reproduction import FIGURES, TABLES

    text = run("bench").out
    assert "Reproduce table 3 of the paper." in text
    for name in (*TABLES, *FIGURES):
        assert f" {name} " in text


def test_compare_writes_json_a_table_and_the_worst_failures(run, image_folder, odd_folder, tmp_path):
    data = ["--id", image_folder, "--id-test", image_folder, "--ood", f"flower={odd_folder}", "-o", tmp_path / "out"]
    done = run("bench", "compare", *data, *TINY, "--detectors", "mahalanobis", "--protocol", "matched")
    assert done.status == 0, done.err
    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert report["command"].startswith("dlsr bench compare --id ")
    assert [row["detector"] for row in report["rows"] if "why" not in row] == ["mahalanobis"]
    assert f"{100 * report['rows'][0]['average_auroc']:.2f}" in done.out
    assert done.out.strip() in (tmp_path / "out" / "compare.md").read_text()
    assert (tmp_path / "out" / "failures.png").stat().st_size > 1000


def test_images_that_cannot_be_read_are_in_the_report(run, image_folder, odd_folder, tmp_path):
    odd = shutil.copytree(odd_folder, tmp_path / "odd")
    (odd / "broken.png").write_bytes(b"no image")
    data = ["--id", image_folder, "--id-test", image_folder, "--ood", f"flower={odd}", "-o", tmp_path / "out"]
    for _ in range(2):
        assert run("bench", "compare", *data, *TINY[:4], "--detectors", "mahalanobis").status == 0
        assert "1 images of flower cannot be read: " in (tmp_path / "out" / "compare.md").read_text()


@pytest.mark.parametrize("name", ["ID", "train"])
def test_ood_images_cannot_be_called_as_id_images_are(run, image_folder, odd_folder, tmp_path, name):
    data = ["--id", image_folder, "--id-test", image_folder, "--ood", f"{name}={odd_folder}", "-o", tmp_path / "out"]
    assert f"'{name}' is what ID images are called; give another name" in run("bench", "compare", *data).error


def test_mistakes_in_a_measurement_of_speed_are_found_first(run, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dlsr.bench.speed.measure_speed", None)
    command = ["bench", "speed", "--images", image_folder, "-o"]
    assert "end the name in .json" in run(*command, tmp_path / "a.png").error
    wrong = run(*command, tmp_path / "a.json", "--batch-sizes", "0")
    assert "--batch-sizes takes whole numbers separated by commas, each at least 1" in wrong.error


def test_an_unknown_detector_is_one_line(run, image_folder, odd_folder, tmp_path):
    data = ["--id", image_folder, "--id-test", image_folder, "--ood", f"flower={odd_folder}", "-o", tmp_path / "out"]
    error = run("bench", "compare", *data, *TINY, "--detectors", "mahalanobi").error
    assert "unknown detector 'mahalanobi'; choose among glow, " in error


def test_a_table_says_which_dataset_is_missing(run, tmp_path):
    done = run("bench", "table9", "--data-root", tmp_path, "-o", tmp_path / "out", "--quiet")
    assert done.status == 0
    assert "Cannot run: the dataset 'cifar10' is not below" in done.out


def test_a_figure_says_which_dataset_is_missing(run, tmp_path):
    done = run("bench", "fig4", "--data-root", tmp_path, "-o", tmp_path / "out")
    assert "--dataset cifar10=PATH" in done.error


@pytest.fixture
def drawn(monkeypatch):
    """Figures are recorded instead of drawn, which takes minutes: `tests/bench` draws them."""
    from dlsr.bench import reproduction

    runs = []

    def draw(name, run, folder):
        runs.append(run)
        return {"figure": name}

    monkeypatch.setattr(reproduction, "draw", draw)
    return runs


@pytest.fixture
def places(image_folder, odd_folder, tmp_path):
    for part in ("train", "test"):
        shutil.copytree(image_folder, tmp_path / "cifar10" / part)
    return ["--dataset", f"cifar10={tmp_path / 'cifar10'}", "--dataset", f"svhn={odd_folder}"]


def test_a_figure_uses_the_datasets_that_there_are(run, drawn, places, tmp_path):
    done = run("bench", "fig3", *places, *TINY, "--epochs", "1", "-o", tmp_path / "out")
    assert done.status == 0
    assert "the dataset 'lsun-c' is not given" in done.err
    report = json.loads((tmp_path / "out" / "fig3.json").read_text())
    assert (report["figure"], report["id"], report["epochs"]) == ("fig3", "cifar10", 1)
    assert "lsun-c" in report["missing"]
    assert report["images"] == {"train": 120, "ID": 30, "svhn": 30}
    assert {name: len(digest) for name, digest in report["sha256"].items()} == {"train": 64, "ID": 64, "svhn": 64}
    assert (drawn[0].epochs, drawn[0].settings.limit, drawn[0].store) == (1, 30, None)


def test_reduced_figures_take_fewer_epochs_and_images(run, drawn, places, tmp_path):
    from dlsr.cli.bench import paper

    command = [*places, "--ood", "svhn", "-o", tmp_path, "--reduced", "--quiet"]
    assert run("bench", "fig3", *command).status == 0
    assert (drawn[0].epochs, drawn[0].settings.train_limit) == (paper.REDUCED_EPOCHS, paper.REDUCED_IMAGES)
    assert run("bench", "fig8", *command).status == 0
    assert (drawn[1].epochs, drawn[1].settings.train_limit) == (None, None)


@pytest.mark.parametrize(("options", "encoder"), [([], "resnet50"), (["--encoder", "test_resnet"], "test_resnet")])
def test_figures_6_and_7_are_about_resnet50(run, drawn, places, tmp_path, options, encoder):
    assert run("bench", "fig6", *places, *options, "--ood", "svhn", "-o", tmp_path, "-q").status == 0
    assert (drawn[0].settings.encoder, drawn[0].width) == (encoder, None)


def test_the_network_of_figures_6_and_7_is_narrower_if_reduced(run, drawn, places, tmp_path):
    from dlsr.cli.bench import paper

    for figure in ("fig7", "fig3"):
        assert run("bench", figure, *places, "--reduced", "--ood", "svhn", "-o", tmp_path, "-q").status == 0
    assert [figure.width for figure in drawn] == [paper.REDUCED_WIDTH, None]
