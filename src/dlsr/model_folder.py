"""The files of a model directory: `model.json` describes the model, and names the one file with its numbers.

The protocol that keeps them together, whatever is killed and whoever saves or loads at the same time:

- The numbers come first, in a file named by their digest, then `model.json`. Both are replaced whole, so at any moment
  `model.json` belongs to numbers that are there.
- A save holds a lock on the directory, which the kernel takes back from a killed process. Under the lock, files of the
  protocol that `model.json` does not name are left from a killed save or an older model, and are removed. Where a file
  system has no such locks, they are removed a day later, since another save may be about to name them.
- A load takes no lock, so that it can read what it cannot write to. If it fails and `model.json` was replaced
  meanwhile, it starts again.
- A folder with nothing but files of the protocol is one in which a first save was killed, and may be saved to.
"""

import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from dlsr.errors import ArtifactError, OutputError, one_line
from dlsr.files import ABANDONED_SECONDS, locked, open_regular, remove_old, replacing, target_of

MANIFEST = "model.json"
FORMATS = ("dlsr-model", "dlsr-baseline")
"""Of `model.json`: of a detector, and of a baseline."""
MOST_DESCRIBED = 2**26
"""Bytes of `model.json`, which names the images that could not be read."""
_NUMBERS = re.compile(r"numbers-[0-9a-f]{16}\.safetensors")
_ATTEMPTS = 100

T = TypeVar("T")


def check_output(folder: Path) -> None:
    """Raise OutputError if something else than a model, or what a killed save left, is at `folder`."""
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"'{folder}' is a file; give a folder for the model")
        if not folder.exists():
            return
        if (folder / MANIFEST).exists():
            if not _is_of_dlsr(folder):
                raise OutputError(f"'{folder}' holds the {MANIFEST} of another tool; give a new folder")
            return
        if not all(_is_ours(path.name) or target_of(path) is not None for path in folder.iterdir()):
            raise OutputError(f"'{folder}' holds other files; give a new folder, or one with a model to replace")
    except OSError as error:
        raise OutputError(f"cannot write to '{folder}': {error.strerror or error}; give another folder") from error


def write_pair(folder: Path, numbers: bytes, describe: Callable[[str, str], str]) -> None:
    """Write numbers and description, or replace those in the folder.

    Args:
        folder: to write; created if missing.
        numbers: content of a safetensors file.
        describe: content of `model.json`, for the name of the file with the numbers and their SHA-256.

    Raises:
        OutputError: if they cannot be written, or the folder holds other files.
    """
    check_output(folder)
    sha256 = hashlib.sha256(numbers).hexdigest()
    name = f"numbers-{sha256[:16]}.safetensors"
    description = describe(name, sha256)
    size = len(description.encode())
    if size > MOST_DESCRIBED:
        raise OutputError(
            f"'{folder / MANIFEST}' would have {size:,} bytes, {MOST_DESCRIBED:,} are the most; "
            "it names each image that cannot be read, leave these out of the fit"
        )
    with locked(folder) as alone:
        with replacing(folder / name) as temporary:
            temporary.write_bytes(numbers)
        with replacing(folder / MANIFEST) as temporary:
            temporary.write_text(description, encoding="utf-8")
        ours = (path for path in folder.iterdir() if _is_ours(target_of(path) or path.name))
        remove_old((path for path in ours if path.name not in (name, MANIFEST)), 0 if alone else ABANDONED_SECONDS)


def _is_of_dlsr(folder: Path) -> bool:
    """Whether the model in a folder is of dlsr, of any version and in any state."""
    if any(_NUMBERS.fullmatch(path.name) for path in folder.iterdir()):
        return True
    try:
        with _opened(folder / MANIFEST, MOST_DESCRIBED) as file:
            content = json.load(file)
    except ValueError:
        return True  # a damaged one is replaced
    return isinstance(content, dict) and content.get("format") in FORMATS


def _is_ours(name: str) -> bool:
    return name == MANIFEST or bool(_NUMBERS.fullmatch(name))


def read_pair(folder: Path, read: Callable[[dict[str, Any]], T]) -> T:
    """What `read` makes of the content of `model.json`; called again if that was replaced while it failed.

    Raises:
        ArtifactError: if there is no model, or `read` raises it.
    """
    for _ in range(_ATTEMPTS):
        description = _read_text(folder)
        try:
            return read(_parsed(folder, description))
        except ArtifactError:
            if _read_text(folder) == description:
                raise
    raise ArtifactError(f"'{folder}' is being replaced all the time; try again later")


def read_files(folder: Path) -> dict[str, bytes]:
    """The content of the two files of a model directory by name, `model.json` last.

    Raises:
        ArtifactError: as `read_pair` and `numbers_path`.
    """

    def read(description: dict[str, Any]) -> dict[str, bytes]:
        path = numbers_path(folder, str(description.get("numbers")), str(description.get("numbers_sha256")))
        try:
            return {path.name: path.read_bytes(), MANIFEST: json.dumps(description, indent=2).encode()}
        except OSError as error:
            raise ArtifactError(f"cannot read '{path}' ({error.strerror}); fit the model again") from error

    return read_pair(folder, read)


def numbers_path(folder: Path, name: str, sha256: str) -> Path:
    """The path of the numbers that `model.json` names, after their digest was checked.

    Raises:
        ArtifactError: if they are elsewhere, missing, damaged or too large for this machine.
    """
    path = folder / name
    if not _NUMBERS.fullmatch(name):
        raise ArtifactError(f"'{folder}' names numbers outside itself; it is damaged, fit it again")
    try:
        with _opened(path, _half_of_memory()) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"cannot read '{path}' ({error.strerror}); fit the model again") from error
    if found != sha256:
        raise ArtifactError(f"'{path}' is damaged: its SHA-256 is not the one in {MANIFEST}; fit the model again")
    return path


def _opened(path: Path, most: int) -> BufferedReader:
    file = open_regular(path)
    size = os.fstat(file.fileno()).st_size
    if size > most:
        file.close()
        raise OSError(errno.EFBIG, f"it has {size} bytes, {most} are the most", str(path))
    return file


def _half_of_memory() -> int:
    known = hasattr(os, "sysconf")  # not on Windows
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 if known else sys.maxsize


def _read_text(folder: Path) -> bytes:
    path = folder / MANIFEST
    try:
        with _opened(path, MOST_DESCRIBED) as file:
            return file.read()
    except FileNotFoundError:
        raise ArtifactError(
            f"'{folder}' is no model directory: it has no {MANIFEST}; give one that dlsr fit made"
        ) from None
    except OSError as error:
        raise ArtifactError(f"cannot read '{path}' ({error.strerror}); fit the model again") from error


def _parsed(folder: Path, description: bytes) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        content = json.loads(description, parse_constant=_refuse)
        digest(content)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"cannot read '{path}' ({one_line(error)}); fit the model again") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"'{path}' is not of dlsr; give a model directory that dlsr fit made")
    return content


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def digest(content: Any) -> str:
    """SHA-256 of `model.json` as written, without the name and digest of the numbers.

    It is taken of the file, not of the validated manifest, so that a later dlsr may add settings with defaults.
    """
    bare = content
    if isinstance(content, dict):
        bare = {name: value for name, value in content.items() if name not in ("numbers", "numbers_sha256")}
    return hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()
