import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dlsr import Detector, SettingsError, evaluate_scores
from dlsr.baselines import make_detector
from dlsr.bench import code
from dlsr.bench.figures import save_suite
from dlsr.bench.inputs import Features
from dlsr.bench.render import suite_tables
from dlsr.bench.suite import SuiteSettings, chosen_detectors, measure, run_suite
from dlsr.bench.summary import summarised
from dlsr.bench.tasks import TaskOpener, draw, read_suite
from dlsr.calibration.conformal import p_values
from dlsr.calibration.split import split
from dlsr.encoding.extractor import FeatureExtractor
from dlsr.images.sources import ImageDataset, failing_item
from dlsr.images.transforms import protocol_transform
from dlsr.method.noise import row_digests

TINY = {"encoder": "test_resnet", "weights": "random"}
TASKS = """
[detectors]
near = { detector = "knn", neighbours = 3, backend = "torch" }
far = { detector = "mahalanobis", backend = "torch" }

[[tasks]]
name = "temple"
half = "first"
train = { images = "cifar10", keep = ["*/train/*"] }
test = { images = "cifar10", keep = ["*/test/*"] }
ood.flower = { images = "svhn_crops.tar", limit = 30 }
ood.ten = { images = "svhn_crops.tar", limit = 10 }

[[tasks]]
name = "parts of it"
half = "second"
protocol = "matched"
training_images = 50
id = { images = "cifar10", keep = ["*/train/*"], classes = ["cat"] }
ood.flower = { images = "svhn_crops.tar" }
"""
# All that share an encoder use the engine of the first, and OpenVINO's takes seconds to convert.
MAHALANOBIS = {"detector": "mahalanobis", "backend": "torch"}
KNN = {"detector": "knn", "neighbours": 3, "pooling": "mean", "backend": "torch"}
DETECTORS = {
    "mahalanobis": MAHALANOBIS,
    "knn-3": KNN,
    "lof": {"detector": "pyod+lof"},
    "simclr": {"detector": "simclr+knn", "width": 4, "projection": 8, "epochs": 1, "batch_size": 32, "neighbours": 5},
    "careful": {"detector": "knn", "false_alarm_rate": 0.005},
}
SETTINGS = SuiteSettings(DETECTORS, **TINY)


@pytest.fixture(scope="module")
def task_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "tasks.toml"
    path.write_text(TASKS)
    return path


@pytest.fixture(scope="module")
def tasks(root, task_file):
    definition = read_suite(task_file)
    opener = TaskOpener(definition, root)
    return [opener.open(task) for task in definition.tasks]


@pytest.fixture(scope="module")
def done(tmp_path_factory, tasks):
    """A suite: its folder, its report read back from JSON, and its messages."""
    folder, messages = tmp_path_factory.mktemp("suite"), []
    report = run_suite(tasks, SETTINGS, folder / "runs", store=folder / "store", on_message=messages.append)
    return folder, json.loads(json.dumps(report)), messages


def run_of(report, task, detector, seed=0):
    (row,) = [row for row in report["rows"] if (row["task"], row["detector"]) == (task, detector)]
    return row["runs"][seed]


@pytest.mark.parametrize(
    ("task", "name", "parameters"),
    [(0, "mahalanobis", {}), (1, "mahalanobis", {}), (0, "knn-3", {"neighbours": 3, "pooling": "mean"})],
)
def test_numbers_are_those_of_a_detector_fitted_to_the_images(done, tasks, task, name, parameters):
    images = tasks[task]
    score, transform = DETECTORS[name]["detector"], protocol_transform(images.protocol)
    own = Detector(score=score, backend="torch", **TINY, **parameters).fit(images.train, transform=transform)
    inside = own.detect(images.test, transform=transform)
    run = run_of(done[1], images.name, name)
    for ood, outside in images.ood.items():
        scores = own.score_samples(outside, transform=transform)
        assert run["datasets"][ood] == pytest.approx(evaluate_scores(inside.scores, scores).as_dict(), abs=1e-3)
    assert run["false_alarms"]["0.1"] == pytest.approx(np.mean(inside.p_values <= 0.1), abs=1e-3)
    assert run["training_images"] == len(images.train)
    assert run["fit_seconds"] > 0
    assert run["scoring_seconds_per_1000"] > 0


def test_calibration_images_are_held_out_from_detectors_without_their_own(done, tasks):
    images, detector = tasks[0], make_detector("pyod+lof")
    encode = Detector(pooling="mean", backend="torch", **TINY).prepare_extractor().encode
    parts, train = split(np.arange(len(images.train)), 0.05, 0), encode(images.train).z0
    detector.fit_features(train[[*parts.training, *parts.validation]])
    scores, calibration = (detector.score_features(z0) for z0 in (encode(images.test).z0, train[parts.calibration]))
    run = run_of(done[1], "temple", "lof")
    assert run["calibration_images"] == len(parts.calibration)
    for rate in (0.05, 0.1):
        expected = np.mean(p_values(scores, calibration) <= rate)
        assert run["false_alarms"][f"{rate:g}"] == pytest.approx(expected)
    flower = evaluate_scores(scores, detector.score_features(encode(images.ood["flower"]).z0)).auroc
    assert run["datasets"]["flower"]["auroc"] == pytest.approx(flower, abs=1e-3)


def test_a_rate_that_too_few_images_can_promise_has_no_share_of_false_alarms(done):
    for name in ("mahalanobis", "lof", "simclr"):
        alarms = run_of(done[1], "temple", name)["false_alarms"]
        assert alarms["0.01"] is None
        assert 0 <= alarms["0.05"] <= alarms["0.1"] <= 1


def test_a_detector_on_pixels_has_no_encoder_and_the_others_share_their_cost(done):
    _, report, messages = done
    assert set(report["encoders"]) == {"test_resnet, mean", "test_resnet, mean+std+max"}
    assert sum("measuring the time to encode" in message for message in messages) == 2
    assert report["encoders"]["test_resnet, mean+std+max"]["c"] == 3 * report["encoders"]["test_resnet, mean"]["c"]
    assert report["summary"]["simclr"]["share_of_encoding"] is None
    share = report["summary"]["knn-3"]["scoring_seconds_per_1000"]
    share /= report["encoders"]["test_resnet, mean"]["seconds_per_1000"]
    assert report["summary"]["knn-3"]["share_of_encoding"] == pytest.approx(share)


def test_a_detector_that_cannot_run_has_a_reason_and_the_others_go_on(done):
    _, report, messages = done
    (row, _) = [row for row in report["rows"] if row["detector"] == "careful"]
    assert "false-alarm rate of 0.005" in row["why"]
    assert any(message.startswith("temple, careful cannot run: ") for message in messages)
    assert "careful" not in report["summary"]
    assert "- careful cannot run on temple: " in suite_tables(report)


def test_differences_are_to_a_detector_that_ran(tasks, tmp_path):
    careful = KNN | {"false_alarm_rate": 0.005}
    settings = replace(SETTINGS, detectors={"careful": careful, "knn-3": KNN})
    report = run_suite(tasks[:1], settings, tmp_path)
    assert report["reference"] == "knn-3"
    save_suite(tmp_path / "suite.png", report)


def test_a_second_call_only_reads(done, tasks, monkeypatch):
    folder, report, _ = done
    monkeypatch.setattr(FeatureExtractor, "encode", None)
    messages = []
    able = replace(SETTINGS, detectors={name: given for name, given in DETECTORS.items() if name != "careful"})
    again = run_suite(tasks, able, folder / "runs", on_message=messages.append)
    assert messages == []
    assert again["summary"] == report["summary"]


CHANGES = {
    "another setting": {"detectors": {"knn-3": KNN | {"neighbours": 4}}},
    "another seed": {"seeds": 2},
    "fewer training images": {"train_limit": 60},
    "contamination": {"contamination": 0.1},
    "other weights": {"weights": "random:1"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_what_a_result_depends_on_makes_it_anew(done, tasks, change):
    folder, _, _ = done
    messages = []
    settings = replace(SETTINGS, **({"detectors": {"knn-3": KNN}} | CHANGES[change]))
    report = run_suite(tasks[:1], settings, folder / "runs", store=folder / "store", on_message=messages.append)
    assert sum(message.startswith("temple, knn-3, seed") for message in messages) == 1
    if change == "another seed":
        assert [run["seed"] for run in report["rows"][0]["runs"]] == [0, 1]


def test_other_code_and_damage_make_a_result_anew(tasks, tmp_path, monkeypatch):
    settings, messages = replace(SETTINGS, detectors={"knn": KNN}), []

    def run():
        messages.clear()
        run_suite(tasks[:1], settings, tmp_path / "runs", store=tmp_path / "store", on_message=messages.append)
        return sum("seed 0" in message for message in messages)

    assert [run(), run()] == [1, 0]
    (path,) = (tmp_path / "runs").glob("temple-knn-0-*.json")
    path.write_text(path.read_text()[:20])
    assert [run(), run()] == [1, 0]
    monkeypatch.setattr("dlsr.bench.compare.code_digest", lambda *modules: "other")
    assert [run(), run()] == [1, 0]


def test_intruders_are_fitted_to_and_not_measured_on(tasks, tmp_path):
    task = tasks[0]
    settings = replace(SETTINGS, detectors={"mahalanobis": MAHALANOBIS}, contamination=0.1)
    report = run_suite(tasks[:1], replace(settings, train_limit=80, seeds=2), tmp_path)
    for seed in (0, 1):
        drawn = draw(task, 80, 0.1, seed)
        mixed = [task.train.subset(drawn.train), *(task.ood[name].subset(i) for name, i in drawn.intruders.items())]
        train = ImageDataset([item for part in mixed for item in part.items])
        own = Detector(score="mahalanobis", seed=seed, backend="torch", **TINY).fit(train)
        left = task.ood["flower"].subset(drawn.ood["flower"])
        auroc = evaluate_scores(own.score_samples(task.test), own.score_samples(left)).auroc
        run = run_of(report, "temple", "mahalanobis", seed)
        assert run["training_images"] == 89
        assert run["datasets"]["flower"]["auroc"] == pytest.approx(auroc, abs=1e-3)


def test_unreadable_images_are_left_out_and_named(tasks, tmp_path):
    broken = ImageDataset([failing_item("bad.png", "no such disk"), *tasks[0].train.items])
    settings = replace(SETTINGS, detectors={"knn-3": KNN})
    whole = run_suite(tasks[:1], settings, tmp_path / "whole")
    report = run_suite([replace(tasks[0], train=broken)], settings, tmp_path / "broken")
    assert report["tasks"][0]["unreadable"] == {"train": {"bad.png": "no such disk"}}
    assert run_of(report, "temple", "knn-3")["datasets"] == run_of(whole, "temple", "knn-3")["datasets"]
    assert "- temple: 1 images of train cannot be read" in suite_tables(report)
    again = run_suite([replace(tasks[0], train=broken)], settings, tmp_path / "broken")
    assert again["tasks"] == report["tasks"], "also if all runs are read"


def test_unreadable_images_are_named_if_no_detector_encodes_them(tasks, tmp_path):
    broken = ImageDataset([failing_item("bad.png", "no such disk"), *tasks[0].train.items])
    settings = replace(SETTINGS, detectors={"simclr": DETECTORS["simclr"]})
    report = run_suite([replace(tasks[0], train=broken)], settings, tmp_path)
    assert report["tasks"][0]["unreadable"] == {"train": {"bad.png": "no such disk"}}


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_false_alarms_are_those_of_a_rule_in_which_copies_count_once(confidence):
    draws = np.random.default_rng(0)
    vectors = draws.standard_normal((204, 8), dtype=np.float32)
    copied = np.concatenate([vectors, np.repeat(vectors[200:], 50, axis=0)])
    detector = Detector(score="mahalanobis", confidence=confidence)
    inside = draws.standard_normal((1000, 8), dtype=np.float32)
    parts = {"train": copied, "ID": inside, "far": inside + 3}
    found = measure(detector, {name: Features(z0, row_digests(z0), (8,)) for name, z0 in parts.items()})
    own = np.mean(detector.p_values_of(detector.score_features(inside)) <= 0.05)
    assert found["false_alarms"]["0.05"] == pytest.approx(own)
    assert own > 0.01


def test_what_an_error_of_a_rival_says_is_its_reason(tasks, tmp_path):
    wrong = replace(SETTINGS, detectors={"lof": {"detector": "anomalib+fre", "latent": "10"}, "knn-3": KNN})
    report = run_suite(tasks[:1], wrong, tmp_path)
    assert [("why" in row, row["detector"]) for row in report["rows"]] == [(True, "lof"), (False, "knn-3")]
    assert "empty()" in report["rows"][0]["why"]


def test_encoders_that_differ_in_more_than_pooling_have_costs_of_their_own(tasks, tmp_path):
    both = {"knn-3": KNN, "last": {**KNN, "stages": (3,)}}
    report = run_suite(tasks[:1], replace(SETTINGS, detectors=both), tmp_path)
    assert list(report["encoders"]) == ["test_resnet, mean", "test_resnet, mean, stages 3"]
    assert len({cost["c"] for cost in report["encoders"].values()}) == 2


MISTAKES = {
    "an unknown name": ({"detector": "knnn"}, "detector 'x', key detector: there is no 'knnn'; choose among glow, "),
    "no detector": ({"neighbours": 5}, "detector 'x', key detector: "),
    "labels needed": ({"detector": "msp"}, "detector 'x': 'msp' needs labels"),
    "a seed": ({"detector": "knn", "seed": 3}, "detector 'x', key seed: the suite sets it"),
    "a setting of no score": ({"detector": "knn", "neighbors": 5}, "detector 'x': no score has a setting 'neighbors'"),
    "a setting of another score": ({"detector": "knn", "epochs": 5}, "detector 'x': the score 'knn' has no setting"),
    "a setting that a rival does not have": ({"detector": "pyod+lof", "k": 5}, "detector 'x': .*argument 'k'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_detector_is_found_before_anything_runs(tasks, tmp_path, mistake):
    given, message = MISTAKES[mistake]
    with pytest.raises(SettingsError, match=message):
        run_suite(tasks, SuiteSettings({"knn": {"detector": "knn"}, "x": given}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_detectors_are_chosen_from_the_file_and_the_registry():
    defined = {"near": {"detector": "knn", "neighbours": 5}}
    assert chosen_detectors((), defined) == defined
    assert chosen_detectors(("mahalanobis", "near"), defined) == {"mahalanobis": {"detector": "mahalanobis"}, **defined}
    with pytest.raises(SettingsError, match="unknown detector 'msp'; choose among near, glow"):
        chosen_detectors(("msp",), defined)


def made_up(detectors, aurocs, seeds=1):
    """A report of tasks `a`, `b`, ..: AUROC by detector, for each task and then seed."""
    tasks = [chr(ord("a") + i) for i in range(len(next(iter(aurocs.values()))))]

    def run(seed, auroc):
        metrics = {"auroc": auroc, "aupr_ood": auroc / 2, "fpr95_id_positive": 1 - auroc}
        times = {"fit_seconds": 2.0 + seed, "scoring_seconds_per_1000": 0.5}
        return {
            "seed": seed, "datasets": {"one": metrics}, "training_images": 100,
            "false_alarms": {"0.01": None, "0.05": 0.04, "0.1": 0.2}, **times,
        }  # fmt: skip

    rows = [
        {"task": task, "detector": name, "encoder": "net, mean", "runs": [run(i, a) for i, a in enumerate(by_seed)]}
        for name, by_task in aurocs.items()
        for task, by_seed in zip(tasks, by_task, strict=True)
        if by_seed
    ]
    report = {
        "settings": {"detectors": detectors, "seeds": seeds},
        "reference": "plain",
        "tasks": [
            {"name": t, "half": "xy"[i % 2], "protocol": "native", "unreadable": {}} for i, t in enumerate(tasks)
        ],
        "encoders": {"net, mean": {"seconds_per_1000": 10.0, "c": 4, "images_of": "a"}},
        "rows": rows,
    }
    return report | {"summary": summarised(report)}


def test_averages_are_over_the_tasks_that_a_detector_ran_on():
    aurocs = {"plain": [[0.8], [0.6], [0.7]], "new": [[0.9], [0.5], []]}
    summary = made_up(["plain", "new"], aurocs)["summary"]
    assert summary["new"]["tasks"] == 2
    assert summary["new"]["auroc"]["mean"] == pytest.approx(0.7)
    assert summary["new"]["aupr_ood"]["mean"] == pytest.approx(0.35)
    assert summary["plain"]["halves"] == pytest.approx({"x": 0.75, "y": 0.6})
    assert summary["new"]["difference"] == pytest.approx(0.0)
    assert summary["new"]["worst"] == {"task": "b", "difference": pytest.approx(-0.1)}
    assert summary["new"]["share_of_encoding"] == pytest.approx(0.05)


def test_seeds_give_means_and_standard_deviations():
    aurocs = {"plain": [[0.8, 0.9], [0.6, 0.9]]}
    report = made_up(["plain"], aurocs, seeds=2)
    assert report["summary"]["plain"]["auroc"] == pytest.approx({"mean": 0.8, "std": 0.1})
    assert report["summary"]["plain"]["fit_seconds"] == 2.5
    text = suite_tables(report)
    assert "| a | 100 | **85.00 ± 5.00** |" in text
    assert "| plain | 80.00 ± 10.00 | 40.00 ± 5.00 | 20.00 ± 10.00 | - | - | net, mean |" in text


def test_tables_show_every_task_the_halves_and_the_worst_difference():
    aurocs = {"plain": [[0.8], [0.6]], "new": [[0.9], [0.55]], "half-done": [[], [0.65]]}
    text = suite_tables(made_up(["plain", "new", "half-done"], aurocs))
    for line in (
        "| task | training images | plain | new | half-done |",
        "| a | 100 | 80.00 | **90.00** | - |",
        "| b | 100 | 60.00 | 55.00 | **65.00** |",
        "| **mean** | | 70.00 | 72.50 | 65.00 |",
        "| **mean, x** | | 80.00 | 90.00 | - |",
        "| new | 72.50 | 36.25 | 27.50 | +2.50 | -5.00 (b) | net, mean |",
        "| b | - / 4.0 / 20.0 | - / 4.0 / 20.0 | - / 4.0 / 20.0 |",
        "| new | 2.0 | 2.0 | 0.5 | 5.0 |",
        "- The averages of half-done are over fewer tasks than the others'.",
    ):
        assert line in text.splitlines()


def test_the_picture_grows_with_tasks_and_detectors(tmp_path):
    rows = {"plain": [[0.8]] * 12, "new": [[0.9]] * 12}
    save_suite(tmp_path / "two.png", made_up(list(rows), rows))
    more = {**rows, "third": [[0.7]] * 10 + [[]] * 2}
    save_suite(tmp_path / "three.png", made_up(list(more), more))
    few = {name: [[0.7]] for name in rows}
    save_suite(tmp_path / "one-task.png", made_up(list(few), few))
    sizes = {path.stem: Image.open(path).size for path in tmp_path.iterdir()}
    assert sizes["three"][0] == sizes["two"][0] > sizes["one-task"][0]
    assert sizes["three"][1] > sizes["two"][1]


def test_the_digest_of_code_follows_imports_within_the_rooms_that_decide_scores(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "ROOT", tmp_path)
    sources = {
        "scorers/one.py": "from dlsr.scorers.two import x\nimport dlsr.method.three",
        "model.py": "from dlsr.scorers.other import z",
        "scorers/two.py": "",
        "method/three/__init__.py": "from dlsr.serve.app import y",
        "serve/app.py": "",
        "scorers/other.py": "",
    }
    for name, text in sources.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    before = code.code_digest("dlsr.scorers.one", "dlsr.model")
    found = {}
    for name, text in sources.items():
        (tmp_path / name).write_text(f"{text}\nchanged = 1")
        found[name] = code.code_digest("dlsr.scorers.one", "dlsr.model") != before
        (tmp_path / name).write_text(text)
    assert [name for name, changed in found.items() if not changed] == ["serve/app.py", "scorers/other.py"]


def test_the_command_writes_tables_numbers_and_a_picture(run, root, task_file, tmp_path):
    command = ["bench", "suite", "--tasks", task_file, "--data-root", root, "--only", "temple", "--no-store"]
    encoder = ["--encoder", "test_resnet", "--weights", "random", "--pooling", "mean"]
    done = run(*command, *encoder, "--seeds", "2", "--train-images", "70", "-o", tmp_path)
    assert done.status == 0, done.err
    assert "temple, near, seed 1: AUROC " in done.err
    report = json.loads((tmp_path / "suite.json").read_text())
    assert report["command"].startswith("dlsr bench suite --tasks ")
    assert list(report["settings"]["detectors"]) == ["near", "far"]
    assert {row["encoder"] for row in report["rows"]} == {"test_resnet, mean"}
    assert run_of(report, "temple", "near", 1)["training_images"] == 70
    assert done.out.strip() in (tmp_path / "suite.md").read_text()
    with Image.open(tmp_path / "suite.png") as picture:
        assert picture.width > 500


def test_a_mistake_on_the_command_line_is_one_line(run, task_file, tmp_path):
    assert "give --data-root, or --tasks" in run("bench", "suite", "-o", tmp_path).error
    assert "there is no task 'Temple'" in run(
        "bench", "suite", "--tasks", task_file, "--only", "Temple", "-o", tmp_path
    ).error  # fmt: skip
    missing = run("bench", "suite", "--data-root", tmp_path, "--only", "dtd", "-o", tmp_path).error
    assert "task 'dtd', key ood.other textures.images: " in missing
    assert "dtd_5classes.tar' does not exist" in missing
