"""The file of results, which is also the record of what is done: a row is there, or its image has yet to be scored.

A process may be killed at any moment. A row that was half written is cut off at the next start, and its image is scored
again.
"""

import csv
import io
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dlsr.errors import OutputError
from dlsr.files import appending, check_writable
from dlsr.results import COLUMNS as RESULT_COLUMNS
from dlsr.results import no_formula
from dlsr.watch.arrivals import ID_BYTES
from dlsr.watch.ids import Ids

SUFFIXES = (".csv", ".jsonl")
COLUMNS = (*RESULT_COLUMNS, "drift", "scored", "modified", "size", "model", "id")
"""Columns of a row: those of a result; whether the last images had drifted; when it was scored and when the file was
changed, in UTC; the file's size in bytes; the model; and the id of the file."""

Row = Mapping[str, Any]


def check_journal(path: Path) -> None:
    """Check that there can be a journal of this name, before a model is loaded.

    Raises:
        OutputError: for another suffix than `SUFFIXES`, or if the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise OutputError(f"cannot append to '{path.suffix}' files; end the name in one of {', '.join(SUFFIXES)}")
    check_writable(path)


class Journal:
    """An open journal, see `open_journal`."""

    def __init__(self, file: IO[bytes], path: Path, recent: int) -> None:
        self._file, self._path = file, path
        self._is_csv = path.suffix == ".csv"
        self.done = Ids(ID_BYTES)
        """Ids of the files that have a row."""
        self.recent: deque[tuple[str, float]] = deque(maxlen=recent)
        """Model and score of the last rows that were there, of images that could be read."""
        self.was_cut = False
        """Whether a row that was half written was cut off."""
        self.size = 0
        """Bytes of the rows that are there."""
        with self._reported():
            self._recover()

    def append(self, row: Row) -> None:
        """Write a row.

        Raises:
            OutputError: if it cannot be written.
        """
        self._write(self._line([row[name] for name in COLUMNS]))
        self.done.add(bytes.fromhex(row["id"]))

    def sync(self) -> None:
        """Have everything on the disk, so that it survives even a loss of power.

        Raises:
            OutputError: if it cannot be written.
        """
        with self._reported():
            os.fsync(self._file.fileno())

    def _line(self, values: list[Any]) -> bytes:
        if not self._is_csv:
            return json.dumps(dict(zip(COLUMNS, values, strict=True)), ensure_ascii=False).encode() + b"\n"
        text = io.StringIO()
        csv.writer(text).writerow(map(no_formula, values))
        return text.getvalue().encode()

    def _write(self, line: bytes) -> None:
        # In one call, so that a killed process leaves whole rows; only a full disk or a loss of power leaves a part.
        with self._reported():
            written = self._file.write(line)
        if written != len(line):
            raise OutputError(f"cannot write '{self._path}': only a part of a row was written; check the space")
        self.size += written

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write '{self._path}': {error.strerror}; check it, and start again") from error

    def _recover(self) -> None:
        count = 0
        with self._path.open("rb") as written:
            for line, end in records(written, self._is_csv):
                count += 1
                self._take(line, count)
                self.size = end
        self.was_cut = os.fstat(self._file.fileno()).st_size > self.size
        begun = self._line(list(COLUMNS)) if self._is_csv else b'{"path": '
        if self.was_cut and not count and not self._begins_as(begun):
            raise self._foreign()
        self._file.truncate(self.size)
        if self._is_csv and not count:
            self._write(begun)

    def _begins_as(self, begun: bytes) -> bool:
        """Whether a file without a whole row is a first row, half written, that begins in a known way."""
        with self._path.open("rb") as written:
            found = written.read(len(begun))
        return begun.startswith(found)

    def _foreign(self, part: str = "") -> OutputError:
        return OutputError(f"{part}'{self._path}' is not from this command; give the name of another file")

    def _take(self, line: bytes, number: int) -> None:
        try:
            row = self._parsed(line.decode(), is_first=number == 1)
            if row is None:
                return
            id, score = bytes.fromhex(row["id"]), row["score"]
            if len(id) != ID_BYTES:
                raise ValueError("no id")
            if score not in (None, ""):
                self.recent.append((row["model"], float(score)))
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise self._foreign(f"row {number} of ") from error
        self.done.add(id)

    def _parsed(self, text: str, *, is_first: bool) -> dict[str, Any] | None:
        """A row; None for the header."""
        if not self._is_csv:
            return dict(json.loads(text))
        (cells,) = csv.reader([text])
        if is_first:
            if tuple(cells) != COLUMNS:
                raise ValueError("another header")
            return None
        return dict(zip(COLUMNS, cells, strict=True))


@contextmanager
def open_journal(path: Path, recent: int) -> Iterator[Journal]:
    """Open a journal, or begin one. Only one process at a time can.

    Args:
        path: a `.csv` or `.jsonl` file.
        recent: number of last scores that are kept.

    Raises:
        OutputError: if it cannot be written, has other rows, or another process is writing it.
    """
    with appending(path) as file:
        yield Journal(file, path, recent)


def records(file: IO[bytes], is_csv: bool = False) -> Iterator[tuple[bytes, int]]:
    """Complete rows from where a file is, and the offset behind each. A row of CSV may have several lines."""
    end, row = file.tell(), b""
    for line in iter(file.readline, b""):
        row += line
        if row.endswith(b"\n") and not (is_csv and row.count(b'"') % 2):
            end += len(row)
            yield row, end
            row = b""
