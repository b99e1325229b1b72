"""The files of a model directory survive kills, and savers and loaders at the same time."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors import safe_open

from dlsr import Detector, OutputError
from dlsr.files import locked, remove_old, replacing_folder, target_of
from shared import CHANNELS

PREPARED = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from dlsr import Detector
from dlsr.files import replacing_folder

folder = Path(sys.argv[1])
features = np.random.default_rng(0).standard_normal((60, 8))
models = {score: Detector(score=score, group_by="none").fit_features(features) for score in ("knn", "mahalanobis")}

def start(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    return pid

def for_seconds(seconds, work):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        work()

def wait(pids):
    return [os.waitpid(pid, 0)[1] for pid in pids]
"""


def run(script, *arguments):
    """A script in a process of its own, which forks others."""
    done = subprocess.run(
        [sys.executable, "-c", PREPARED + script, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.slow
def test_a_save_that_is_killed_at_any_moment_can_be_repeated(tmp_path):
    run(
        """
killed = 0
for i in range(150):
    # Every third folder is new, the others hold a model or what a killed save left of it.
    target = folder / str(i // 3)
    pid = start(lambda: models["knn" if i % 2 else "mahalanobis"].save(target))
    time.sleep(random.Random(i).uniform(0, 0.012))
    os.kill(pid, signal.SIGKILL)
    killed += wait([pid])[0] == signal.SIGKILL
    if (target / "model.json").exists():
        Detector.load(target)
    if i % 3 == 2:
        models["knn"].save(target)
        assert Detector.load(target).settings_.score == "knn"
        assert len(list(target.iterdir())) == 2, list(target.iterdir())
assert killed > 30, killed
""",
        tmp_path,
    )


@pytest.mark.slow
def test_savers_and_loaders_at_the_same_time_do_not_disturb_each_other(tmp_path):
    run(
        """
models["knn"].save(folder / "m")
savers = [start(lambda m=m: for_seconds(3, lambda: m.save(folder / "m"))) for m in models.values()]
loaders = [start(lambda: for_seconds(3, lambda: Detector.load(folder / "m"))) for _ in range(2)]
assert wait(savers + loaders) == [0, 0, 0, 0]
Detector.load(folder / "m")
assert len(list((folder / "m").iterdir())) == 2
for i in range(100):  # within milliseconds of each other, into a new folder
    assert wait([start(lambda m=m: m.save(folder / str(i))) for m in models.values()]) == [0, 0]
    Detector.load(folder / str(i))
""",
        tmp_path,
    )


def test_a_model_that_is_replaced_while_its_numbers_are_opened_is_read_anew(tmp_path, monkeypatch):
    features = np.random.default_rng(0).standard_normal((60, 8))
    first, second = (Detector(score=score, group_by="none").fit_features(features) for score in ("knn", "mahalanobis"))
    first.save(tmp_path / "m")

    def gone(path, **_):
        monkeypatch.setattr("dlsr.artifact.safe_open", safe_open)
        second.save(tmp_path / "m")
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr("dlsr.artifact.safe_open", gone)
    assert Detector.load(tmp_path / "m").settings_.score == "mahalanobis"


def test_folders_replaced_at_the_same_time_stay_whole(tmp_path):
    run(
        """
def replace():
    with replacing_folder(folder / "out") as temporary:
        for name in "abc":
            (temporary / name).write_text(str(os.getpid()))

assert wait([start(lambda: for_seconds(2, replace)) for _ in range(4)]) == [0, 0, 0, 0]
assert len({(folder / "out" / name).read_text() for name in "abc"}) == 1
assert [path.name for path in folder.iterdir()] == ["out"], list(folder.iterdir())
""",
        tmp_path,
    )


@pytest.fixture(scope="module")
def fitted(features):
    return Detector(score="mahalanobis", group_by="none").fit_features(features[0], CHANNELS)


HEX = "0123456789abcdef"


@pytest.mark.parametrize(
    "left",
    [
        [],
        [f"numbers-{HEX}.safetensors"],
        [f".writing-{HEX}{HEX}-numbers-{HEX}.safetensors"],
        [f"numbers-{HEX}.safetensors", f".writing-{HEX}{HEX}-model.json"],
        [f".writing-{HEX}{HEX}.safetensors"],  # of earlier versions
    ],
)
def test_what_a_killed_first_save_leaves_does_not_block_the_next(fitted, tmp_path, left):
    for name in left:
        (tmp_path / name).write_bytes(b"half")
    fitted.save(tmp_path)
    Detector.load(tmp_path)
    ours = [path for path in tmp_path.iterdir() if target_of(path) != ""]
    assert len(ours) == 2


@pytest.mark.parametrize("other", ["thesis.txt", "numbers-1.safetensors", "numbers.csv", ".hidden"])
def test_folders_with_other_files_are_refused_and_kept(fitted, tmp_path, other):
    (tmp_path / other).write_text("precious")
    (tmp_path / f"numbers-{HEX}.safetensors").write_text("half")
    with pytest.raises(OutputError, match="holds other files"):
        fitted.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("content", [{"format": "layers-model", "modelTopology": {}}, [1], {}])
def test_the_model_of_another_tool_is_refused_and_kept(fitted, tmp_path, content):
    (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(OutputError, match=r"holds the model.json of another tool; give a new folder"):
        fitted.save(tmp_path)
    assert json.loads((tmp_path / "model.json").read_text()) == content


def test_a_damaged_model_is_replaced(fitted, tmp_path):
    (tmp_path / "model.json").write_text('{"format": "dlsr-')
    fitted.save(tmp_path)
    Detector.load(tmp_path)


def test_a_description_that_would_be_too_large_to_load_is_not_written(fitted, tmp_path, monkeypatch):
    fitted.save(tmp_path)
    monkeypatch.setattr("dlsr.model_folder.MOST_DESCRIBED", 400)
    with pytest.raises(OutputError, match=r"model.json' would have .* bytes, 400 are the most; .* leave these out"):
        fitted.save(tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_other_files_beside_a_model_are_kept(fitted, tmp_path):
    fitted.save(tmp_path)
    for name in ("README.md", f".writing-{HEX}{HEX}-results.csv"):
        (tmp_path / name).touch()
    fitted.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_without_locks_only_old_leftovers_are_removed(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr("dlsr.files._lock", lambda folder: None)
    for name in (f"numbers-{HEX}.safetensors", f".writing-{HEX}{HEX}-model.json"):
        (tmp_path / name).touch()
    fitted.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    for path in tmp_path.iterdir():
        if path.stat().st_size == 0:
            os.utime(path, (0, 0))
    fitted.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    Detector.load(tmp_path)


def test_a_lock_that_is_held_for_long_is_an_error(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr("dlsr.files._LOCK_SECONDS", 0.1)
    with locked(tmp_path / "m") as alone:
        assert alone
        with pytest.raises(OutputError, match="another process is writing"):
            fitted.save(tmp_path / "m")
    fitted.save(tmp_path / "m")


def test_a_name_that_cannot_be_is_an_error(fitted, tmp_path):
    with pytest.raises(OutputError, match="name too long"):
        fitted.save(tmp_path / (300 * "a"))


def test_the_working_directory_cannot_be_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="working directory"), replacing_folder(tmp_path / "."):
        pass
    assert tmp_path.exists()


def test_a_folder_that_another_process_has_written_meanwhile_is_kept(tmp_path):
    target = tmp_path / "out"
    with replacing_folder(target, unless=(target / "whole").exists) as temporary:
        (temporary / "mine").touch()
        target.mkdir()
        (target / "whole").touch()
    assert [path.name for path in target.iterdir()] == ["whole"]
    assert list(tmp_path.iterdir()) == [target]


def test_only_old_files_are_removed(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).touch()
    os.utime(tmp_path / "old", (time.time() - 100,) * 2)
    remove_old(tmp_path.iterdir(), 50)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
