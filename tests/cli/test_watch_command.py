"""`dlsr watch` with a real model; tests/watch has the rest."""

import csv
import json
import os
import shutil
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from dlsr import Detector

ONCE = ["--once", "--settle", "0.05", "--patience", "0", "--backend", "torch"]


@pytest.fixture
def inbox(tmp_path, odd_folder):
    folder = tmp_path / "inbox"
    shutil.copytree(odd_folder, folder)
    (folder / "<b>\nbroken.png").write_bytes(b"no image")
    return folder


def test_a_folder_is_scored_once_as_score_does(run, model, inbox, tmp_path):
    output = tmp_path / "rows.csv"
    done = run("watch", model, inbox, "-o", output, *ONCE, "--json")
    assert done.status == 0
    summary = json.loads(done.out)
    assert (summary["images"], summary["unreadable"], summary["waiting"], summary["unposted"]) == (41, 1, 0, 0)
    assert summary["drift"]["drifted"] is True
    rows = list(csv.DictReader(output.open(newline="", encoding="utf-8")))
    scored = list(csv.DictReader(run("score", model, inbox, "--backend", "torch").out.splitlines(keepends=True)))
    # Images that arrive together are a batch, and rounding depends on the batch.
    ours, others = ([float(row.pop("score") or "nan") for row in part] for part in (rows, scored))
    np.testing.assert_allclose(ours, others, rtol=1e-5)
    assert [{name: row[name] for name in scored[0]} for row in rows] == scored
    assert summary["ood"] == sum(row["is_ood"] == "True" for row in rows)
    assert f"watching {inbox}; results in {output}" in done.err
    assert rf"{inbox}/<b>\nbroken.png cannot be read: not an image" in done.err
    assert "drift: the last " in done.err
    again = run("watch", model, inbox, "-o", output, *ONCE, "--quiet")
    assert (again.status, again.out, again.err) == (0, "", "")
    with output.open("ab") as file:
        file.write(b"half a r")
    again = run("watch", model, inbox, "-o", output, *ONCE)
    assert f"the last row of {output} was cut short" in again.err
    assert "41 were scored before" in again.err
    assert len(list(csv.DictReader(output.open(newline="", encoding="utf-8")))) == 41


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_cleanly(run, model, inbox, tmp_path, number):
    output = tmp_path / "rows.jsonl"
    before = signal.getsignal(number)

    def end():
        while not (output.exists() and output.read_bytes().count(b"\n") == 41):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    ending = threading.Thread(target=end)
    ending.start()
    words = ["--settle", "0.05", "--interval", "0.05", "--patience", "0.1", "--backend", "torch"]
    done = run("watch", model, inbox, "-o", output, *words)
    ending.join()
    assert done.status == 0
    assert "41 images scored, " in done.err
    assert signal.getsignal(number) == before


def test_results_are_posted_with_the_token(run, model, inbox, tmp_path, monkeypatch):
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            received.append((self.headers["Authorization"], body["results"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("DLSR_WEBHOOK_TOKEN", "a-token")
    output = tmp_path / "rows.jsonl"
    url = f"http://127.0.0.1:{server.server_port}/"
    done = run("watch", model, inbox, "-o", output, "--webhook", url, *ONCE)
    server.shutdown()
    server.server_close()
    assert done.status == 0
    assert {token for token, _ in received} == {"Bearer a-token"}
    assert [row for _, rows in received for row in rows] == [json.loads(line) for line in output.open(encoding="utf-8")]
    assert "a-token" not in done.err


def test_what_cannot_be_is_one_line_before_a_model_is_loaded(run, model, inbox, tmp_path, monkeypatch):
    monkeypatch.setattr(Detector, "load", None)
    monkeypatch.setattr("dlsr.fitted_detector.FittedDetector.load", None)
    rows = tmp_path / "rows"
    assert "end the name in one of .csv, .jsonl" in run("watch", model, inbox, "-o", f"{rows}.parquet").error
    hook = ["--webhook", "https://example.org/"]
    assert "end the name of --output in .jsonl" in run("watch", model, inbox, "-o", f"{rows}.csv", *hook).error
    hook = ["--webhook", "file:///etc/passwd"]
    assert "must begin with http" in run("watch", model, inbox, "-o", f"{rows}.jsonl", *hook).error
    assert "gone" in run("watch", tmp_path / "gone", inbox, "-o", f"{rows}.jsonl").error


def test_a_folder_that_does_not_exist_is_one_line(run, model, tmp_path):
    done = run("watch", model, tmp_path / "gone", "-o", tmp_path / "rows.csv", "--backend", "torch")
    assert "there is no folder" in done.error
    assert not (tmp_path / "rows.csv").exists()


def test_an_interval_longer_than_a_day_is_one_line(run, model, inbox, tmp_path):
    done = run("watch", model, inbox, "-o", tmp_path / "rows.csv", "--interval", "inf")
    assert done.status == 2
    assert "Invalid value for '--interval'" in done.err


def test_a_token_in_clear_is_warned_of(run, model, inbox, tmp_path, monkeypatch):
    monkeypatch.setenv("DLSR_WEBHOOK_TOKEN", "a-token")
    hook = ["--webhook", "http://example.org/"]
    done = run("watch", tmp_path / "gone", inbox, "-o", tmp_path / "rows.jsonl", *hook)
    assert "DLSR_WEBHOOK_TOKEN is sent to example.org without encryption; use https" in done.err
