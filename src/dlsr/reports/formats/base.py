"""Results as folders that other tools import: what their formats share."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dlsr.errors import SettingsError
from dlsr.files import check_replaceable, check_writable, replacing_folder
from dlsr.images.tars import TAR_SUFFIXES
from dlsr.images.video import CLIP_SUFFIXES
from dlsr.results import COLUMNS, Result, TextWriter

VERDICTS = ("ID", "OOD")
UNREADABLE = "unreadable"


def verdict_of(result: Result) -> str:
    """`ID`, `OOD` or `unreadable`."""
    return UNREADABLE if result.error is not None else VERDICTS[bool(result.is_ood)]


@dataclass(frozen=True)
class ImageRoot:
    """Where the tool that reads the results finds the images."""

    source: Path
    """The folder that was scored."""
    root: str | None = None
    """What stands for that folder there, a path or URL; None for the folder itself, on the same machine."""

    def __post_init__(self) -> None:
        """Raise SettingsError for images that are no files of their own."""
        if self.source.suffix.lower() in CLIP_SUFFIXES:
            raise SettingsError(f"'{self.source}' is a clip, whose frames are no files; write a table instead")
        if self.root is None and self.source.name.lower().endswith(TAR_SUFFIXES):
            raise SettingsError(
                f"'{self.source}' is a tar, whose images another tool cannot open; unpack it, or say where they are "
                "unpacked (--image-root)"
            )

    def below(self, root: str, name: str, quoted: Callable[[str], str] = str) -> str:
        """The address of an image below what stands for the folder that was scored, or for the one file."""
        path = Path(name)
        if path == self.source:
            return root
        below = path.relative_to(self.source) if path.is_relative_to(self.source) else path
        return f"{root.rstrip('/')}/{quoted(below.as_posix())}"


@dataclass(frozen=True)
class FolderFormat:
    """Base of the formats. A subclass names its files, and writes them into a new folder."""

    images: ImageRoot
    columns: tuple[str, ...] = COLUMNS
    """Of a result, that are written."""

    name: ClassVar[str]
    """By which users choose it."""
    files: ClassVar[tuple[str, ...]]
    """Names of the files in the folder."""

    def check(self, folder: Path) -> None:
        """Check before any image is scored that results can be written to a folder.

        Raises:
            OutputError: if they cannot, or the folder holds other files.
        """
        check_replaceable(folder, self.files, f"{self.name}'s files")
        check_writable(folder / self.files[0])

    def write(self, folder: Path, results: Iterable[Result]) -> None:
        """Write results, a few at a time, as the files of a folder, which appears when it is complete.

        Raises:
            OutputError: as `check`.
        """
        self.check(folder)
        with replacing_folder(folder) as temporary:
            self._write(temporary, results)

    def _write(self, folder: Path, results: Iterable[Result]) -> None:
        raise NotImplementedError

    def _numbers_of(self, result: Result) -> dict[str, Any]:
        """What a result says besides path and verdict, without what is missing."""
        row = {name: value for name, value in result.row(self.columns).items() if name not in ("path", "is_ood")}
        return {name: value for name, value in row.items() if value is not None}


@contextmanager
def json_file(path: Path, first: str, last: str) -> Iterator["JsonMembers"]:
    """A JSON file of one long array or object, which begins and ends with these texts, written a member at a time."""
    with path.open("w", encoding="utf-8") as file:
        file.write(first)
        yield JsonMembers(file)
        file.write(f"\n{last}\n")


class JsonMembers:
    """Writes the members of an array or object, one a line."""

    def __init__(self, file: TextWriter) -> None:
        self._file = file
        self._before = "\n"

    def add(self, value: Any, key: str | None = None) -> None:
        """Add a value; with a key, to an object."""
        named = "" if key is None else f"{json.dumps(key)}: "
        self._file.write(f"{self._before}{named}{json.dumps(value, ensure_ascii=False, allow_nan=False)}")
        self._before = ",\n"


def absolute(name: str) -> str:
    """The absolute path of a file. Links stay, since the other tool should name it as the user does."""
    return os.path.abspath(name)  # noqa: PTH100
