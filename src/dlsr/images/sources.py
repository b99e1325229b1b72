"""Sources of images: folders, tars, clips, image files, arrays, datasets. Images are listed without being decoded."""

import os
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dlsr.errors import ImageError, InputError, NoImagesError, SettingsError, one_line
from dlsr.images.names import SUFFIXES, in_utf8
from dlsr.images.reading import open_file, read_file
from dlsr.images.tars import TAR_SUFFIXES, Member, list_members, plain_tar
from dlsr.images.video import CLIP_SUFFIXES, Clip, check_every


class UnreadableImagesWarning(UserWarning):
    """Some images could not be read. The message names them."""


@dataclass(frozen=True, slots=True)
class ImageItem:
    """An image that has not been read yet."""

    name: str
    """Its name in reports: a path, the name in a tar, or an index."""
    read: Callable[[], object] = field(repr=False)
    """Returns encoded bytes, a PIL image, an array or a tensor; may raise."""


@dataclass(frozen=True)
class ImageDataset:
    """Images in a fixed order."""

    items: Sequence[ImageItem]
    ignored: Sequence[str] = ()
    """Names of files that are not images, by their suffix."""
    linked_folders: Sequence[str] = ()
    """Names of links to folders, which are not followed."""

    def __len__(self) -> int:
        return len(self.items)

    @property
    def skipped(self) -> str | None:
        """How many files and linked folders were left out, in words; None if there were none."""
        parts = []
        if self.ignored:
            parts.append(f"{len(self.ignored)} files whose suffix is not an image's, such as {self.ignored[0]}")
        if self.linked_folders:
            parts.append(f"{len(self.linked_folders)} linked folders, such as {self.linked_folders[0]}")
        return " and ".join(parts) or None

    def subset(self, indices: Iterable[int]) -> "ImageDataset":
        """The images at these positions."""
        return ImageDataset([self.items[i] for i in indices])

    def sample(self, limit: int | None, seed: int = 0) -> "ImageDataset":
        """At most `limit` images, drawn at random, since the first images of a folder are often all of one class."""
        if limit is None or limit >= len(self):
            return self
        chosen = np.random.default_rng(seed).choice(len(self), limit, replace=False)
        return self.subset(int(i) for i in np.sort(chosen))


class TorchDataset(Protocol):
    """A map-style torch dataset whose items are images, or tuples whose first element is an image."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


ImagesLike = str | os.PathLike[str] | Sequence[Any] | NDArray[np.uint8] | TorchDataset | ImageDataset
"""A folder, tar, clip or image file, a list of paths or PIL images or arrays, a uint8 array or a torch dataset."""


def open_images(images: ImagesLike, *, every: int | str | None = None) -> ImageDataset:
    """List the images of a source without decoding them.

    Args:
        images: a folder (searched with all its subfolders, but not those it links to), a `.tar` (or `.tar.gz`,
            `.tar.bz2`, `.tar.xz`), a clip (`.mp4`, `.mkv`, `.mov`, `.avi`, `.webm`), an image file, a list of paths,
            PIL images or arrays, a uint8 array of shape `(N, H, W)` or `(N, H, W, 3)`, or a torch dataset.
        every: of a clip, keep every so many frames, such as 30, or one frame in so many seconds, such as `"1s"`; None
            keeps all. A frame is named `clip.mp4#frame=120`, where the number counts all frames from 0.

    Raises:
        NoImagesError: if there are none.
        InputError: if the source does not exist, cannot be read or is of an unsupported type.
        SettingsError: for an `every` that is no such thing, or is given for anything but a clip.
        MissingExtraError: for a clip without PyAV.
    """
    if every is not None:
        check_every(every)
        if not (isinstance(images, str | os.PathLike) and _is_clip(Path(images))):
            raise SettingsError(f"every is for clips, which end in {', '.join(CLIP_SUFFIXES)}; leave it out")
    if isinstance(images, ImageDataset):
        found = images
    elif isinstance(images, str | os.PathLike):
        found = _open_path(Path(images), every)
    elif isinstance(images, Image.Image):
        found = ImageDataset([_item_of(0, images)])
    elif isinstance(images, np.ndarray):
        found = _open_array(images)
    elif isinstance(images, Sequence):
        found = ImageDataset([_item_of(i, image) for i, image in enumerate(images)])
    elif hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        found = ImageDataset([_dataset_item(images, i) for i in range(len(images))])
    else:
        raise InputError(
            f"cannot read images from a {type(images).__name__}; give a folder, a tar, a clip, a list of paths or PIL "
            "images, a uint8 array or a torch dataset with a length"
        )
    if not found.items:
        ignored = f" ({skipped})" if (skipped := found.skipped) else ""
        source = f"'{images}'" if isinstance(images, str | os.PathLike) else f"the {type(images).__name__}"
        raise NoImagesError(f"no image in {source}{ignored}; images end in {', '.join(sorted(SUFFIXES))}")
    return found


def _open_path(path: Path, every: int | str | None) -> ImageDataset:
    try:
        if path.is_dir():
            return _open_folder(path)
        if path.name.lower().endswith(TAR_SUFFIXES):
            return _open_tar(path)
        if _is_clip(path):
            return ImageDataset(_ClipItems(in_utf8(str(path)), Clip(path, every or 1)))
        open_file(path).close()
        return ImageDataset([_file_item(path)])
    except FileNotFoundError:
        raise InputError(f"'{path}' does not exist; check the path") from None
    except (OSError, ImageError, tarfile.TarError) as error:
        raise InputError(f"cannot read '{path}': {one_line(error)}; check the file and its permissions") from error


def _is_clip(path: Path) -> bool:
    return path.suffix.lower() in CLIP_SUFFIXES and not path.is_dir()


class _ClipItems(Sequence[ImageItem]):
    """The kept frames of a clip, see `Clip`."""

    def __init__(self, name: str, clip: Clip) -> None:
        self._name, self._clip = name, clip

    def __len__(self) -> int:
        return len(self._clip)

    @overload
    def __getitem__(self, index: int) -> ImageItem: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageItem]: ...
    def __getitem__(self, index: int | slice) -> ImageItem | list[ImageItem]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = self._clip.number_of(index)
        return ImageItem(f"{self._name}#frame={number}", partial(self._clip.read, number))


def _open_folder(folder: Path) -> ImageDataset:
    items: list[ImageItem] = []
    ignored: list[str] = []
    linked: list[str] = []

    def unreadable(error: OSError) -> None:
        items.append(failing_item(in_utf8(str(error.filename)), error.strerror or "cannot be listed"))

    for parent, files, links in walk_folder(folder, unreadable):
        linked += [in_utf8(str(Path(parent, name))) for name in links]
        for file in files:
            path = Path(parent, file)
            if path.suffix.lower() in SUFFIXES:
                items.append(_file_item(path))
            else:
                ignored.append(in_utf8(str(path)))
    return ImageDataset(items, ignored, linked)


def walk_folder(folder: Path | str, on_error: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
    """The files of a folder and its subfolders, in order of their names, and linked folders, which are not followed.

    Args:
        folder: to list.
        on_error: callback with the error of a folder that cannot be listed; `filename` is its path.

    Yields:
        Path of a folder, names of its files, and names of the linked folders in it.
    """
    for parent, subfolders, files in os.walk(folder, onerror=on_error):
        subfolders.sort()
        yield parent, sorted(files), [name for name in subfolders if Path(parent, name).is_symlink()]


def _file_item(path: Path) -> ImageItem:
    # There may be millions of files, and a string is smaller than a Path.
    name = str(path)
    return ImageItem(in_utf8(name), partial(read_file, name))


def failing_item(name: str, reason: str) -> ImageItem:
    """An image that cannot be read. Its `read` raises an ImageError with this reason."""

    def fail() -> object:
        raise ImageError(reason)

    return ImageItem(name, fail)


def _open_tar(path: Path) -> ImageDataset:
    file, cut = plain_tar(open_file(path))
    listing = list_members(file)

    def read_at(offset: int, size: int) -> bytes:
        return os.pread(file.fileno(), size, offset)

    return ImageDataset(
        member_items(listing.members, read_at, cut or listing.damage, in_utf8(str(path))), listing.ignored
    )


def member_items(
    members: Iterable[Member], read_at: Callable[[int, int], bytes], damage: str | None, tar: str, prefix: str = ""
) -> list[ImageItem]:
    """Images of a tar.

    Args:
        members: of the tar.
        read_at: see `Member.read`.
        damage: becomes one more image, which fails with this reason.
        tar: name of the tar in reports.
        prefix: of the images' names.
    """
    items = [ImageItem(f"{prefix}{member.name}", partial(member.read, read_at)) for member in members]
    if damage is not None:
        items.append(failing_item(tar, f"the rest of this tar cannot be read: {damage}"))
    return items


def _open_array(array: NDArray[Any]) -> ImageDataset:
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise InputError(
            f"an array of images must be uint8 of shape (N, H, W) or (N, H, W, 3), got {array.dtype} of shape "
            f"{array.shape}"
        )
    return ImageDataset([_item_of(i, image) for i, image in enumerate(array)])


def _item_of(index: int, image: Any) -> ImageItem:
    if isinstance(image, str | os.PathLike):
        return _file_item(Path(image))
    return ImageItem(str(index), lambda: image)


def _dataset_item(dataset: TorchDataset, index: int) -> ImageItem:
    def read() -> object:
        try:
            sample = dataset[index]
        # A dataset is user code and may raise any error, and one bad image must not stop the others.
        except Exception as error:
            raise ImageError(f"the dataset raised {type(error).__name__}: {error}") from error
        return sample[0] if isinstance(sample, tuple | list) else sample

    return ImageItem(str(index), read)


def warn_of_unreadable(unreadable: Mapping[str, str]) -> None:
    """Warn about images that could not be read.

    Args:
        unreadable: reasons by name.
    """
    if unreadable:
        listed = "; ".join(f"{name}: {reason}" for name, reason in islice(unreadable.items(), 10))
        more = f"; and {len(unreadable) - 10} more" if len(unreadable) > 10 else ""
        warn_caller(f"{len(unreadable)} images could not be read: {listed}{more}", UnreadableImagesWarning)


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn at the line outside dlsr that led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "dlsr":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
