"""Reading the bytes of image files: of regular files only, and never more than a limit."""

import os
from typing import BinaryIO

from dlsr.errors import ImageError, ImageTooLargeError, one_line
from dlsr.files import NotRegularError, open_regular

MAX_FILE_BYTES = 300 * 2**20
"""Larger files are not read. The largest image that is decoded has 256 MiB of 8-bit RGB."""


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file.

    Raises:
        OSError: if it cannot be opened or read.
        ImageError: if it is not a regular file: a FIFO, a socket, a device, a folder.
        ImageTooLargeError: if it has more than `MAX_FILE_BYTES`.
    """
    with open_file(path) as file:
        return file.read(checked_size(os.fstat(file.fileno()).st_size))


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading, without waiting for a writer of a FIFO.

    Raises:
        OSError: if it cannot be opened.
        ImageError: if it is not a regular file, or its name is none.
    """
    try:
        return open_regular(path)
    except NotRegularError as error:
        raise ImageError("not a regular file") from error
    except ValueError as error:  # a null character
        raise ImageError(one_line(error)) from error


def checked_size(size: int) -> int:
    """The size in bytes of an image file, if that much is read.

    Raises:
        ImageTooLargeError: if it is over `MAX_FILE_BYTES`.
    """
    if size > MAX_FILE_BYTES:
        raise ImageTooLargeError(f"{size} bytes are over the limit of {MAX_FILE_BYTES}")
    return size
