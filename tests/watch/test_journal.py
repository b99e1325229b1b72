import csv
import json

import numpy as np
import pytest

from dlsr import OutputError
from dlsr.watch import ids
from dlsr.watch.ids import Ids
from dlsr.watch.journal import COLUMNS, check_journal, open_journal, records
from shared import files_no_larger_than

NAMES = ["a.png", 'in/<b>"q"\nnew\r\n,line".png', "=cmd|calc.png", "ü漢.png"]


def row(i, path="a.png", score=0.5):
    values = {"path": path, "score": score, "model": "m", "id": f"{i:032x}", "drift": False}
    return dict.fromkeys(COLUMNS) | values


def write(path, count=4, recent=10):
    with open_journal(path, recent) as journal:
        for i in range(count):
            journal.append(row(i, NAMES[i % 4], i / 2))
        assert journal.size == path.stat().st_size
    return path.read_bytes()


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_rows_survive_and_are_known_when_it_is_opened_again(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    write(path)
    with open_journal(path, 3) as journal:
        assert not journal.was_cut
        assert len(journal.done) == 4
        assert bytes.fromhex(f"{2:032x}") in journal.done
        assert bytes.fromhex(f"{7:032x}") not in journal.done
        assert list(journal.recent) == [("m", 0.5), ("m", 1.0), ("m", 1.5)]
        journal.append(row(7))
    if suffix == "csv":
        rows = list(csv.DictReader(path.open(newline="", encoding="utf-8")))
        assert rows[2]["path"] == "'" + NAMES[2]
    else:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert rows[2]["path"] == NAMES[2]
    assert [rows[i]["path"] for i in (0, 1, 3)] == [NAMES[i] for i in (0, 1, 3)]
    assert [int(one["id"], 16) for one in rows] == [0, 1, 2, 3, 7]
    assert list(rows[0]) == list(COLUMNS)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_whatever_is_left_of_a_row_is_cut_off(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    whole = write(path)
    with path.open("rb") as file:
        ends = [end for _, end in records(file, suffix == "csv")]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        kept = [end for end in ends if end <= length]
        rows = max(0, len(kept) - (suffix == "csv"))
        with open_journal(path, 10) as journal:
            assert journal.was_cut == (length not in (0, *ends))
            assert len(journal.done) == rows
            for i in range(rows, 4):
                journal.append(row(i, NAMES[i], i / 2))
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "path,score\r\nx,1\r\n"),
        ("a.jsonl", '{"path": "x"}\n'),
        ("b.jsonl", "no json\n"),
        ("c.jsonl", "[1]\n"),
        ("d.jsonl", '{"id": "zz", "score": null}\n'),
        ("e.jsonl", '{"id": "aa", "score": null}\n'),
        ("f.jsonl", "\udcff\n"),
        ("g.jsonl", '[{"path": "x"}]'),
        ("h.csv", 'inch 1/2"\nx\n'),
        ("i.csv", "path,score\rx,1\r"),
        ("j.csv", "path,score\rx,1\r\n"),
    ],
)
def test_a_file_of_other_rows_is_not_touched(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, newline="", errors="surrogateescape")
    before = path.read_bytes()
    with (
        pytest.raises(OutputError, match="is not from this command; give the name of another file"),
        open_journal(path, 1),
    ):
        pass
    assert path.read_bytes() == before


def test_two_processes_do_not_write_one_journal(tmp_path):
    with (
        open_journal(tmp_path / "a.csv", 1),
        pytest.raises(OutputError, match="another process is writing"),
        open_journal(tmp_path / "a.csv", 1),
    ):
        pass


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    whole = write(path)
    with (
        files_no_larger_than(len(whole) + 50),
        pytest.raises(OutputError, match=r"cannot write '.*a.jsonl'"),
        open_journal(path, 1) as journal,
    ):
        journal.append(row(4))
        journal.append(row(5))
    with open_journal(path, 1) as journal:
        assert journal.was_cut
    assert path.read_bytes() == whole


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(OutputError, match=r"end the name in one of \.csv, \.jsonl"):
        check_journal(tmp_path / "a.parquet")


def test_ids_are_found_whatever_their_bytes(monkeypatch):
    monkeypatch.setattr(ids, "_RECENT", 50)
    random = np.random.default_rng(0)
    given = {random.bytes(4) for _ in range(300)} | {b"a\0\0\0", b"\0\0\0\0", b"\0\0\0a"}
    found = Ids(4)
    for one in given:
        found.add(one)
        found.add(one)
    assert len(found) == len(given)
    assert all(one in found for one in given)
    others = {random.bytes(4) for _ in range(300)} - given
    assert not any(one in found for one in others)
