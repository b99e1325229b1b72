"""Files that take long to make, such as conversions and compilations, in the user's cache."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from dlsr.errors import OutputError
from dlsr.files import cache_root, file_sums, replacing_folder

_SUMS = "sha256.json"


def cached(name: str, parts: Sequence[str], write: Callable[[Path], None]) -> Path:
    """The file of this name that `parts` decide, written if it is not in the cache.

    Raises:
        OutputError: if it cannot be written to the cache.
    """
    folder = _folder(name, parts)
    if not _is_intact(folder):
        # One that another process is loading must not be replaced.
        with replacing_folder(folder, unless=lambda: _is_intact(folder)) as temporary:
            write(temporary / name)
            sums = file_sums(temporary)
            (temporary / _SUMS).write_text(json.dumps(sums))
    return folder / name


def content_of(name: str, parts: Sequence[str], write: Callable[[Path], None]) -> bytes:
    """The content of the file that `cached` gives. Where the cache cannot be written, it is made anew.

    Raises:
        OutputError: if it cannot be written to a temporary folder either.
    """
    try:
        return cached(name, parts, write).read_bytes()
    except OutputError as error:
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, name)
                write(path)
                return path.read_bytes()
        except OSError:
            raise error from None


def is_cached(name: str, parts: Sequence[str], content: bytes) -> bool:
    """Whether the file of this name that `parts` decide is in the cache, with this content."""
    folder = _folder(name, parts)
    return _is_intact(folder) and (folder / name).read_bytes() == content


def _folder(name: str, parts: Sequence[str]) -> Path:
    return cache_root() / "engines" / hashlib.sha256(repr([name, *parts]).encode()).hexdigest()


def _is_intact(folder: Path) -> bool:
    try:
        written = json.loads((folder / _SUMS).read_text())
        return bool(written) and written == {
            name: sha256 for name, sha256 in file_sums(folder).items() if name != _SUMS
        }
    except (OSError, ValueError):
        return False
