import hashlib
import json
import re
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlsr import ArtifactError, InputError, MissingExtraError, SettingsError, evaluate_scores, open_images
from dlsr.baselines import DETECTORS
from dlsr.bench.compare import CompareSettings, Sets, compare, read_run, read_scores, scored_images, write_failures
from dlsr.bench.datasets import DATASETS, labels_of, open_dataset
from dlsr.bench.paper import PAPER
from dlsr.bench.render import comparison_table, suite_tables, summary_table
from dlsr.bench.suites import FIGURES, TABLES, FigureRun, Where, average, draw, open_sets, run_table

TINY = {"encoder": "test_resnet", "weights": "random"}
SMALL_PAPER = {"width": 32, "blocks": 2, "epochs": 2, "lr": 1e-3}


@pytest.fixture(scope="module")
def root(tmp_path_factory, image_folder, odd_folder):
    """A data root: `cifar10` in parts and classes, `svhn` as a tar."""
    root = tmp_path_factory.mktemp("data")
    for i, item in enumerate(open_images(image_folder).items):
        part, label = ("test" if i % 4 == 0 else "train"), ("cat" if i % 2 else "dog")
        path = root / "cifar10" / part / label / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(item.read())
    with tarfile.open(root / "svhn_crops.tar", "w") as tar:
        tar.add(odd_folder, "svhn/test")
    return root


@pytest.fixture(scope="module")
def sets(root):
    found, missing = open_sets("cifar10", ("svhn", "mnist"), Where(root, {}))
    assert list(missing) == ["mnist"]
    return found


SETTINGS = CompareSettings(
    detectors=("dlsr+mse", "dlsr+mfsim", "mahalanobis", "msp", "vae"),
    parameters={
        "dlsr+mse": SMALL_PAPER,
        "dlsr+mfsim": SMALL_PAPER,
        "vae": {"width": 4, "latent": 4, "epochs": 1, "regret_steps": 2},
    },
    limit=20,
    **TINY,
)


def test_comparison_is_what_the_detectors_say_themselves(sets, tmp_path, monkeypatch):
    monkeypatch.setattr("dlsr.bench.compare.SECONDS_OF_SILENCE", 0)
    told = []
    report = json.loads(json.dumps(compare(sets, SETTINGS, tmp_path, store=tmp_path / "store", said=told.append)))
    rows = {row["detector"]: row for row in report["rows"]}
    assert list(rows) == list(SETTINGS.detectors)
    assert report["images"] == {"train": 90, "ID": 20, "svhn": 20}
    scores = read_scores(tmp_path, rows["mahalanobis"]["run_files"][0])
    from dlsr import Detector

    own = Detector(score="mahalanobis", **TINY).fit(sets.train)
    images = scored_images(sets, SETTINGS)
    np.testing.assert_allclose(own.score_samples(images["svhn"]), scores["svhn"], rtol=1e-4)
    auroc = evaluate_scores(own.score_samples(images["ID"]), own.score_samples(images["svhn"])).auroc
    assert rows["mahalanobis"]["sets"]["svhn"]["mean"]["auroc"] == pytest.approx(auroc)
    assert rows["mahalanobis"]["images_per_second"] > 0
    # One network serves both of the paper's scores.
    assert rows["dlsr+mse"]["fit_seconds"] == rows["dlsr+mfsim"]["fit_seconds"]
    assert rows["dlsr+mse"]["sets"] != rows["dlsr+mfsim"]["sets"]
    assert sum("fitting" in line for line in told) == 5
    assert any(line.startswith("vae, seed 0: epoch 1 of at most 1, loss ") for line in told)

    told.clear()
    again = compare(sets, SETTINGS, tmp_path, store=tmp_path / "store", said=told.append)
    assert told == []
    assert again["rows"] == compare(sets, SETTINGS, tmp_path)["rows"]
    other = CompareSettings(**{**SETTINGS.__dict__, "detectors": ("mahalanobis",), "protocol": "matched"})
    compare(sets, other, tmp_path, said=told.append)
    assert "mahalanobis, seed 0: fitting" in told

    summary = summary_table(report).splitlines()[2:]
    assert [float(line.split("|")[2]) for line in summary] == sorted(
        (round(100 * row["average_auroc"], 2) for row in report["rows"]), reverse=True
    )
    table = comparison_table(report)
    averages = [float(line.split("|")[4]) for line in table.splitlines()[2:]]
    assert averages == sorted(averages, reverse=True)
    write_failures(tmp_path, sets, SETTINGS, report, tmp_path / "failures.png")
    with Image.open(tmp_path / "failures.png") as picture:
        assert picture.width > 800


def test_what_cannot_run_says_why(sets, tmp_path):
    without = Sets(sets.train, None, sets.test, sets.ood)
    settings = CompareSettings(detectors=("msp", "mahalanobis"), **TINY)
    report = compare(without, settings, tmp_path)
    assert "'msp' needs a label" in report["rows"][0]["why"]
    assert "cannot run" in comparison_table(report)
    assert report["rows"][1]["average_auroc"] > 0
    damaged = tmp_path / report["rows"][1]["run_files"][0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert read_run(damaged) is None
    with pytest.raises(ArtifactError, match="run the comparison again"):
        read_scores(tmp_path, damaged.name)


def test_the_matched_protocol_changes_what_is_trained_on_too(sets, tmp_path):
    from dlsr import Detector
    from dlsr.images.transforms import protocol_transform

    settings = replace(SETTINGS, detectors=("mahalanobis",), protocol="matched")
    report = compare(sets, settings, tmp_path)
    matched = protocol_transform("matched")
    own = Detector(score="mahalanobis", **TINY).fit(sets.train, transform=matched)
    scores = read_scores(tmp_path, report["rows"][0]["run_files"][0])["svhn"]
    images = scored_images(sets, settings)["svhn"]
    np.testing.assert_allclose(own.score_samples(images, transform=matched), scores, rtol=1e-4)
    native = Detector(score="mahalanobis", **TINY).fit(sets.train)
    assert not np.allclose(native.score_samples(images, transform=matched), scores, rtol=1e-2)


def test_an_interrupted_fit_goes_on_where_it_was(sets, tmp_path, monkeypatch):
    from dlsr.training.checkpoint import Checkpoint

    tiny = {"vae": {"width": 4, "latent": 4, "epochs": 3, "regret_steps": 2}}
    settings = replace(SETTINGS, detectors=("vae",), parameters=tiny)
    monkeypatch.setattr("dlsr.bench.compare.SECONDS_OF_SILENCE", 0)
    save, saved = Checkpoint.save, []

    def stopping(self, state):
        save(self, state)
        saved.append(self.path)
        if len(saved) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", stopping)
        with pytest.raises(KeyboardInterrupt):
            compare(sets, settings, tmp_path)
    assert saved[0].exists()
    told = []
    resumed = compare(sets, settings, tmp_path, said=told.append)
    assert [line for line in told if "epoch" in line] == [line for line in told if "epoch 3 of at most 3" in line] != []
    assert not saved[0].exists()
    whole = compare(sets, settings, tmp_path / "whole")
    assert resumed["rows"][0]["sets"] == whole["rows"][0]["sets"]


def test_a_family_trains_its_network_once(sets, tmp_path, monkeypatch):
    monkeypatch.setattr("dlsr.bench.compare.SECONDS_OF_SILENCE", 0)
    small = {"width": 4, "steps": 3, "epochs": 2, "batch_size": 64}
    tiny = {"ddpm": {**small, "starts": 2}, "lmd": {**small, "attempts": 2}}
    settings = replace(SETTINGS, detectors=("ddpm", "lmd"), parameters=tiny, limit=4)
    told = []
    together = compare(sets, settings, tmp_path / "together", said=told.append)
    assert [line.split(":")[0] for line in told if "epoch" in line] == ["ddpm, seed 0"] * 2
    assert not list((tmp_path / "together").glob("*.checkpoint"))
    alone = compare(sets, replace(settings, detectors=("lmd",)), tmp_path / "alone")
    assert alone["rows"][0]["sets"] == together["rows"][1]["sets"]
    other = {**tiny, "lmd": {**tiny["lmd"], "width": 8}}
    told.clear()
    compare(sets, replace(settings, parameters=other), tmp_path / "other", said=told.append)
    assert [line.split(":")[0] for line in told if "epoch" in line] == ["ddpm, seed 0"] * 2 + ["lmd, seed 0"] * 2


def test_seeds_and_reduced_sizes(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "dlsr.bench.compare.DETECTORS", dict(DETECTORS) | {"vae": replace(DETECTORS["vae"], reduced_images=30)}
    )
    tiny = {"vae": {"width": 4, "latent": 4, "epochs": 1, "regret_steps": 2}}
    settings = CompareSettings(detectors=("vae",), seeds=2, reduced=True, limit=8, parameters=tiny)
    (row,) = compare(sets, settings, tmp_path)["rows"]
    assert (row["seeds"], row["training_images"]) == (2, 30)
    assert row["sets"]["svhn"]["std"]["auroc"] >= 0
    assert "±" in comparison_table({"rows": [row], "images": {"train": 0, "ID": 0, "svhn": 0}})


# Datasets


def test_datasets_are_found_cut_into_parts_and_labelled(root):
    train, test = open_dataset("cifar10", root, part="train"), open_dataset("cifar10", root)
    assert (len(train.images), len(test.images)) == (90, 30)
    assert train.labels is not None
    assert ("cat", "dog")[train.labels[0]] in train.images.items[0].name
    assert train.remarks == ("90 images; the whole set has 50000",)
    assert len(open_dataset("svhn", root).images) == 40
    with pytest.raises(InputError, match=r"get it from https://github.com/zalandoresearch.*--set fmnist=PATH"):
        open_dataset("fmnist", root)
    with pytest.raises(SettingsError, match="choose among cifar10, "):
        open_dataset("cifar", root)
    assert len(open_dataset("fmnist", None, places={"fmnist": root / "svhn_crops.tar"}).images) == 40


def test_the_docs_list_every_dataset():
    table = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    for info in DATASETS.values():
        (row,) = [line for line in table.splitlines() if line.startswith(f"| `{info.name}` |")]
        assert all(f"`{alias}`" in row for alias in info.aliases)
        assert f"| {info.test_images} | {info.where} |" in row
        assert ("torchvision" in row) == (info.torchvision is not None)
        assert info.hub is None or f"`{info.hub.repo}`" in row


def test_no_dataset_points_to_google_drive():
    assert not [info for info in DATASETS.values() if re.search(r"drive\.google|googleusercontent", info.where)]
    needed = {name for table in PAPER for name in (*table.ood, table.id)}
    assert needed <= DATASETS.keys()


@pytest.mark.parametrize("tar", [True, False])
def test_what_tiny_imagenet_shares_with_cifar10_is_removed_and_said(tmp_path, photographs, tar):
    folder = tmp_path / "tiny-imagenet"
    (folder / "val").mkdir(parents=True)
    for name in ("a", "b", "c"):
        photographs[0].crop((0, 0, 64, 64)).save(folder / "val" / f"{name}.JPEG")
    lines = ("a.JPEG\tn02123045\t0\t0", "b.JPEG\tn01443537\t0\t0", "c.JPEG\tn02099601\t0\t0")
    (folder / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    if tar:
        with tarfile.open(tmp_path / "tiny_imagenet_val.tar", "w") as file:
            file.add(folder, "tiny")
        folder.rename(tmp_path / "elsewhere")
    found = open_dataset("tiny-imagenet", tmp_path, against="cifar10")
    assert [item.name.rsplit("/")[-1] for item in found.images.items] == ["b.JPEG"]
    assert found.remarks[0] == "2 images of classes that show what CIFAR-10 shows were removed"
    assert len(open_dataset("tiny-imagenet", tmp_path, against="celeba").images) == 3


def test_torchvision_sets_are_read(tmp_path, monkeypatch):
    from torchvision import datasets

    class Fake:
        def __init__(self, root, train, download):
            if not download:
                raise RuntimeError("Dataset not found")
            self.targets = [3, 1]

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return Image.new("L", (28, 28), index * 200), self.targets[index]

    monkeypatch.setattr(datasets, "KMNIST", Fake)
    with pytest.raises(InputError, match="--download"):
        open_dataset("kmnist", tmp_path)
    found = open_dataset("kmnist", tmp_path, download=True)
    assert list(found.labels) == [3, 1]
    assert found.images.items[1].read().getpixel((0, 0)) == 200


@pytest.fixture
def hub(monkeypatch, tmp_path, photographs):
    """What `datasets` reads from Parquet in place of the hub; returns what it was asked for."""
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["n02123045", "n01443537", "n02099601"])}
    )
    images = [photographs[0].crop((i, 0, i + 40, 40)) for i in range(3)]
    rows = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 2]}, features)
    rows.to_parquet(tmp_path / "rows.parquet")
    asked = []

    def load(repo, config, *, split, cache_dir):
        asked.append((repo, config, split))
        if repo == "ylecun/mnist":
            raise ConnectionError("cannot reach\nthe hub")
        return datasets.Dataset.from_parquet(str(tmp_path / "rows.parquet"), features=features, cache_dir=cache_dir)

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_sets_come_from_the_hugging_face_hub(hub, tmp_path, photographs):
    found = open_dataset("tiny-imagenet", tmp_path, download=True)
    assert hub == [("zh-plus/tiny-imagenet", None, "valid")]
    assert list(found.labels) == [0, 1, 2]
    assert found.remarks[0] == "from the Hugging Face hub, zh-plus/tiny-imagenet"
    np.testing.assert_array_equal(np.asarray(found.images.items[2].read()), photographs[0].crop((2, 0, 42, 40)))
    against = open_dataset("tiny-imagenet", tmp_path, against="cifar10", download=True)
    assert [item.name for item in against.images.items] == ["1"]
    assert "2 images of classes that show what CIFAR-10 shows were removed" in against.remarks


def test_the_hub_helps_out_where_torchvision_cannot_download(hub, tmp_path, monkeypatch):
    from torchvision import datasets

    def dead(*args, **kwargs):
        raise RuntimeError("Error downloading")

    monkeypatch.setattr(datasets, "KMNIST", dead)
    monkeypatch.setattr(datasets, "MNIST", dead)
    assert "from the Hugging Face hub, tanganke/kmnist" in open_dataset("kmnist", tmp_path, download=True).remarks
    with pytest.raises(InputError, match="cannot get ylecun/mnist from the Hugging Face hub: cannot reach the hub"):
        open_dataset("mnist", tmp_path, download=True)
    with pytest.raises(InputError, match="or let torchvision or the Hugging Face hub fetch it with --download"):
        open_dataset("kmnist", tmp_path)


def test_without_the_package_datasets_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dlsr\[hub\]'"):
        open_dataset("celeba", tmp_path, download=True)


def test_an_official_archive_is_checked(tmp_path, odd_folder, monkeypatch):
    archive = tmp_path / "dtd-r1.0.1.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(odd_folder, "dtd/images/banded")
    with pytest.raises(
        InputError, match=r"the official dtd-r1\.0\.1\.tar\.gz e42855a52a49.*get it again from https://www"
    ):
        open_dataset("textures", tmp_path)
    own = {"dtd-r1.0.1.tar.gz": hashlib.sha256(archive.read_bytes()).hexdigest()}
    monkeypatch.setitem(DATASETS, "textures", replace(DATASETS["textures"], archives=own))
    assert len(open_dataset("textures", tmp_path).images) == 40


def test_labels_need_more_than_one_folder(odd_folder):
    assert labels_of(open_images(odd_folder)) is None


# Suites


def test_the_papers_numbers_are_whole():
    assert set(TABLES) == {f"table{i}" for i in (1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12)}
    for table in PAPER:
        assert table.rows.keys() <= DETECTORS.keys()
        assert all(len(numbers) == len(table.ood) for numbers in table.rows.values())
        assert all(n is None or 0 <= n <= 100 for numbers in table.rows.values() for n in numbers)
    averages = {"table3": 99.34, "table6": 98.30, "table5": 2.51, "table7": 8.89}
    for name, printed in averages.items():
        table = next(one for one in PAPER if one.table == name and one.id == "cifar10")
        assert np.mean(table.rows["dlsr+mfsim"]) == pytest.approx(printed, abs=0.02)


def test_a_table_runs_beside_the_printed_one(root, tmp_path):
    settings = CompareSettings(detectors=("mahalanobis",), **TINY)
    report = run_table("table9", Where(root, {}), settings, tmp_path / "runs", ood=("svhn", "cifar100"))
    text = suite_tables(json.loads(json.dumps(report)))
    assert "cifar100 is missing: the dataset 'cifar100' is not below" in text
    assert "printed in the paper (efficientnet_b4)" in text
    assert "| diffguard | 89.88 | 91.88 |" in text
    assert (tmp_path / "table9-cifar10-failures.png").exists()
    nothing = run_table("table2", Where(root, {}), settings, tmp_path / "runs")
    assert "Cannot run: the dataset 'celeba'" in suite_tables(nothing)
    with pytest.raises(SettingsError, match="choose among table1"):
        run_table("table13", Where(root, {}), settings, tmp_path)


def test_figures_are_drawn_from_real_runs(sets, tmp_path, monkeypatch):
    settings = CompareSettings(detectors=(), limit=20, **TINY)
    small = {"width": 32, "blocks": 2}
    original = FigureRun.fit
    monkeypatch.setattr(FigureRun, "fit", lambda self, **changes: original(self, **(small | changes)))
    told = []
    run = FigureRun(sets, settings, tmp_path / "runs", 2, tmp_path / "store", told.append)
    for figure in ("fig3", "fig9", "ablation"):
        numbers = json.loads(json.dumps(draw(figure, run, tmp_path)))
        assert numbers["epochs"] == 2
    # One network for all figures, and one for each of the ablation's others.
    assert told[0] == "fitting the paper's network with width 32, blocks 2"
    assert len(told) == len(set(told)) == 4
    assert not list((tmp_path / "runs").glob("*.checkpoint"))
    for name in ("fig3", "fig4", "fig5", "fig9"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 500
    assert len(numbers["over_time"]["lr"]["auroc"]) == len(numbers["times"])
    c = sum(run.fit().detector.channels_)
    assert set(numbers["table4"]) == {f"width {2 * c}, 16 blocks", f"width {c}, 16 blocks", f"width {2 * c}, 8 blocks"}
    with pytest.raises(SettingsError, match=", ".join(FIGURES)):
        draw("fig1", run, tmp_path)


def test_at_the_default_steps_the_network_scores_as_its_detector_does(sets, tmp_path):
    settings = CompareSettings(detectors=(), limit=20, **TINY)
    network = FigureRun(sets, settings, tmp_path, epochs=1).fit(width=32, blocks=2)
    scores = network.scores(network.scorer("mfsim"))
    np.testing.assert_allclose(scores["svhn"], network.detector.score_samples(scored_images(sets, settings)["svhn"]))
    first = network.scores(network.scorer("mfsim", initial=True))
    np.testing.assert_allclose(first["svhn"], scores["svhn"])  # after one epoch the first is the last
    one, expected = average(scores), evaluate_scores(scores["ID"], scores["svhn"])
    assert one == {"auroc": expected.auroc, "fpr95": expected.fpr95_id_positive}


def test_the_command_compares_the_simple_methods_unless_told_otherwise(root, tmp_path, monkeypatch):
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
    assert (tmp_path / "out" / "failures.png").exists()


def test_reduced_figures_take_fewer_epochs_and_images(root, tmp_path, monkeypatch):
    from dlsr.bench import suites
    from dlsr.cli import bench, main

    taken = []
    monkeypatch.setattr(suites, "draw", lambda figure, run, folder: taken.append(run) or {})
    command = [
        "dlsr",
        "bench",
        "fig3",
        "--data-root",
        root,
        "--ood",
        "svhn",
        "--output",
        tmp_path,
        "--reduced",
        "--quiet",
    ]
    monkeypatch.setattr("sys.argv", [str(part) for part in command])
    with pytest.raises(SystemExit):
        main()
    assert (taken[0].epochs, taken[0].settings.train_limit) == (bench.REDUCED_EPOCHS, bench.REDUCED_IMAGES)
