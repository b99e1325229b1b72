"""No file, whatever its name and content, costs a run or passes without a word; and what was done is kept."""

import csv
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dlsr import Detector, open_images
from dlsr.cli.console import printable
from dlsr.encoding import pipeline
from dlsr.files import growing, partial_path

FIT = ["--encoder", "test_resnet", "--weights", "random", "--backend", "torch", "--no-store"]
HOSTILE = {
    "fifo.jpg": "not a regular file",
    "link.jpg": "not a regular file",
    "sparse.jpg": "bytes are over the limit",
    "long.png": "have a side over the limit",
    "gone.jpg": "No such file or directory",
    "photo.heic": "not an image, or of an unknown format",
}


@pytest.fixture
def hostile_folder(tmp_path, image_folder):
    """100 images, and files that cannot be read."""
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for i, path in enumerate(sorted(image_folder.rglob("*.png"))[:100]):
        (folder / f"{i:03}.png").write_bytes(path.read_bytes())
    os.mkfifo(folder / "fifo.jpg")
    (folder / "link.jpg").symlink_to("/dev/zero")
    (folder / "gone.jpg").symlink_to("nowhere")
    (folder / "sparse.jpg").touch()
    os.truncate(folder / "sparse.jpg", 100 * 10**9)
    Image.new("1", (1, 1_000_000)).save(folder / "long.png")
    (folder / "photo.heic").write_bytes(b"no image")
    return folder


def rows_of(path):
    if path.suffix == ".csv":
        return list(csv.DictReader(path.open(newline="", encoding="utf-8")))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return pq.read_table(path).to_pylist()


@pytest.mark.parametrize("command", ["score", "fit"])
def test_files_that_cannot_be_read_cost_themselves_only(model, hostile_folder, tmp_path, command):
    """Some of them stopped the run for ever, so it is a process of its own here."""
    output = tmp_path / "out.csv"
    words = ["score", model, hostile_folder, "--backend", "torch", "--no-store", "-o", output]
    if command == "fit":
        words = ["fit", hostile_folder, *FIT, "-o", tmp_path / "model"]
    done = subprocess.run(
        [sys.executable, "-m", "dlsr", *map(str, words)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for name, reason in HOSTILE.items():
        (line,) = [line for line in done.stderr.splitlines() if name in line]
        assert reason in line
    if command == "score":
        rows = {Path(row["path"]).name: row for row in rows_of(output)}
        assert len(rows) == 100 + len(HOSTILE)
        assert all(reason in rows[name]["error"] for name, reason in HOSTILE.items())
        assert sum(bool(row["score"]) for row in rows.values()) == 100


@pytest.fixture
def badly_named(tmp_path, image_folder):
    """A folder with an image whose name is not valid UTF-8, and one with a file that cannot be read."""
    folder = tmp_path / os.fsdecode(b"d\xe9s")
    folder.mkdir()
    image = sorted(image_folder.rglob("*.png"))[0].read_bytes()
    for name in (b"caf\xe9.png", b"ok.png"):
        (folder / os.fsdecode(name)).write_bytes(image)
    (folder / os.fsdecode(b"broken-\xff.png")).touch()
    return folder


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_names_that_are_not_utf8_are_written(run, model, badly_named, tmp_path, suffix):
    output = tmp_path / f"scores.{suffix}"
    done = run("score", model, badly_named, "-o", output, "--backend", "torch", "--json")
    assert done.status == 0
    rows = rows_of(output)
    assert [row["path"].rsplit("/", 1)[1] for row in rows] == [r"broken-\udcff.png", r"caf\udce9.png", "ok.png"]
    assert rows[1]["score"] == rows[2]["score"]
    assert r"broken-\udcff.png: empty file" in done.err
    assert len(json.loads(done.out)["unreadable"]) == 1


def test_names_that_are_not_utf8_are_shown_in_reports_and_tables(run, model, badly_named, tmp_path):
    assert run("report", model, badly_named, "-o", tmp_path / "r.html", "--backend", "torch").status == 0
    assert r"caf\udce9.png" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert r"caf\udce9.png" in run("score", model, badly_named, "--backend", "torch").out
    assert r"caf\\udce9.png" in run("score", model, badly_named, "--backend", "torch", "--json").out


def test_a_fit_keeps_names_that_are_not_utf8(run, image_folder, badly_named, tmp_path):
    for i, path in enumerate(sorted(image_folder.rglob("*.png"))):
        (badly_named / os.fsdecode(b"\xe9%03d.png" % i)).write_bytes(path.read_bytes())
    done = run("fit", badly_named, *FIT, "-o", tmp_path / "model", "--thumbnails", 5, "--json")
    assert done.status == 0
    assert len(json.loads(done.out)["unreadable"]) == 1
    assert len(Detector.load(tmp_path / "model").examples_.names) == 5


def test_thumbnails_of_images_that_vanish_are_of_others(run, image_folder, tmp_path, monkeypatch):
    """The fit ended in a traceback."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i, path in enumerate(sorted(image_folder.rglob("*.png"))):
        (folder / f"{i:03}.png").write_bytes(path.read_bytes())
    left = 3
    encode_all = pipeline.encode_all

    def encode_and_delete(*arguments, **options):
        encoded = encode_all(*arguments, **options)
        for path in sorted(folder.iterdir())[left:]:
            path.unlink()
        return encoded

    monkeypatch.setattr("dlsr.encoding.extractor.encode_all", encode_and_delete)
    assert run("fit", folder, *FIT, "-o", tmp_path / "some", "--thumbnails", 5).status == 0
    assert sorted(Detector.load(tmp_path / "some").examples_.names) == ["000.png", "001.png", "002.png"]
    for i, path in enumerate(sorted(image_folder.rglob("*.png"))):
        (folder / f"{i:03}.png").write_bytes(path.read_bytes())
    left = 0
    assert run("fit", folder, *FIT, "-o", tmp_path / "none", "--thumbnails", 5).status == 0
    assert Detector.load(tmp_path / "none").examples_ is None


# What was done is kept


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_rows_survive_whatever_ends_the_run(model, image_folder, tmp_path, suffix, end):
    images = sorted(image_folder.rglob("*.png"))
    with tarfile.open(tmp_path / "many.tar", "w") as tar:
        for i in range(8000):
            tar.add(images[i % 120], f"{i:05}.png")
    output = tmp_path / f"scores.{suffix}"
    words = ["score", model, tmp_path / "many.tar", "--backend", "torch", "--no-store", "-o", output]
    partial = partial_path(output)
    with subprocess.Popen([sys.executable, "-m", "dlsr", *map(str, words)], stderr=subprocess.PIPE) as process:
        while not (partial.exists() and partial.stat().st_size > 20_000):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(end)
        assert process.wait(20) != 0
    assert not output.exists()
    lines = partial.read_text().splitlines()[suffix == "csv" :]
    names = [f"{i:05}.png" for i in range(len(lines))]
    assert len(names) > 100
    assert [name in line for name, line in zip(names, lines, strict=True)] == [True] * len(lines)


def test_rows_are_written_as_batches_finish(run, model, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "CHUNK", 8)
    images = open_images(image_folder)
    seen = []

    def reading():
        partial = tmp_path / "scores.csv.partial"
        seen.append(len(partial.read_text().splitlines()) - 1 if partial.exists() else 0)

    detector = Detector.load(model, backend="torch")
    results = detector.results(images, batch_size=8, progress=lambda _: reading())
    from dlsr.reports.tables import write_results

    write_results(tmp_path / "scores.csv", results)
    assert seen == sorted(seen)
    assert seen[-1] >= 100
    assert all(rows % 8 == 0 for rows in seen)


def test_two_runs_do_not_write_one_file(tmp_path):
    from dlsr import OutputError

    with growing(tmp_path / "a.csv") as file:
        file.write("row\n")
        with pytest.raises(OutputError, match="another process is writing"), growing(tmp_path / "a.csv"):
            pass
    assert (tmp_path / "a.csv").read_text() == "row\n"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.csv"]


@pytest.mark.parametrize("command", ["score", "report"])
@pytest.mark.parametrize("name", ["{file}/x", "/proc/x", "{folder}"])
def test_an_output_that_cannot_be_written_is_noticed_before_the_work(
    run, model, image_folder, tmp_path, monkeypatch, command, name
):
    suffix = ".html" if command == "report" else ".csv"
    (tmp_path / "file").touch()
    (tmp_path / f"folder{suffix}").mkdir()
    output = name.format(file=tmp_path / "file", folder=tmp_path / "folder") + suffix
    monkeypatch.setattr(Detector, "load", None)
    assert "cannot write" in run(command, model, image_folder, "-o", output).error


def test_outputs_of_measurements_are_noticed_too(run, model, image_folder, monkeypatch):
    monkeypatch.setattr(Detector, "load", None)
    evaluation = run("evaluate", model, "--id", image_folder, "--ood", f"a={image_folder}", "-o", "/proc/x")
    assert "cannot write '/proc/x/evaluation.json'" in evaluation.error
    assert "cannot write '/proc/x.png'" in run("drift", model, image_folder, "--plot", "/proc/x.png").error


# Nothing is dropped without a word


@pytest.mark.parametrize("command", ["score", "report", "fit"])
def test_files_and_folders_that_are_left_out_are_told(run, model, image_folder, tmp_path, command):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, path in enumerate(sorted(image_folder.rglob("*.png"))):
        (folder / f"{i:03}.png").write_bytes(path.read_bytes())
    for name in ("drawing.svg", "nosuffix", "photo.heic"):
        (folder / name).touch()
    (folder / "linked").symlink_to(image_folder)
    output = tmp_path / {"score": "x.csv", "report": "x.html", "fit": "model"}[command]
    words = [command, folder, *FIT] if command == "fit" else [command, model, folder, "--backend", "torch"]
    done = run(*words, "-o", output, *(["--json"] if command == "score" else []))
    assert done.status == 0
    assert "skipped 2 files whose suffix is not an image's, such as" in done.err
    assert f"and 1 linked folders, such as {folder / 'linked'}" in done.err
    assert "photo.heic: empty file" in done.err
    if command == "score":
        assert json.loads(done.out)["skipped"] == 3


# Names that are commands


def test_names_that_a_spreadsheet_takes_for_formulas_get_an_apostrophe(run, model, image_folder, tmp_path, monkeypatch):
    image = sorted(image_folder.rglob("*.png"))[0]
    monkeypatch.chdir(tmp_path)
    names = ["=cmd|calc.png", "+1.png", "-1.png", "@sum.png", "\t=1.png", "a=b.png"]
    with tarfile.open("x.tar", "w") as tar:
        for name in names:
            tar.add(image, name)
    assert run("score", model, "x.tar", "--backend", "torch", "-o", "x.csv").status == 0
    rows = rows_of(Path("x.csv"))
    assert [row["path"] for row in rows] == ["'" + name for name in names[:-1]] + ["a=b.png"]
    assert all(float(row["score"]) == float(rows[0]["score"]) for row in rows)
    assert run("score", model, "x.tar", "--backend", "torch", "-o", "x.jsonl").status == 0
    assert [row["path"] for row in rows_of(Path("x.jsonl"))] == names


def test_negative_numbers_stay_numbers():
    import io

    from dlsr.results import Result, write_csv

    buffer = io.StringIO()
    write_csv(buffer, [Result("a", -1.5, 0.5, False, "stage 1"), Result("b", error="=error")])
    assert buffer.getvalue().splitlines()[1:] == ["a,-1.5,0.5,False,stage 1,", "b,,,,,'=error"]


ESCAPE = "\x1b]0;title\x07\x9b31m\x7f"


def test_escape_codes_in_names_are_not_printed(run, model, image_folder, tmp_path, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / f"{ESCAPE}.png").write_bytes(sorted(image_folder.rglob("*.png"))[0].read_bytes())
    (folder / f"{ESCAPE}-broken\n.png").touch()
    shown = r"\x1b]0;title\x07\x9b31m\x7f"
    done = run("score", model, folder, "--backend", "torch")
    assert rf"{shown}-broken\n.png: empty file" in done.err
    assert ESCAPE not in done.err
    assert ESCAPE in done.out  # what is read by programs is not changed
    for options in ([], ["--json"]):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        out = run("score", model, folder, "--backend", "torch", "-q", *options).out
        assert printable(out.replace("\n", "").replace("\r", "")) == out.replace("\n", "").replace("\r", "")
        assert "title" in out
        monkeypatch.undo()
    done = run("score", model, folder / f"{ESCAPE}.gone", "--backend", "torch")
    assert shown in done.error
    assert ESCAPE not in done.err


def test_printable_text_is_kept():
    assert printable("a ü 漢 é.png") == "a ü 漢 é.png"
