"""Tars: their members that are images, found once, and then read in any order.

Hard and symbolic links are followed within the tar, holes of sparse members are filled, and gzip, bzip2 and xz are told
by their content. Every image is listed. What cannot be read is listed with the reason, as is damage that hides images.
"""

import bz2
import gzip
import lzma
import posixpath
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import IO, Any

from dlsr.errors import ImageError, one_line
from dlsr.images.names import SUFFIXES, in_utf8
from dlsr.images.reading import checked_size
from dlsr.naming import distinct

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""Files with these suffixes are tars."""

_MOST_HEADER_BYTES = 2**20
"""Of a long name or of extended attributes."""
_PADDING_BYTES = 2**24
"""Zeros after the end that are looked through for members."""
_UNPACKED_BYTES = 2**14
"""Unpacked at once, and lost if a compressed tar is damaged there."""
_BLOCK = tarfile.BLOCKSIZE
_DECOMPRESSORS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
_UNPACKING_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True, slots=True)
class Member:
    """An image in a tar, which has not been read yet."""

    name: str
    size: int = 0
    """In bytes."""
    pieces: tuple[tuple[int, int, int], ...] = ()
    """Where its bytes are: offset in the tar, offset in the member, and length of each piece. The rest is zeros."""
    problem: str | None = None
    """Why it cannot be read, if that is known already."""

    def read(self, read_at: Callable[[int, int], bytes]) -> bytes:
        """Its bytes.

        Args:
            read_at: gives the bytes of the tar from an offset on, of a length.

        Raises:
            ImageError: if it cannot be read.
            ImageTooLargeError: if it is too large, see `dlsr.images.reading`.
        """
        if self.problem is not None:
            raise ImageError(self.problem)
        content = bytearray(checked_size(self.size))
        for place, start, length in self.pieces:
            if start < 0 or length < 0 or start + length > self.size:
                raise ImageError("the tar is damaged: a piece of this member lies outside of it")
            piece = read_at(place, length)
            if len(piece) < length:
                raise ImageError("the tar ends within it")
            content[start : start + length] = piece
        return bytes(content)


@dataclass(frozen=True)
class Listing:
    """What a tar holds."""

    members: list[Member]
    """Images, in their order."""
    ignored: list[str]
    """Names of members that are not images, by their suffix."""
    damage: str | None
    """Why members after these cannot be read, if there may be more."""


def is_compressed(file: IO[bytes]) -> bool:
    """Whether a file at its beginning is compressed, in a way that `plain_tar` undoes."""
    return _decompressor(file) is not None


def plain_tar(file: IO[bytes], *, copied: bool = False) -> tuple[IO[bytes], str | None]:
    """A tar without its compression: the file itself, or a temporary file; and what cut it short, if it is damaged.

    Several threads read members in any order, which a compressed stream does not allow.

    Args:
        file: at its beginning.
        copied: make a temporary file in any case.

    Raises:
        OSError: if it cannot be read, or the temporary file cannot be written.
    """
    decompressor = _decompressor(file)
    if decompressor is None and not copied:
        return file, None
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - stays open as long as its images
    stream, damage, content = file if decompressor is None else decompressor(file), None, b""
    while damage is None:
        try:
            content = stream.read(_UNPACKED_BYTES)
        except _UNPACKING_ERRORS as error:
            damage = one_line(error)
        else:
            unpacked.write(content)
            if not content:
                break
    unpacked.seek(0)
    return unpacked, damage


def _decompressor(file: IO[bytes]) -> Callable[[IO[bytes]], Any] | None:
    magic = file.read(max(map(len, _DECOMPRESSORS)))
    file.seek(0)
    return next((opener for start, opener in _DECOMPRESSORS.items() if magic.startswith(start)), None)


def list_members(file: IO[bytes]) -> Listing:
    """The members of a tar that is not compressed.

    Raises:
        tarfile.TarError: if it is no tar at all.
        OSError: if it cannot be read.
    """
    contents: dict[str, Member] = {}
    links: dict[str, str] = {}
    images: list[tuple[str, Member]] = []
    ignored: list[str] = []
    damage = None
    with _opened(file) as tar:
        try:
            for info in _infos(tar):
                name, member = posixpath.normpath(info.name), _member(info)
                if info.issym() or info.islnk():
                    links[name] = _target(info)
                elif info.isfile():
                    contents[name] = member
                if PurePosixPath(info.name).suffix.lower() in SUFFIXES and not info.isdir():
                    images.append((name, member))
                elif not info.isdir():
                    ignored.append(member.name)
        # Damaged headers raise errors of any kind: ValueError, OverflowError, RecursionError, MemoryError, ..
        except Exception as error:
            damage = one_line(error)
    members = [_followed(member, links[name], contents, links) if name in links else member for name, member in images]
    return Listing(_with_own_names(members), ignored, damage)


def _with_own_names(members: list[Member]) -> list[Member]:
    """Members that are told apart by their names, such as `a (2).png`: `tar -r` repeats names."""

    def numbered(name: str, number: int) -> str:
        path = PurePosixPath(name)
        return str(path.with_name(f"{path.stem} ({number}){path.suffix}"))

    names = distinct((member.name for member in members), numbered)
    return [
        member if member.name == name else replace(member, name=name)
        for member, name in zip(members, names, strict=True)
    ]


class _Headers:
    """A file as tarfile reads it: only headers, none of which may claim to be huge."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims to have {size} bytes")
        return self._file.read(size)


def _opened(file: IO[bytes]) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=_Headers(file), mode="r:")  # type: ignore[call-overload, no-any-return]
    except (OSError, tarfile.TarError):
        raise
    except Exception as error:  # as in `list_members`
        raise tarfile.ReadError(one_line(error)) from error


def _infos(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of a tar.

    Raises:
        tarfile.ReadError: after the members before the damage.
    """
    while (info := tar.next()) is not None:
        yield info
        if tar.offset <= info.offset:  # tarfile would read the same members for ever
            raise tarfile.ReadError("a member has a negative size")
    # tarfile takes a damaged header for the end.
    file: Any = tar.fileobj
    file.seek(tar.offset)
    end = file.read(_BLOCK)
    if len(end) < _BLOCK:
        raise tarfile.ReadError("it has no end mark, so it may be cut short")
    if end.strip(b"\0"):
        raise tarfile.ReadError("a header is damaged")
    for _ in range(_PADDING_BYTES // _MOST_HEADER_BYTES):
        if file.read(_MOST_HEADER_BYTES).strip(b"\0"):
            raise tarfile.ReadError("there is data after its end mark")


def _member(info: tarfile.TarInfo) -> Member:
    name = in_utf8(info.name).replace("\0", r"\x00")
    if not info.isfile():
        return Member(name, problem="not a regular file")
    blocks: Any = [(0, info.size)] if info.sparse is None else info.sparse
    if info.size < 0 or sum(length for _, length in blocks) > info.size:
        return Member(name, problem="the tar is damaged: its sizes are wrong")
    pieces, place = [], info.offset_data
    for start, length in blocks:
        pieces.append((place, start, length))
        place += length
    return Member(name, info.size, tuple(pieces))


def _target(info: tarfile.TarInfo) -> str:
    """The name of the member that a link leads to: from its own folder if it is symbolic, else from the tar's root."""
    folder = posixpath.dirname(info.name) if info.issym() else ""
    return posixpath.normpath(posixpath.join(folder, info.linkname))


def _followed(link: Member, target: str, contents: Mapping[str, Member], links: Mapping[str, str]) -> Member:
    passed: set[str] = set()
    while target not in contents and target in links and target not in passed:
        passed.add(target)
        target = links[target]
    if target not in contents:
        return replace(link, problem=f"a link to {in_utf8(target)}, which is not in the tar")
    return replace(contents[target], name=link.name)
