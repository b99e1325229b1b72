"""Results as CSV, JSON Lines or Parquet files, written while images are scored."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dlsr.errors import MissingExtraError, OutputError
from dlsr.files import check_writable, growing, replacing
from dlsr.results import COLUMNS, Result, TextWriter, write_csv
from dlsr.streaming import in_groups

FORMATS = (".csv", ".jsonl", ".parquet")
ROWS_PER_GROUP = 4096
"""Rows of a Parquet row group, which is held in memory until it is written."""


def check_output(path: Path) -> None:
    """Check that results can be written to a file of this name, before any image is scored.

    Raises:
        OutputError: for another suffix than `FORMATS`, or if the file cannot be written.
        MissingExtraError: for Parquet without pyarrow.
    """
    if path.suffix not in FORMATS:
        raise OutputError(f"cannot write '{path.suffix}' files; end the name in one of {', '.join(FORMATS)}")
    if path.suffix == ".parquet":
        _pyarrow()
    check_writable(path)


def write_results(path: Path, results: Iterable[Result], columns: Sequence[str] = COLUMNS) -> None:
    """Write one row per image to a `.csv`, `.jsonl` or `.parquet` file, which appears when it is complete.

    Until then, the rows of `.csv` and `.jsonl` are in `dlsr.files.partial_path`, each as soon as it is given.

    Args:
        path: to write.
        results: of the images, in their order.
        columns: fields of `Result`.

    Raises:
        OutputError: for another suffix, or if the file cannot be written.
        MissingExtraError: for Parquet without pyarrow.
    """
    check_output(path)
    if path.suffix == ".parquet":
        with replacing(path) as temporary:
            _write_parquet(temporary, results, columns)
        return
    with growing(path) as file:
        (write_csv if path.suffix == ".csv" else write_jsonl)(file, results, columns)


def write_jsonl(file: TextWriter, results: Iterable[Result], columns: Sequence[str] = COLUMNS) -> None:
    """Write one JSON object per line and image; missing values are null."""
    for result in results:
        file.write(json.dumps(result.row(columns), ensure_ascii=False) + "\n")


def results_table(results: Iterable[Result], columns: Sequence[str] = COLUMNS) -> Any:
    """Results as a `pyarrow.Table`.

    Raises:
        MissingExtraError: without pyarrow.
    """
    pa, _ = _pyarrow()
    types = {"score": pa.float64(), "p_value": pa.float64(), "is_ood": pa.bool_()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in columns])
    return pa.Table.from_pylist([result.row(columns) for result in results], schema)


def _write_parquet(path: Path, results: Iterable[Result], columns: Sequence[str]) -> None:
    _, pq = _pyarrow()
    with pq.ParquetWriter(path, results_table([], columns).schema) as writer:
        for group in in_groups(results, ROWS_PER_GROUP):
            writer.write_table(results_table(group, columns))


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa  # noqa: PLC0415 - an optional extra
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet") from None
    return pa, pq
