"""Results of scoring as files: CSV, JSON lines or Parquet, written as they come, and whole or not at all."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from dlsr.detector import Result
from dlsr.errors import MissingExtraError, OutputError
from dlsr.files import replacing
from dlsr.streaming import in_groups

COLUMNS = ("path", "score", "p_value", "is_ood", "top_layer", "error")
FORMATS = (".csv", ".jsonl", ".parquet")
ROWS_PER_GROUP = 4096


def check_format(path: Path) -> None:
    """Raise OutputError or MissingExtraError if results cannot be written to a file of this name."""
    if path.suffix not in FORMATS:
        raise OutputError(f"cannot write '{path.suffix}' files; end the name in one of {', '.join(FORMATS)}")
    if path.suffix == ".parquet":
        _pyarrow()


def write_results(path: Path, results: Iterable[Result]) -> None:
    """Write results to a `.csv`, `.jsonl` or `.parquet` file, one row an image.

    Raises:
        OutputError: for another suffix, or if the file cannot be written.
        MissingExtraError: for Parquet without pyarrow.
    """
    check_format(path)
    with replacing(path) as temporary:
        if path.suffix == ".parquet":
            _write_parquet(temporary, results)
            return
        with temporary.open("w", encoding="utf-8", newline="") as file:
            (write_csv if path.suffix == ".csv" else write_jsonl)(file, results)


def write_csv(file: IO[str], results: Iterable[Result]) -> None:
    """Write a header and a line for each result; what is missing is left empty."""
    rows = csv.DictWriter(file, COLUMNS)
    rows.writeheader()
    rows.writerows(_row(result) for result in results)


def write_jsonl(file: IO[str], results: Iterable[Result]) -> None:
    """Write one JSON object a line for each result; what is missing is null."""
    file.writelines(json.dumps(_row(result), ensure_ascii=False) + "\n" for result in results)


def _row(result: Result) -> dict[str, Any]:
    return {name: getattr(result, name) for name in COLUMNS}


def results_table(results: Iterable[Result]) -> Any:
    """Results as an Arrow table. Raises MissingExtraError without pyarrow."""
    pa, _ = _pyarrow()
    types = {"score": pa.float64(), "p_value": pa.float64(), "is_ood": pa.bool_()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])
    return pa.Table.from_pylist([_row(result) for result in results], schema)


def _write_parquet(path: Path, results: Iterable[Result]) -> None:
    _, pq = _pyarrow()
    with pq.ParquetWriter(path, results_table([]).schema) as writer:
        for group in in_groups(results, ROWS_PER_GROUP):
            writer.write_table(results_table(group))


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa  # noqa: PLC0415 - an optional extra
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet") from None
    return pa, pq
