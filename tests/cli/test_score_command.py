import csv
import json
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from dlsr import Detector


@pytest.fixture
def mixed_folder(image_folder, odd_folder, tmp_path):
    """20 images that are in distribution, and 40 that are out of it."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for source, name in ((image_folder, "in"), (odd_folder, "out")):
        for i, path in enumerate(sorted(source.rglob("*.png"))[: 20 if name == "in" else 40]):
            (folder / f"{name}-{i}.png").write_bytes(path.read_bytes())
    return folder


def test_scores_are_written_to_stdout_as_csv(run, model, odd_folder):
    done = run("score", model, odd_folder, "--backend", "torch")
    rows = list(csv.DictReader(done.out.splitlines()))
    assert done.status == 0
    assert list(rows[0]) == ["path", "score", "p_value", "is_ood", "top_layer", "error"]
    assert len(rows) == 40
    expected = Detector.load(model, backend="torch").score_samples(odd_folder)
    np.testing.assert_allclose([float(row["score"]) for row in rows], expected, atol=1e-5)
    ood = sum(row["is_ood"] == "True" for row in rows)
    assert f"{ood} of 40 images are out of distribution at a false-alarm rate of 5 %" in done.err


def test_scores_are_written_to_stdout_as_json_lines(run, model, odd_folder):
    done = run("score", model, odd_folder, "--json", "--backend", "torch", "-q")
    assert [json.loads(line)["error"] for line in done.out.splitlines()] == [None] * 40


def test_the_false_alarm_rate_moves_the_verdicts_only(run, model, odd_folder):
    def rows(rate):
        done = run("score", model, odd_folder, "--json", "-q", "--backend", "torch", "--false-alarm-rate", rate)
        return [json.loads(line) for line in done.out.splitlines()]

    strict, lax = rows(0.05), rows(0.95)
    assert [row["score"] for row in strict] == [row["score"] for row in lax]
    assert sum(row["is_ood"] for row in strict) < sum(row["is_ood"] for row in lax)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_unreadable_images_are_named_and_written_with_their_error(run, model, image_folder, tmp_path, suffix):
    folder = tmp_path / "in ö"
    folder.mkdir()
    (folder / "good.png").write_bytes(sorted(image_folder.rglob("*.png"))[0].read_bytes())
    (folder / "empty.jpg").write_bytes(b"")
    output = tmp_path / f"scores.{suffix}"
    done = run("score", model, folder, "-o", output, "--backend", "torch", "--quiet")
    assert (done.status, done.out) == (0, "")
    assert "1 of 2 images could not be read" in done.err
    assert "empty.jpg: empty file" in done.err
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


def test_json_summarises_what_was_written_to_a_file(run, model, odd_folder, tmp_path):
    output = tmp_path / "scores.csv"
    done = run("score", model, odd_folder, "-o", output, "--json", "--backend", "torch", "-q")
    summary = json.loads(done.out)
    assert (summary["images"], summary["unreadable"], summary["output"]) == (40, {}, str(output))


def test_a_missing_extra_is_one_line(run, model, image_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'dlsr[parquet]'" in run("score", model, image_folder, "-o", tmp_path / "x.parquet").error


def test_ray_needs_a_folder_for_its_results(run, model, image_folder):
    assert "--engine ray needs --output FOLDER" in run("score", model, image_folder, "--engine", "ray").error


def rows_of(done):
    return list(csv.DictReader(done.out.splitlines()))


def test_verdicts_follow_a_false_discovery_rate(run, model, mixed_folder):
    (mixed_folder / "broken.png").write_bytes(b"no image")
    done = run("score", model, mixed_folder, "--fdr", 0.9, "--backend", "torch")
    assert done.status == 0
    results = Detector.load(model, backend="torch").detect(sorted(map(str, mixed_folder.glob("[io]*"))))
    expected = results.at_fdr(0.9)
    rows = [row for row in rows_of(done) if not row["error"]]
    assert [row["is_ood"] for row in rows] == [str(bool(verdict)) for verdict in expected.verdicts]
    assert f"{expected.ood} of 60 images are out of distribution at a false discovery rate of 90 %" in done.err
    assert 0 < expected.ood != results.ood
    assert done.err.count("broken.png") == 1


def test_the_summary_says_when_calibration_images_are_too_few_to_reject_any(run, model, image_folder, tmp_path):
    done = run("score", model, image_folder, "--fdr", 0.0001, "-o", tmp_path / "a.csv", "--json", "--backend", "torch")
    summary = json.loads(done.out)
    assert (summary["fdr"], summary["ood"]) == (0.0001, 0)
    assert summary["why_none"].startswith("no image can be rejected: the smallest p-value there can be is")
    assert summary["why_none"] in done.err


@pytest.mark.parametrize("command", ["score", "report"])
def test_a_false_discovery_rate_that_cannot_be_is_one_line(run, model, image_folder, tmp_path, command):
    output = tmp_path / ("r.html" if command == "report" else "r.csv")
    for rate in (0, 1, 1.5, "nan"):
        assert "must lie between 0 and 1" in run(command, model, image_folder, "--fdr", rate, "-o", output).error
    both = run(command, model, image_folder, "--fdr", 0.1, "--false-alarm-rate", 0.1, "-o", output)
    assert "--fdr decides instead of --false-alarm-rate" in both.error
    assert not output.exists()


def test_a_false_discovery_rate_needs_all_images_on_this_machine(run, model, image_folder, tmp_path):
    done = run("score", model, image_folder, "--engine", "ray", "-o", tmp_path / "out", "--fdr", 0.1)
    assert "--fdr needs the p-values of all images at once; score without --engine ray" in done.error


def test_reasons_and_groups_are_columns_and_groups_a_table(run, explaining_model, refused_folder):
    done = run("score", explaining_model, refused_folder, "--reasons", "--groups", "--backend", "torch")
    rows = rows_of(done)
    assert done.status == 0
    assert list(rows[0])[-3:] == ["error", "reasons", "group"]
    white = [row for row in rows if "/noise/" in row["path"]]
    assert all("very large" in row["reasons"] and "(p = " in row["reasons"] for row in white)
    assert all((row["group"] != "") == (row["is_ood"] == "True") for row in rows)
    assert {"1", "2"} <= {row["group"] for row in rows}
    (broken,) = [row for row in rows if row["error"]]
    assert (broken["reasons"], broken["group"]) == ("", "")
    assert "its images share" in done.err
    assert "in folder noise" in " ".join(done.err.split())


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_reasons_are_a_text_in_every_format(run, explaining_model, refused_folder, tmp_path, suffix):
    output = tmp_path / f"a.{suffix}"
    done = run("score", explaining_model, refused_folder, "--reasons", "-o", output, "--json", "--backend", "torch")
    assert "groups" not in json.loads(done.out)
    if suffix == "csv":
        rows = list(csv.DictReader(output.open()))
    elif suffix == "jsonl":
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    else:
        rows = pq.read_table(output).to_pylist()
    assert "group" not in rows[0]
    assert all("very large" in row["reasons"] for row in rows if "/red/" in row["path"])


def test_the_summary_lists_the_groups(run, explaining_model, refused_folder, tmp_path):
    options = ("--groups", "--fdr", 0.2, "-o", tmp_path / "a.jsonl", "--json", "-q", "--backend", "torch")
    done = run("score", explaining_model, refused_folder, *options)
    summary = json.loads(done.out)
    assert sum(each["images"] for each in summary["groups"]) == summary["ood"] > 0
    assert summary["groups"][0]["name"] == "1"
    assert "its images share" not in done.err


def test_reasons_and_groups_that_cannot_be_are_one_line(run, model, image_folder, tmp_path, monkeypatch):
    assert "not fitted to: dlsr calibrate MODEL --images FOLDER" in run("score", model, image_folder, "--reasons").error
    for option in ("--reasons", "--groups"):
        ray = run("score", model, image_folder, option, "--engine", "ray", "-o", tmp_path / "x")
        assert "score without --engine ray" in ray.error
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    assert "pip install 'dlsr[groups]'" in run("score", model, image_folder, "--groups").error
