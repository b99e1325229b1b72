"""Atomic writing, so that a killed process never leaves half a file behind; and the place of the cache."""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlsr.errors import OutputError, one_line

if TYPE_CHECKING:
    from torch import Tensor

_WRITE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors that no reading can cause: full disk, exceeded quota, file too large."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends without an error.

    An error of the block that is not about writing the temporary file is raised as it is.

    Raises:
        OutputError: if the file cannot be written: no permission, full disk.
    """
    temporary = _temporary(path)
    with _reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # The kernel applies the umask, which a process can only read by changing it for all its threads.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        mode = os.fstat(handle).st_mode
        os.close(handle)
    try:
        with _reported(path, temporary):
            yield temporary
        with _reported(path):
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            # safetensors puts a private file of its own in the place of ours.
            temporary.chmod(mode)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that replaces it when the block ends without an error.

    An error of the block that is not about writing into the temporary folder is raised as it is.

    Raises:
        OutputError: if the folder cannot be written: no permission, full disk.
    """
    temporary = _temporary(folder)
    with _reported(folder):
        temporary.mkdir(parents=True)
    try:
        with _reported(folder, temporary):
            yield temporary
        with _reported(folder):
            if folder.exists():
                shutil.rmtree(folder)
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an indented JSON file.

    Raises:
        OutputError: if it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OutputError: if it cannot be written.
    """
    # PyTorch takes a second to import, and the command line needs this module before it needs PyTorch.
    import safetensors.torch  # noqa: PLC0415

    with replacing(path) as temporary:
        try:
            safetensors.torch.save_file(dict(tensors), temporary, dict(metadata))
        except safetensors.SafetensorError as error:
            raise _cannot_write(path, error) from error


def file_sums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a folder, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def cache_root() -> Path:
    """`$DLSR_CACHE`, by default `~/.cache/dlsr` (or below `$XDG_CACHE_HOME`)."""
    own = os.environ.get("DLSR_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlsr"


def _temporary(path: Path) -> Path:
    return path.parent / f".writing-{uuid.uuid4().hex}{path.suffix}"


@contextmanager
def _reported(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Report an OSError as an OutputError of `path`; with `temporary`, only an error of writing to that path."""
    try:
        yield
    except OSError as error:
        if temporary is None or _concerns(error, temporary):
            raise _cannot_write(path, error) from error
        raise


def _concerns(error: OSError, temporary: Path) -> bool:
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)]
    if names:
        return any(temporary.name in Path(os.fsdecode(name)).parts for name in names)
    return error.errno in _WRITE_ERRORS


def _cannot_write(path: Path, error: Exception) -> OutputError:
    reason = getattr(error, "strerror", None) or one_line(error)
    return OutputError(f"cannot write '{path}': {reason}; check space and permissions")
