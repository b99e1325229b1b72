"""A collection of images, local or at any fsspec URL, split into parts that workers process one at a time."""

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Literal

from dlsr.errors import ImageError, InputError, MissingExtraError, NoImagesError, SettingsError, one_line
from dlsr.images.names import SUFFIXES, in_utf8
from dlsr.images.reading import MAX_FILE_BYTES, checked_size, open_file, read_file
from dlsr.images.sources import ImageItem, failing_item, member_items, walk_folder
from dlsr.images.tars import TAR_SUFFIXES, Listing, Member, is_compressed, list_members, plain_tar
from dlsr.streaming import in_groups

Kind = Literal["files", "members", "tar", "parquet", "dataset"]

FEW_SHARDS = 64
"""Up to this many uncompressed tars are listed and split; of more tars, each is one part."""
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "bytes", "content")
NAME_COLUMNS = ("path", "name", "file_name", "filename", "__key__")
DATASET_PREFIX = "hf:"
VERSION_FIELDS = ("size", "ETag", "etag", "md5Hash", "content_md5", "mtime", "last_modified", "LastModified", "updated")


@dataclass(frozen=True)
class Part:
    """Some images of a collection: the task of one worker."""

    index: int
    kind: Kind
    url: str
    """The folder, tar, Parquet file or dataset."""
    files: tuple[str, ...] = ()
    """Paths for `files`."""
    members: tuple[Member, ...] = ()
    """Images of the tar for `members`."""
    damage: str | None = None
    """Why the tar cannot be read after these `members`."""
    start: int = 0
    stop: int = 0
    """First row, and the row after the last, of `parquet` and `dataset`."""
    versions: str = ""
    """Digest of the files' sizes and of when they were changed; empty for a `dataset`."""

    def to_json(self) -> str:
        """The part as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Part":
        """The part from the JSON of `to_json`."""
        content = json.loads(text)
        members = tuple(
            Member(**{**member, "pieces": tuple(tuple(piece) for piece in member["pieces"])})
            for member in content.pop("members")
        )
        return cls(**{**content, "files": tuple(content["files"])}, members=members)


def plan(source: str, images_per_part: int, on_ignored: Callable[[list[str]], None] = lambda names: None) -> list[Part]:
    """Split a collection into parts. The same collection always gives the same parts.

    Args:
        source: a folder of images, of tars (WebDataset shards) or of Parquet files; one such file; local, or any
            fsspec URL (such as `s3://`, `gs://` or `file://`); or a Hugging Face dataset: `hf:REPO`, `hf:REPO:SPLIT`
            or `hf:FOLDER`.
        images_per_part: most images in a part. Compressed tars, and tars beyond the first 64, are not split.
        on_ignored: callback with the names of files, and of members of tars that are split, that are not images.

    Raises:
        SettingsError: if `images_per_part` is less than 1.
        InputError: if the source cannot be read.
        NoImagesError: if there is no image.
        MissingExtraError: if the package that reads the source is not installed.
    """
    if images_per_part < 1:
        raise SettingsError(f"a part needs at least one image, got {images_per_part}")
    ignored: list[str] = []
    try:
        parts = [replace(part, index=i) for i, part in enumerate(_parts(source, images_per_part, ignored))]
    except (OSError, tarfile.TarError, ValueError) as error:
        raise InputError(f"cannot read '{source}': {one_line(error)}; check the path") from error
    if not parts:
        raise NoImagesError(f"no image, tar or Parquet file in '{source}'")
    on_ignored(ignored)
    return parts


def _parts(source: str, size: int, ignored: list[str]) -> Iterator[Part]:
    """The parts, without their index. Names of files that are not images are added to `ignored`."""
    if source.startswith(DATASET_PREFIX):
        for start, stop in _ranges(len(_open_dataset(source)), size):
            yield Part(0, "dataset", source, start=start, stop=stop)
        return
    fs, root = filesystem(source)
    if not fs.exists(root):
        raise FileNotFoundError(f"'{source}' does not exist")
    found, unlisted = _files(fs, root) if fs.isdir(root) else ({root: _version(fs.info(root))}, [])
    tars = [path for path in found if path.lower().endswith(TAR_SUFFIXES)]
    for tar in tars:
        url, listing, versions = fs.unstrip_protocol(tar), None, _digest([found[tar]])
        if len(tars) <= FEW_SHARDS:
            listing = _listing(fs, tar, required=len(found) == 1)
        if listing is None:
            yield Part(0, "tar", url, versions=versions)
            continue
        ignored += (f"{tar}/{name}" for name in listing.ignored)
        whole = Part(0, "members", url, versions=versions)
        parts = [replace(whole, members=tuple(chunk)) for chunk in in_groups(listing.members, size)]
        if listing.damage is not None:
            parts[-1:] = [replace(part, damage=listing.damage) for part in parts[-1:] or [whole]]
        yield from parts
    tables = [path for path in found if path.endswith(".parquet")]
    for table in tables:
        for start, stop in _ranges(_row_count(fs, table, required=len(found) == 1), size):
            url, versions = fs.unstrip_protocol(table), _digest([found[table]])
            yield Part(0, "parquet", url, start=start, stop=stop, versions=versions)
    images = [path for path in found if PurePosixPath(path).suffix.lower() in SUFFIXES]
    # An unlisted folder is an image that cannot be read, so that its name and the reason are reported.
    for paths in in_groups(images + unlisted, size):
        versions = _digest([found.get(path, "") for path in paths])
        yield Part(0, "files", fs.unstrip_protocol(root), tuple(paths), versions=versions)
    ignored += map(in_utf8, sorted(set(found) - {*tars, *tables, *images}))


def _files(fs: Any, root: str) -> tuple[dict[str, str], list[str]]:
    """The files in a folder and its subfolders in order, with their versions; subfolders that cannot be listed."""
    if not is_local(fs):
        return {path: _version(info) for path, info in sorted(fs.find(root, detail=True).items())}, []
    found, unlisted = [], list[str]()
    for folder, names, links in walk_folder(root, lambda error: unlisted.append(str(error.filename))):
        found += [f"{folder.rstrip('/')}/{name}" for name in names + links]
    return {path: _version(_local_info(path)) for path in sorted(found)}, sorted(unlisted)


def _local_info(path: str) -> dict[str, Any]:
    try:
        status = os.stat(path)  # noqa: PTH116 - a million times
    except OSError:
        return {}
    return {"size": status.st_size, "mtime": status.st_mtime_ns}


def _version(info: Mapping[str, Any]) -> str:
    """A file's size, and when it was changed or a digest of its content, by the names of fsspec's file systems."""
    return ",".join(str(info.get(name, "")) for name in VERSION_FIELDS)


def _digest(versions: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(versions).encode()).hexdigest()


def _ranges(rows: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, rows)) for start in range(0, rows, size))


def _listing(fs: Any, tar: str, required: bool) -> Listing | None:
    """What an uncompressed tar holds; None if it is compressed, or is no tar, which the worker will report."""
    try:
        with _open(fs, tar) as file:
            return None if is_compressed(file) else list_members(file)
    except (OSError, InputError, tarfile.TarError):
        if required:
            raise
        return None


def _row_count(fs: Any, table: str, required: bool) -> int:
    """Number of rows; 1 if the file is damaged, so that it becomes a part and the worker reports it."""
    try:
        with _open(fs, table) as file:
            return int(_parquet(file).metadata.num_rows)
    except (OSError, InputError, ValueError):  # Arrow's own errors are ValueErrors
        if required:
            raise
        return 1


def items_of(part: Part) -> Iterator[ImageItem]:
    """The images of a part, in order. A row without image bytes becomes an item that fails with a reason.

    Raises:
        OSError, ValueError, tarfile.TarError, InputError: if the tar, table or dataset is damaged, after the images
            before the damage.
    """
    if part.kind == "dataset":
        yield from _rows_of_dataset(part)
        return
    fs, path = filesystem(part.url)
    if part.kind == "files":
        for file in part.files:
            yield ImageItem(in_utf8(file), _reader(fs, file))
    elif part.kind == "members":
        yield from member_items(part.members, _range_reader(fs, path), part.damage, part.url, f"{path}/")
    elif part.kind == "tar":
        yield from _items_of_tar(fs, path, part.url)
    else:
        yield from _rows_of_parquet(fs, path, part)


def digest_of(parts: Sequence[Part]) -> str:
    """SHA-256 of the parts: equal if a collection was split in the same way, and none of its files has changed.

    The files of Hugging Face datasets are not looked at.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.to_json().encode())
    return digest.hexdigest()


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises:
        InputError: if the URL cannot be opened, or needs a package that is not installed.
        MissingExtraError: without fsspec.
    """
    try:
        import fsspec  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise MissingExtraError("fsspec", "cluster") from None
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:  # s3fs, gcsfs, ..
        raise InputError(f"'{url}' needs a package that is not installed: {error}") from error
    except Exception as error:  # each file system raises errors of its own
        raise InputError(f"cannot open '{url}': {one_line(error)}; give a folder, or another URL") from error
    return fs, path


def _reader(fs: Any, path: str) -> Callable[[], bytes]:
    if is_local(fs):
        return partial(read_file, path)

    def read() -> bytes:
        with _as_image_error():
            content: bytes = fs.cat_file(path, start=0, end=MAX_FILE_BYTES + 1)
        checked_size(len(content))
        return content

    return read


def _range_reader(fs: Any, path: str) -> Callable[[int, int], bytes]:
    def read_at(offset: int, size: int) -> bytes:
        with _as_image_error():
            content: bytes = fs.cat_file(path, start=offset, end=offset + size)
        return content

    return read_at


@contextmanager
def _as_image_error() -> Iterator[None]:
    """File systems of other packages raise errors of their own, which must not stop other images."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ImageError(one_line(error)) from error


def is_local(fs: Any) -> bool:
    """Whether a file system of fsspec is this machine's."""
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def _items_of_tar(fs: Any, path: str, url: str) -> list[ImageItem]:
    """The images of a whole tar. A compressed or remote tar is copied to the temporary folder first."""
    file, cut = plain_tar(_open(fs, path), copied=not is_local(fs))
    listing = list_members(file)

    def read_at(offset: int, size: int) -> bytes:
        return os.pread(file.fileno(), size, offset)  # the file stays open as long as its images

    return member_items(listing.members, read_at, cut or listing.damage, url, f"{path}/")


def _open(fs: Any, path: str) -> Any:
    try:
        return open_file(path) if is_local(fs) else fs.open(path, "rb")
    except ImageError as error:
        raise InputError(f"cannot read '{path}': {error}; leave it out") from error


def _parquet(file: Any) -> Any:
    try:
        from pyarrow.parquet import ParquetFile  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise MissingExtraError("pyarrow", "cluster") from None
    return ParquetFile(file)


def _rows_of_parquet(fs: Any, path: str, part: Part) -> Iterator[ImageItem]:
    with _open(fs, path) as file:
        table = _parquet(file)
        names = table.schema_arrow.names
        column = next((name for name in IMAGE_COLUMNS if name in names), None)
        if column is None:
            raise InputError(f"'{path}' has no column with image bytes; name it one of {', '.join(IMAGE_COLUMNS)}")
        named = next((name for name in NAME_COLUMNS if name in names), None)
        row = 0
        for group in range(table.metadata.num_row_groups):
            count = table.metadata.row_group(group).num_rows
            if row + count <= part.start or row >= part.stop:
                row += count
                continue
            columns = [column] if named is None else [column, named]
            for batch in table.iter_batches(64, row_groups=[group], columns=columns):
                for cells in batch.to_pylist():
                    if part.start <= row < part.stop:
                        name = cells.get(named) if named else None
                        yield _cell_item(cells[column], f"{path}/{row if name is None else name}")
                    row += 1


def _cell_item(cell: Any, name: str) -> ImageItem:
    """An image from a cell with bytes, or, as in Hugging Face datasets, with a struct of bytes and path."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes):
        return failing_item(name, "the row holds no bytes")
    return ImageItem(name, lambda: content)


def _open_dataset(source: str) -> Any:
    try:
        import datasets  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise MissingExtraError("datasets", "hub") from None
    name = source.removeprefix(DATASET_PREFIX)
    try:
        return datasets.load_from_disk(name)
    except FileNotFoundError:
        repo, _, split = name.partition(":")
    # Any error: the hub, the network and the disk each raise exceptions of their own.
    try:
        return datasets.load_dataset(repo, split=split or "train")
    except Exception as error:
        reason = one_line(error)
        raise InputError(f"cannot read the dataset '{name}': {reason}") from error


def _rows_of_dataset(part: Part) -> Iterator[ImageItem]:
    import datasets  # noqa: PLC0415

    rows = _open_dataset(part.url)
    column = next((name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)), None)
    if column is None:
        raise InputError(f"'{part.url}' has no column of images; its columns are {', '.join(rows.features)}")
    # As bytes, so that an image that cannot be decoded becomes an error of its own and does not stop the part.
    rows = rows.cast_column(column, datasets.Image(decode=False))
    for i in range(part.start, part.stop):
        cell = rows[i][column]
        name = f"{part.url}/{i}"
        if isinstance(cell, dict) and cell.get("bytes") is None and cell.get("path"):
            fs, path = filesystem(cell["path"])
            yield ImageItem(name, _reader(fs, path))
        else:
            yield _cell_item(cell, name)
