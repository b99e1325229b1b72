"""A collection of images, local or at any fsspec URL, split into parts that workers process one at a time."""

import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Literal

from dlsr.errors import InputError, MissingExtraError, NoImagesError, SettingsError, one_line
from dlsr.images.sources import SUFFIXES, ImageItem, failing_item
from dlsr.streaming import in_groups

Kind = Literal["files", "members", "tar", "parquet", "dataset"]

FEW_SHARDS = 64
"""Up to this many uncompressed tars are listed and split; of more tars, each is one part."""
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "bytes", "content")
NAME_COLUMNS = ("path", "name", "file_name", "filename", "__key__")
DATASET_PREFIX = "hf:"


@dataclass(frozen=True)
class Part:
    """Some images of a collection: the task of one worker."""

    index: int
    kind: Kind
    url: str
    """The folder, tar, Parquet file or dataset."""
    files: tuple[str, ...] = ()
    """Paths for `files`; names of the tar's members for `members`."""
    places: tuple[tuple[int, int], ...] = ()
    """Offset and size in bytes of each of the `members`."""
    start: int = 0
    stop: int = 0
    """First row, and the row after the last, of `parquet` and `dataset`."""

    def to_json(self) -> str:
        """The part as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Part":
        """The part from the JSON of `to_json`."""
        content = json.loads(text)
        places = tuple((offset, size) for offset, size in content.pop("places"))
        return cls(**{**content, "files": tuple(content["files"])}, places=places)


def plan(source: str, images_per_part: int) -> list[Part]:
    """Split a collection into parts. The same collection always gives the same parts.

    Args:
        source: a folder of images, of tars (WebDataset shards) or of Parquet files; one such file; local, or any
            fsspec URL (such as `s3://`, `gs://` or `file://`); or a Hugging Face dataset: `hf:REPO`, `hf:REPO:SPLIT`
            or `hf:FOLDER`.
        images_per_part: most images in a part. Compressed tars, and tars beyond the first 64, are not split.

    Raises:
        SettingsError: if `images_per_part` is less than 1.
        InputError: if the source cannot be read.
        NoImagesError: if there is no image.
        MissingExtraError: if the package that reads the source is not installed.
    """
    if images_per_part < 1:
        raise SettingsError(f"a part needs at least one image, got {images_per_part}")
    try:
        parts = [replace(part, index=i) for i, part in enumerate(_parts(source, images_per_part))]
    except (OSError, tarfile.TarError, ValueError) as error:
        raise InputError(f"cannot read '{source}': {one_line(error)}; check the path") from error
    if not parts:
        raise NoImagesError(f"no image, tar or Parquet file in '{source}'")
    return parts


def _parts(source: str, size: int) -> Iterator[Part]:
    """The parts, without their index."""
    if source.startswith(DATASET_PREFIX):
        for start, stop in _ranges(len(_open_dataset(source)), size):
            yield Part(0, "dataset", source, start=start, stop=stop)
        return
    fs, root = filesystem(source)
    if not fs.exists(root):
        raise FileNotFoundError(f"'{source}' does not exist")
    found = sorted(fs.find(root)) if fs.isdir(root) else [root]
    tars = [path for path in found if path.lower().endswith(TAR_SUFFIXES)]
    for tar in tars:
        url, members = fs.unstrip_protocol(tar), None
        if len(tars) <= FEW_SHARDS and tar.endswith(".tar"):
            members = _members(fs, tar, required=len(found) == 1)
        if members is None:
            yield Part(0, "tar", url)
            continue
        for chunk in in_groups(members, size):
            names = tuple(name for name, _, _ in chunk)
            yield Part(0, "members", url, names, tuple((offset, length) for _, offset, length in chunk))
    for table in (path for path in found if path.endswith(".parquet")):
        for start, stop in _ranges(_row_count(fs, table, required=len(found) == 1), size):
            yield Part(0, "parquet", fs.unstrip_protocol(table), start=start, stop=stop)
    images = [path for path in found if PurePosixPath(path).suffix.lower() in SUFFIXES]
    for paths in in_groups(images, size):
        yield Part(0, "files", fs.unstrip_protocol(root), tuple(paths))


def _ranges(rows: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, rows)) for start in range(0, rows, size))


def _members(fs: Any, tar: str, required: bool) -> list[tuple[str, int, int]] | None:
    """Name, offset and size of a tar's images; None if it is damaged, which the worker will report."""
    try:
        with fs.open(tar, "rb") as file, tarfile.open(fileobj=file) as opened:
            return [(member.name, member.offset_data, member.size) for member in opened if _is_image(member)]
    except (OSError, tarfile.TarError):
        if required:
            raise
        return None


def _row_count(fs: Any, table: str, required: bool) -> int:
    """Number of rows; 1 if the file is damaged, so that it becomes a part and the worker reports it."""
    try:
        with fs.open(table, "rb") as file:
            return int(_parquet(file).metadata.num_rows)
    except (OSError, ValueError):  # Arrow's own errors are ValueErrors
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
            yield ImageItem(file, _reader(fs, file))
    elif part.kind == "members":
        for name, (offset, size) in zip(part.files, part.places, strict=True):
            yield ImageItem(f"{path}/{name}", _reader(fs, path, offset, size))
    elif part.kind == "tar":
        with fs.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r|*") as opened:
            for member in opened:
                if _is_image(member):
                    stream = opened.extractfile(member)
                    content = stream.read() if stream is not None else b""
                    yield ImageItem(f"{path}/{member.name}", lambda content=content: content)  # type: ignore[misc]
    else:
        yield from _rows_of_parquet(fs, path, part)


def digest_of(parts: Sequence[Part]) -> str:
    """SHA-256 of the parts: equal if a collection was split in the same way."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.to_json().encode())
    return digest.hexdigest()


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises:
        InputError: if the URL needs a package that is not installed.
        MissingExtraError: without fsspec.
    """
    try:
        import fsspec  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise MissingExtraError("fsspec", "ray") from None
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:  # s3fs, gcsfs, ..
        raise InputError(f"'{url}' needs a package that is not installed: {error}") from error
    return fs, path


def _reader(fs: Any, path: str, start: int | None = None, size: int | None = None) -> Any:
    stop = None if start is None or size is None else start + size
    return lambda: fs.cat_file(path, start=start, end=stop)


def _is_image(member: tarfile.TarInfo) -> bool:
    return member.isfile() and PurePosixPath(member.name).suffix.lower() in SUFFIXES


def _parquet(file: Any) -> Any:
    try:
        from pyarrow.parquet import ParquetFile  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise MissingExtraError("pyarrow", "ray") from None
    return ParquetFile(file)


def _rows_of_parquet(fs: Any, path: str, part: Part) -> Iterator[ImageItem]:
    with fs.open(path, "rb") as file:
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
                        yield _cell_item(cells[column], f"{path}/{cells[named] if named else row}")
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
        if cell.get("bytes") is None and cell.get("path"):
            fs, path = filesystem(cell["path"])
            yield ImageItem(name, _reader(fs, path))
        else:
            yield _cell_item(cell, name)
