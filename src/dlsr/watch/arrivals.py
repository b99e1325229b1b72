"""What has arrived in a folder: new files that are complete, found by listing it again and again.

Listing works on every file system, also on network drives, where events of the operating system do not.
"""

import hashlib
import os
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path, PurePath

from dlsr.errors import ImageError
from dlsr.images.names import SUFFIXES, in_utf8
from dlsr.images.reading import checked_size, open_file
from dlsr.images.sources import ImageItem, walk_folder

ID_BYTES = 16
MOST_READY = 1024
"""Arrivals that are given at once; the next listing gives the others."""
MOST_WAITING = 50_000
"""Files whose size and time are remembered until they are done; more are noticed when these are done."""
MOST_PROBLEMS = 100
"""Files and folders that are named if they cannot be looked at."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A file that has arrived, as it was when it was seen."""

    path: str
    id: bytes
    """Another for every other name in the folder, size or time of change."""
    size: int
    modified_ns: int
    """Time of its last change, in nanoseconds since 1970."""
    since: float
    """When it was first seen like this, in seconds of `time.monotonic`."""

    @property
    def item(self) -> ImageItem:
        """The image. Its `read` fails if the file is not this one any more."""
        return ImageItem(in_utf8(self.path), self.read)

    def read(self) -> bytes:
        """The bytes of the file.

        Raises:
            OSError, ImageError: if it cannot be read, or has changed.
        """
        with open_file(self.path) as file:
            content = file.read(checked_size(self.size))
            if not self._is(os.fstat(file.fileno())):
                raise ImageError("it has changed while it was read")
        return content

    def is_there(self) -> bool:
        """Whether the file is still the one that was seen."""
        try:
            return self._is(os.stat(self.path))  # noqa: PTH116 - as all paths here, a string
        except OSError:
            return False

    def _is(self, status: os.stat_result) -> bool:
        return (status.st_size, status.st_mtime_ns) == (self.size, self.modified_ns)


class Arrivals:
    """The images of a folder and its subfolders that are not done yet.

    Args:
        folder: to watch.
        done: ids of what is done.
        settle: a file is complete if its size and time have not changed for so many seconds.
        clock: gives the time in seconds.
    """

    def __init__(
        self, folder: Path, done: Container[bytes], settle: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._done, self._settle, self._clock = str(folder), done, settle, clock
        self._waiting: dict[bytes, float] = {}
        self.problems: dict[str, str] = {}
        """Reasons by path, of subfolders and files that could not be looked at in the last listing."""

    @property
    def waiting(self) -> int:
        """How many files of the last listing are not done."""
        return len(self._waiting)

    def ready(self) -> list[Arrival]:
        """List the folder, and give what is complete and not done, in order of the names.

        Raises:
            OSError: if the folder cannot be listed. All its files are then looked at anew.
        """
        waiting, ready = self._waiting, list[Arrival]()
        self._waiting, self.problems = {}, {}
        now = self._clock()
        for parent, files, _ in walk_folder(self._folder, self._unlisted):
            for name in files:
                if len(self._waiting) == MOST_WAITING:
                    return ready
                if PurePath(name).suffix.lower() not in SUFFIXES:
                    continue
                path = os.path.join(parent, name)  # noqa: PTH118
                try:
                    status = os.stat(path)  # noqa: PTH116
                except OSError as error:
                    if os.path.lexists(path):  # and has not been removed since it was listed
                        self._add_problem(path, error)
                    continue
                id = self._id(path, status)
                if id in self._done:
                    continue
                since = self._waiting[id] = waiting.get(id, now)
                if now - since >= self._settle and len(ready) < MOST_READY:
                    ready.append(Arrival(path, id, status.st_size, status.st_mtime_ns, since))
        return ready

    def _id(self, path: str, status: os.stat_result) -> bytes:
        # By the name below the folder, since the folder may be given in other words next time.
        name = os.fsencode(os.path.relpath(path, self._folder))
        stated = b"%s\0%d\0%d" % (name, status.st_size, status.st_mtime_ns)
        return hashlib.blake2b(stated, digest_size=ID_BYTES).digest()

    def _unlisted(self, error: OSError) -> None:
        if error.filename == self._folder:
            raise error
        self._add_problem(str(error.filename), error)

    def _add_problem(self, path: str, error: OSError) -> None:
        if len(self.problems) < MOST_PROBLEMS:
            self.problems[in_utf8(path)] = error.strerror or type(error).__name__
