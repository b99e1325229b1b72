import csv
import json
import sys

import pyarrow.parquet as pq
import pytest

from dlsr import MissingExtraError, OutputError
from dlsr.reports.tables import ROWS_PER_GROUP, check_output, write_results
from dlsr.results import COLUMNS, Result

RESULTS = [
    Result("ü.png", 1.5, 0.25, False, "stage 1", layers={"stage 1": 2.0}, nearest=(3,)),
    Result('a,"b".png', 3.0, 0.01, True, "stage 2"),
    Result("broken.png", error="empty file"),
]
ROWS = [
    ("ü.png", 1.5, 0.25, False, "stage 1", None),
    ('a,"b".png', 3.0, 0.01, True, "stage 2", None),
    ("broken.png", None, None, None, None, "empty file"),
]


def test_csv_has_a_header_and_leaves_missing_values_empty(tmp_path):
    write_results(tmp_path / "a.csv", RESULTS)
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == COLUMNS
    assert rows == [["" if value is None else str(value) for value in row] for row in ROWS]


def test_json_lines_have_null_for_missing_values(tmp_path):
    write_results(tmp_path / "a.jsonl", RESULTS)
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]


def test_parquet_has_types_and_bounded_row_groups(tmp_path):
    write_results(tmp_path / "a.parquet", (result for _ in range(ROWS_PER_GROUP) for result in RESULTS))
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert file.metadata.num_row_groups == len(RESULTS)
    table = file.read()
    assert [str(table.schema.field(name).type) for name in COLUMNS[:4]] == ["string", "double", "double", "bool"]
    assert [tuple(row.values()) for row in table.slice(0, 3).to_pylist()] == ROWS


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_run_that_fails_leaves_no_file_of_that_name(tmp_path, suffix):
    def results():
        yield RESULTS[0]
        raise RuntimeError("the engine broke")

    with pytest.raises(RuntimeError, match="the engine broke"):
        write_results(tmp_path / f"a.{suffix}", results())
    # Rows of CSV and JSON Lines are kept as they come, see `dlsr.files.growing`.
    kept = [] if suffix == "parquet" else [tmp_path / f"a.{suffix}.partial"]
    assert list(tmp_path.iterdir()) == kept
    assert all("ü.png" in path.read_text(encoding="utf-8") for path in kept)


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write '\.xlsx' files; end the name in one of \.csv, \.jsonl"):
        check_output(tmp_path / "a.xlsx")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dlsr\[parquet\]'"):
        check_output(tmp_path / "a.parquet")
