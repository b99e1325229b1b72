"""Atomic writing, so that a killed process never leaves half a file behind; and the place of the cache.

A file or folder is written under a temporary name beside its target, `.writing-<random>-<name>`, and renamed when it is
complete. A killed process leaves the temporary one, which is never taken for the target.
"""

import errno
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dlsr.errors import OutputError, one_line

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment] # on Windows

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WRITE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors that no reading can cause: full disk, exceeded quota, file too large."""
_WITHOUT_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL})
"""Errors of locking on file systems that have no locks."""
_WITHOUT_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
"""Errors of hard links on file systems that have none."""
_TEMPORARY = re.compile(r"\.writing-[0-9a-f]{32}(?:-(.*)|\..*)?")
_LONGEST = 100
"""Bytes of a long name's end that temporary names contain."""
_LOCK_SECONDS = 60.0
ABANDONED_SECONDS = 86_400.0
"""A temporary file that was not written to for so long belongs to a process that was killed."""


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
            # The block may have put another file in the place of ours, as `write_arrays` does.
            temporary.chmod(mode)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def add_file(folder: Path, name: str, content: bytes) -> Path:
    """Write a file into a folder without overwriting another: `name`, or `name-2`, .. if there is one.

    A file of this name with the same content is taken as it is, so that nothing is written twice.

    Args:
        folder: created if missing.
        name: of the file, without folders; long names are cut.
        content: bytes of the file.

    Returns:
        Path of the file.

    Raises:
        OutputError: if it cannot be written.
    """
    ending = Path(name).suffix[-20:]
    stem = name.removesuffix(ending).encode()[:_LONGEST].decode(errors="ignore")
    temporary = _temporary(folder / f"{stem}{ending}")
    names = (f"{stem}{ending}" if number == 1 else f"{stem}-{number}{ending}" for number in itertools.count(1))
    paths = (folder / name for name in names)

    def is_there(path: Path) -> bool:
        return path.is_file() and path.read_bytes() == content

    with _reported(folder / name):
        first = next(path for path in paths if not path.exists() or is_there(path))
        if is_there(first):
            return first
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            # Another process may have taken the name meanwhile.
            return next(path for path in itertools.chain([first], paths) if _named(temporary, path) or is_there(path))
        finally:
            temporary.unlink(missing_ok=True)


def _named(temporary: Path, path: Path) -> bool:
    """Give a complete file a name, or return False if the name is taken."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_LINKS:
            raise
        if path.exists():  # here alone another process may take the name in between
            return False
        temporary.replace(path)
    return True


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


@contextmanager
def appending(path: Path) -> Iterator[IO[bytes]]:
    """A file to append to, which is created if it is missing. Each write is in it at once; no other process writes it.

    Raises:
        OutputError: if the file cannot be opened, or another process is writing it.
    """
    with _reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab", buffering=0)
    with file:
        if not _locked(file, path):
            raise OutputError(f"another process is writing '{path}'; wait for it, or give another name")
        yield file


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
def replacing_folder(folder: Path, unless: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """A temporary folder beside `folder` that replaces it when the block ends without an error.

    An error of the block that is not about writing into the temporary folder is raised as it is. Of several processes
    that replace a folder at once, the last one wins. For an instant there is no folder.

    Args:
        folder: to replace.
        unless: keeps the folder if it is true at the end of the block, since another process has written it meanwhile.

    Raises:
        OutputError: if the folder cannot be written: no permission, full disk, or it is the working directory.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - the name must not be empty, and links stay
    if folder == Path.cwd():
        raise OutputError(f"'{folder}' is the working directory; give another folder")
    temporary = _temporary(folder)
    with _reported(folder):
        temporary.mkdir(parents=True)
    try:
        with _reported(folder, temporary):
            yield temporary
        with _reported(folder), locked(folder.parent):
            if not unless():
                _swap(temporary, folder)
            remove_old(left_of(folder))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(temporary: Path, folder: Path) -> None:
    """Put one folder in the place of another, which is removed."""
    while True:
        aside = _temporary(folder)
        if folder.is_dir():
            with suppress(FileNotFoundError):
                folder.rename(aside)
        try:
            temporary.rename(folder)
        except OSError as error:
            # Where there are no locks, another process may have put its own there.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                with suppress(OSError):
                    aside.rename(folder)
                raise
            shutil.rmtree(aside, ignore_errors=True)
        else:
            shutil.rmtree(aside, ignore_errors=True)
            return


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder, which is created if it is missing. The kernel takes it back from a killed process.

    Yields whether there is a lock: on Windows and some network file systems folders have none.

    Raises:
        OutputError: if the folder cannot be created, or another process holds the lock for a minute.
    """
    with _reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
    handle = _lock(folder)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def _lock(folder: Path) -> int | None:
    if fcntl is None:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    end = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if time.monotonic() > end:
                os.close(handle)
                raise OutputError(f"another process is writing to '{folder}'; try again when it has ended") from None
            time.sleep(0.005)
        except OSError:
            os.close(handle)
            return None


def check_replaceable(folder: Path, names: Collection[str], content: str) -> None:
    """Check that a folder is new, or holds nothing but what is to be replaced.

    Args:
        folder: the folder.
        names: of the files that will be in it.
        content: what they are, for the errors, such as "an export".

    Raises:
        OutputError: if it is a file, holds other files, or cannot be listed.
    """
    if folder.is_file():
        raise OutputError(f"'{folder}' is a file; give a folder for {content}")
    with _reported(folder):
        found = list(folder.iterdir()) if folder.is_dir() else []
    if others := [path.name for path in found if path.name not in names and target_of(path) is None]:
        raise OutputError(
            f"'{folder}' holds other files, such as {min(others)}; give a new folder, or one with nothing but "
            f"{content} to replace"
        )


def target_of(path: Path) -> str | None:
    """Name of the file that a temporary one was to replace, empty if it is not known; None for other files."""
    found = _TEMPORARY.fullmatch(path.name)
    return found and (found[1] or "")


def left_of(path: Path) -> Iterator[Path]:
    """The temporary files or folders beside a file or folder that were to replace it."""
    return (one for one in path.parent.iterdir() if target_of(one) == path.name[-_LONGEST:])


def remove_old(paths: Iterable[Path], seconds: float = ABANDONED_SECONDS) -> None:
    """Remove those of the files and folders that were not changed for so long, as far as that is possible."""
    for path in paths:
        with suppress(OSError):
            if seconds and time.time() - path.lstat().st_mtime < seconds:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


class NotRegularError(OSError):
    """A pipe, a socket, a device or a folder stands where a file is to be read."""


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading. A pipe would block, and a device might have no end.

    Raises:
        OSError: if it cannot be opened.
        NotRegularError: if it is something else.
    """
    _check_regular(Path(path).stat(), path)  # first, as opening a device or a pipe has effects of its own
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - Path.open takes no opener
    try:
        _check_regular(os.fstat(file.fileno()), path)  # again, as another file may have taken its place
    except NotRegularError:
        file.close()
        raise
    return file


def _check_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularError(errno.EINVAL, "it is no regular file", os.fspath(path))


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has no such flag, and no pipes in folders


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an indented JSON file.

    Raises:
        OutputError: if it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(without_infinity(content), indent=2) + "\n", encoding="utf-8")


def without_infinity(value: Any) -> Any:
    """A value with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: without_infinity(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinity(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_arrays(path: Path, arrays: "Mapping[str, NDArray[Any]]", metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OutputError: if it cannot be written.
    """
    import safetensors.numpy  # noqa: PLC0415 - the command line needs this module before it needs NumPy

    ordered = in_order(arrays)
    with replacing(path) as temporary:
        # safetensors writes to a file with a name of its own first; in our folder, it is known as left by us.
        folder = _temporary(path)
        try:
            with _reported(path):
                folder.mkdir()
                safetensors.numpy.save_file(ordered, folder / "arrays", dict(metadata))
                (folder / "arrays").replace(temporary)
        except safetensors.SafetensorError as error:
            raise _cannot_write(path, error) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def in_order(arrays: "Mapping[str, NDArray[Any]]") -> "dict[str, NDArray[Any]]":
    """Arrays as safetensors writes them right: it writes memory as it lies, whatever the strides."""
    import numpy as np  # noqa: PLC0415 - as above

    return {name: np.asarray(values, order="C") for name, values in arrays.items()}


def file_sums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a folder, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def cache_root() -> Path:
    """`$DLSR_CACHE`, by default `~/.cache/dlsr` (or below `$XDG_CACHE_HOME`)."""
    own = os.environ.get("DLSR_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlsr"


def _temporary(path: Path) -> Path:
    end = os.fsencode(path.name)[-_LONGEST:].decode(errors="ignore")
    return path.parent / f".writing-{uuid.uuid4().hex}-{end}"


def _locked(file: IO[Any], path: Path) -> bool:
    """Lock a file until it is closed; False if another process has locked it, or has put it elsewhere meanwhile.

    On Windows, and on file systems without locks, True.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        return True


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
