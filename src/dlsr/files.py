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
from typing import IO, TYPE_CHECKING, Any

from dlsr.errors import OutputError, one_line

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

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
def growing(path: Path) -> Iterator[IO[str]]:
    """A text file that replaces `path` when the block ends without an error.

    Until then it is `partial_path(path)`. Each line is in that file as soon as it is written, and stays there if the
    block fails or the process is killed.

    Raises:
        OutputError: if the file cannot be written, or another process is writing it.
    """
    partial = partial_path(path)
    with _reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = partial.open("a", buffering=1, encoding="utf-8", newline="")
    with _reported(path, partial), file:
        if not _locked(file, partial):
            raise OutputError(f"another process is writing '{path}'; wait for it, or give another name")
        file.truncate(0)
        yield file
        file.flush()
        os.fsync(file.fileno())
        with _reported(path):
            partial.replace(path)


def partial_path(path: Path) -> Path:
    """Where `growing` writes a file that is not finished."""
    return path.with_name(f"{path.name}.partial")


def check_writable(path: Path) -> None:
    """Raise the error of `replacing` or `growing` before long work: whether a file can be written at `path`.

    Raises:
        OutputError: if it cannot.
    """
    if path.is_dir():
        raise OutputError(f"cannot write '{path}': it is a folder; give the name of a file")
    with _reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        temporary.touch(exist_ok=False)
        temporary.unlink()


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


def _locked(file: IO[str], path: Path) -> bool:
    """Lock a file until it is closed; False if another process has locked it, or has put it elsewhere meanwhile."""
    if fcntl is None:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


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
