"""Watching with a detector whose score is the number in the file, so that only watching is tested."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dlsr import InputError
from dlsr.errors import ImageError
from dlsr.images.decode import UNREADABLE, reason_of
from dlsr.results import Result
from dlsr.watch.journal import open_journal
from dlsr.watch.watching import Stop, Watcher, WatchSettings

FAST = {"interval": 0.02, "settle": 0.05, "patience": 0.2}


class Detector:
    """Scores an image with the number that its file holds."""

    calibration_ = SimpleNamespace(scores=np.random.default_rng(0).standard_normal(300), groups=None)
    settings_ = SimpleNamespace(seed=0)

    def __init__(self):
        self.reads = 0

    def results(self, images):
        for item in images.items:
            self.reads += 1
            try:
                content = item.read()
                if not content.endswith(b"."):
                    raise ImageError("truncated")
                score = float(content[:-1])
                yield Result(item.name, score, 0.5, score > 3, "stage 1")
            except UNREADABLE as error:
                yield Result(item.name, error=reason_of(error))


class Run:
    """Watching in a thread."""

    def __init__(self, folder, output, detector=None, model="m", **settings):
        self.lines, self.batches, self.stop = [], [], Stop()
        self.output, self.detector = output, detector or Detector()
        self._thread = threading.Thread(target=self._run, args=(folder, model, FAST | settings))

    def _run(self, folder, model, settings):
        with open_journal(self.output, 100) as journal:
            watcher = Watcher(
                self.detector, model, folder, journal, WatchSettings(**settings),
                tell=self.lines.append, on_rows=self.batches.append,
            )  # fmt: skip
            self.watched = watcher.run(self.stop)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def until(self, condition, seconds=10):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, (self.lines, rows_of(self.output))
            assert self._thread.is_alive()
            time.sleep(0.01)

    def until_rows(self, count):
        self.until(lambda: len(rows_of(self.output)) >= count)
        time.sleep(0.2)
        assert len(rows_of(self.output)) == count
        return rows_of(self.output)


def rows_of(path):
    if not path.exists():
        return []
    if path.suffix == ".csv":
        return list(csv.DictReader(path.open(newline="", encoding="utf-8")))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def once(folder, output, **settings):
    with Run(folder, output, once=True, **settings) as run:
        run._thread.join(20)
    return run


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "in"
    made.mkdir()
    return made


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_images_are_scored_as_they_arrive(folder, tmp_path, suffix):
    (folder / "before.png").write_text("1.5.")
    with Run(folder, tmp_path / f"a.{suffix}") as run:
        run.until_rows(1)
        (folder / "sub").mkdir()
        (folder / "sub" / "a.png").write_text("4.5.")
        (folder / "sub" / "b.png").write_text("0.5.")
        rows = run.until_rows(3)
    assert [Path(row["path"]).name for row in rows] == ["before.png", "a.png", "b.png"]
    assert [float(row["score"]) for row in rows] == [1.5, 4.5, 0.5]
    assert [str(row["is_ood"]) for row in rows] == ["False", "True", "False"]
    assert (run.watched.images, run.watched.ood, run.watched.unreadable) == (3, 1, 0)
    assert sum(map(len, run.batches)) == 3
    assert run.lines == []
    assert rows[0]["modified"] <= rows[0]["scored"]
    assert int(rows[0]["size"]) == 4


def test_after_a_restart_only_what_is_new_or_replaced_is_scored(folder, tmp_path):
    output = tmp_path / "a.jsonl"
    for name in ("a", "b"):
        (folder / f"{name}.png").write_text("1.")
    once(folder, output)
    (folder / "c.png").write_text("2.")
    (folder / "a.png").write_text("3.")
    os.utime(folder / "a.png", ns=(1, 1))
    run = once(folder, output)
    assert [Path(row["path"]).name for row in rows_of(output)] == ["a.png", "b.png", "a.png", "c.png"]
    assert run.watched.images == run.detector.reads == 2
    assert once(folder, output).watched.images == 0
    assert len({row["id"] for row in rows_of(output)}) == 4


def test_a_file_that_is_written_slowly_is_scored_when_it_is_whole(folder, tmp_path):
    path = folder / "a.png"
    with Run(folder, tmp_path / "a.jsonl", settle=0.1, patience=5) as run:
        path.write_text("1")
        time.sleep(0.4)  # longer than it takes to look complete
        with path.open("a") as file:
            file.write("23.")
        (row,) = run.until_rows(1)
    assert row["score"] == 123
    assert run.detector.reads >= 2


def test_a_file_that_cannot_be_read_is_reported_once_after_a_while(folder, tmp_path):
    name = "<b>\n\x1b[31m=x.png"
    with Run(folder, tmp_path / "a.jsonl") as run:
        (folder / name).write_text("no number")
        (folder / "b.png").write_text("1.")
        good, bad = run.until_rows(2)
    assert good["score"] == 1
    assert (bad["path"], bad["score"], bad["error"]) == (str(folder / name), None, "truncated")
    assert run.lines == [f"{folder / name} cannot be read: truncated"]
    assert run.watched.unreadable == 1
    assert run.detector.reads >= 3


def test_a_folder_that_vanishes_is_waited_for_and_nothing_is_lost_or_doubled(folder, tmp_path):
    for i in range(5):
        (folder / f"{i}.png").write_text(f"{i}.")
    with Run(folder, tmp_path / "a.jsonl") as run:
        run.until_rows(5)
        (folder / "late.png").write_text("9.")
        folder.rename(tmp_path / "away")
        run.until(lambda: run.lines)
        time.sleep(0.3)
        (tmp_path / "away" / "more.png").write_text("8.")
        (tmp_path / "away").rename(folder)
        rows = run.until_rows(7)
    assert {Path(row["path"]).name for row in rows[5:]} == {"late.png", "more.png"}
    assert not any(row["error"] for row in rows)
    assert run.lines == [
        f"{folder} cannot be listed (No such file or directory); waiting for it to come back",
        f"{folder} is back",
    ]


def test_files_that_vanish_while_they_are_scored_get_no_row(folder, tmp_path):
    class Vanishing(Detector):
        def results(self, images):
            folder.rename(tmp_path / "away")
            yield from super().results(images)
            (tmp_path / "away").rename(folder)
            self.results = super().results

    for i in range(3):
        (folder / f"{i}.png").write_text(f"{i}.")
    with Run(folder, tmp_path / "a.jsonl", detector=Vanishing(), patience=0) as run:
        rows = run.until_rows(3)
    assert [row["score"] for row in rows] == [0, 1, 2]
    assert run.lines == []


def test_once_leaves_what_is_still_written_for_the_next_time(folder, tmp_path):
    stop = threading.Event()

    def write():
        while not stop.wait(0.01):
            with (folder / "growing.png").open("a") as file:
                file.write("1")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        (folder / "a.png").write_text("1.")
        run = once(folder, tmp_path / "a.jsonl")
    finally:
        stop.set()
        writer.join()
    assert [row["score"] for row in rows_of(tmp_path / "a.jsonl")] == [1]
    assert run.watched.waiting == 1
    with (folder / "growing.png").open("a") as file:
        file.write(".")
    assert once(folder, tmp_path / "a.jsonl").watched.waiting == 0
    assert len(rows_of(tmp_path / "a.jsonl")) == 2


def test_a_folder_that_never_was_is_an_error(tmp_path):
    with open_journal(tmp_path / "a.csv", 1) as journal, pytest.raises(InputError, match="there is no folder"):
        Watcher(Detector(), "m", tmp_path / "gone", journal, WatchSettings())


def drifting(folder, first, count, mean):
    for i in range(first, first + count):
        (folder / f"{i:04}.png").write_text(f"{np.random.default_rng(i).normal(mean)}.")


def test_drift_is_told_when_the_verdict_changes_and_written_with_each_row(folder, tmp_path):
    output = tmp_path / "a.jsonl"
    settings = {"window": 100, "alpha": 0.001}
    drifting(folder, 0, 100, 0)
    run = once(folder, output, **settings)
    assert run.lines == []
    assert not run.watched.drift.drifted
    assert [row["drift"] for row in rows_of(output)] == [None] * 19 + [False] * 81
    drifting(folder, 100, 100, 2)
    run = once(folder, output, **settings)
    (line,) = run.lines
    assert line.startswith("drift: the last 100 images differ from the calibration images (p = ")
    assert run.watched.drift.drifted
    verdicts = [row["drift"] for row in rows_of(output)[100:]]
    assert verdicts == sorted(verdicts)
    assert verdicts[0] is False
    # It is known again after a restart, and not told again.
    run = once(folder, output, **settings)
    assert (run.lines, run.watched.drift.drifted) == ([], True)
    drifting(folder, 200, 100, 0)
    run = once(folder, output, **settings)
    (line,) = run.lines
    assert line.startswith("no drift any more: the last 100 images match")
    # The scores of another model say nothing about this one.
    assert once(folder, output, model="other", **settings).watched.drift is None


def test_stopping_in_the_middle_of_many_images_loses_none(folder, tmp_path):
    class Slow(Detector):
        def results(self, images):
            for result in super().results(images):
                time.sleep(0.02)
                yield result

    for i in range(40):
        (folder / f"{i:02}.png").write_text(f"{i}.")
    output = tmp_path / "a.csv"
    with Run(folder, output, detector=Slow()) as run:
        run.until(lambda: len(rows_of(output)) >= 3)
    assert 3 <= len(rows_of(output)) < 40
    assert run.watched.images == len(rows_of(output))
    once(folder, output)
    assert [float(row["score"]) for row in rows_of(output)] == list(range(40))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_process_that_is_killed_again_and_again_loses_and_doubles_nothing(folder, tmp_path, suffix):
    output = tmp_path / f"a.{suffix}"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from test_watching import Run\n"
        "Run(Path(sys.argv[2]), Path(sys.argv[3]))._thread.start()"
    )
    count, kills, chance = 0, 0, random.Random(0)
    while kills < 5:
        for _ in range(40):
            (folder / f"{count:04}.png").write_text(f"{count}.")
            count += 1
        before = output.stat().st_size if output.exists() else 0
        process = subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parent), str(folder), str(output)])
        while not (output.exists() and output.stat().st_size > before):
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(chance.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    once(folder, output)
    assert sorted(float(row["score"]) for row in rows_of(output)) == list(range(count))


def test_a_stop_can_be_set_by_a_signal_handler_at_any_moment():
    """Also while the waiting thread holds the lock of what it waits for."""
    stop, waits = Stop(), 0
    before = signal.signal(signal.SIGALRM, lambda *_: stop.set())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        start = time.monotonic()
        while not stop.is_set():
            stop.wait(0.0001)
            waits += 1
        assert waits > 10
        stop.wait(60)
        assert time.monotonic() - start < 30
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
