"""Reading the bytes of image files: of regular files only, and never more than a limit."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from dlsr.errors import ImageError, ImageTooLargeError, one_line

MAX_FILE_BYTES = 300 * 2**20
"""Larger files are not read. The largest image that is decoded has 256 MiB of 8-bit RGB."""


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file.

    Raises:
        OSError: if it cannot be opened or read.
        ImageError: if it is not a regular file: a FIFO, a socket, a device, a folder.
        ImageTooLargeError: if it has more than `MAX_FILE_BYTES`.
    """
    with open_regular(path) as file:
        return file.read(checked_size(os.fstat(file.fileno()).st_size))


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading, without waiting for a writer of a FIFO.

    Raises:
        OSError: if it cannot be opened.
        ImageError: if it is not a regular file, or its name is none.
    """
    try:
        _check_regular(Path(path).stat())  # first, as opening a device or a FIFO has effects of its own
    except ValueError as error:  # a null character
        raise ImageError(one_line(error)) from error
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - Path.open takes no opener
    try:
        _check_regular(os.fstat(file.fileno()))  # again, as another file may have taken its place
    except ImageError:
        file.close()
        raise
    return file


def checked_size(size: int) -> int:
    """The size in bytes of an image file, if that much is read.

    Raises:
        ImageTooLargeError: if it is over `MAX_FILE_BYTES`.
    """
    if size > MAX_FILE_BYTES:
        raise ImageTooLargeError(f"{size} bytes are over the limit of {MAX_FILE_BYTES}")
    return size


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("not a regular file")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has no such flag, and no FIFOs in folders
