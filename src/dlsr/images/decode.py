"""Where images come from, and what they look like once decoded. An unreadable one is an item with a reason.

Decoding rules: EXIF rotation is applied; an animation counts as its first frame; transparency is laid over
white; greyscale, palette and CMYK become RGB; 16-bit values keep their upper 8 bits.
"""

import gzip
import io
import os
import shutil
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, Protocol, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dlsr.errors import ImageError, ImageTooLargeError, InputError, NoImagesError, one_line

SUFFIXES = frozenset(
    {
        ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png",
        ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
    }
)  # fmt: skip
"""A folder's or tar's files with these suffixes are its images."""

MAX_PIXELS = 89_478_485
"""Larger images are refused as decompression bombs (Pillow's own warning limit)."""

FORMATS = frozenset({"AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP"})
"""What is decoded, by Pillow's names: pictures of pixels, by decoders that call no other program."""

Interpolation = Literal["bilinear", "bicubic"]
Decoding = Literal["full", "draft"]
DECODINGS: tuple[Decoding, ...] = get_args(Decoding)
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class UnreadableImagesWarning(UserWarning):
    """Some images could not be read; the message names them."""


@dataclass(frozen=True, slots=True)
class ImageItem:
    """One image that is yet to be read: its name in reports and how to get it."""

    name: str
    read: Callable[[], object] = field(repr=False)
    """Returns encoded bytes, a PIL image, an array or a tensor; may raise."""


@dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order, and the names of files that were passed over for not being images."""

    items: Sequence[ImageItem]
    ignored: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.items)

    def subset(self, indices: Iterable[int]) -> "ImageSet":
        """The images at these positions."""
        return ImageSet([self.items[i] for i in indices])


class TorchDataset(Protocol):
    """A map-style torch dataset: items are images, or tuples that begin with one."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


ImagesLike = str | os.PathLike[str] | Sequence[Any] | NDArray[np.uint8] | TorchDataset | ImageSet
"""A folder, a tar, one image file, a list of paths or PIL images or arrays, a uint8 array or a torch dataset."""


def open_images(images: ImagesLike) -> ImageSet:
    """List the images of any supported source, without decoding them.

    Args:
        images: a folder (searched with all its subfolders), a `.tar` or `.tar.gz`, an image file, a list of
            paths, PIL images or arrays, a uint8 array of shape `(N, H, W)` or `(N, H, W, 3)`, or a torch dataset.

    Raises:
        NoImagesError: if there is none.
        InputError: if the source does not exist or is of another kind.
    """
    if isinstance(images, ImageSet):
        found = images
    elif isinstance(images, str | os.PathLike):
        found = _open_path(Path(images))
    elif isinstance(images, Image.Image):
        found = ImageSet([_item_of(0, images)])
    elif isinstance(images, np.ndarray):
        found = _open_array(images)
    elif isinstance(images, Sequence):
        found = ImageSet([_item_of(i, image) for i, image in enumerate(images)])
    elif hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        found = ImageSet([_dataset_item(images, i) for i in range(len(images))])
    else:
        raise InputError(
            f"cannot read images from a {type(images).__name__}; give a folder, a tar, a list of paths or PIL "
            "images, a uint8 array or a torch dataset with a length"
        )
    if not found.items:
        ignored = f" ({len(found.ignored)} other files, such as {found.ignored[0]})" if found.ignored else ""
        what = f"'{images}'" if isinstance(images, str | os.PathLike) else "what was given"
        raise NoImagesError(f"no image in {what}{ignored}; images end in {', '.join(sorted(SUFFIXES))}")
    return found


def _open_path(path: Path) -> ImageSet:
    try:
        if path.is_dir():
            return _open_folder(path)
        if path.name.lower().endswith((".tar", ".tar.gz", ".tgz")):
            return _open_tar(path)
        with path.open("rb"):
            return ImageSet([_file_item(path)])
    except FileNotFoundError:
        raise InputError(f"'{path}' does not exist; check the path") from None
    except (OSError, EOFError, tarfile.TarError) as error:
        raise InputError(f"cannot read '{path}': {error}; check the file and its permissions") from error


def _open_folder(folder: Path) -> ImageSet:
    items: list[ImageItem] = []
    ignored: list[str] = []

    def unreadable(error: OSError) -> None:
        items.append(failing_item(str(error.filename), error.strerror or "cannot be listed"))

    for parent, subfolders, files in os.walk(folder, onerror=unreadable):
        subfolders.sort()
        for file in sorted(files):
            path = Path(parent, file)
            if path.suffix.lower() in SUFFIXES:
                items.append(_file_item(path))
            else:
                ignored.append(str(path))
    return ImageSet(items, ignored)


def _file_item(path: Path) -> ImageItem:
    # There may be millions, and a string is smaller than a Path.
    name = str(path)
    return ImageItem(name, partial(_file_bytes, name))


def _file_bytes(name: str) -> bytes:
    return Path(name).read_bytes()


def failing_item(name: str, reason: str) -> ImageItem:
    """An image that cannot be read, and why."""

    def fail() -> object:
        raise ImageError(reason)

    return ImageItem(name, fail)


def _open_tar(path: Path) -> ImageSet:
    file = _uncompressed(path)
    with tarfile.open(fileobj=file) as tar:
        members = [member for member in tar if member.isfile()]

    def reader(offset: int, size: int) -> Callable[[], bytes]:
        return lambda: os.pread(file.fileno(), size, offset)

    items, ignored = [], []
    for member in members:
        if Path(member.name).suffix.lower() in SUFFIXES:
            items.append(ImageItem(member.name, reader(member.offset_data, member.size)))
        else:
            ignored.append(member.name)
    return ImageSet(items, ignored)


def _uncompressed(path: Path) -> IO[bytes]:
    # Members are read at random from several threads, which a compressed stream cannot do.
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    if not compressed:
        return path.open("rb")
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as its images
    with gzip.open(path) as stream:
        shutil.copyfileobj(stream, unpacked)
    unpacked.seek(0)
    return unpacked


def _open_array(array: NDArray[Any]) -> ImageSet:
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise InputError(
            f"an array of images must be uint8 of shape (N, H, W) or (N, H, W, 3), got {array.dtype} of shape "
            f"{array.shape}"
        )
    return ImageSet([_item_of(i, image) for i, image in enumerate(array)])


def _item_of(index: int, image: Any) -> ImageItem:
    if isinstance(image, str | os.PathLike):
        return _file_item(Path(image))
    return ImageItem(str(index), lambda: image)


def _dataset_item(dataset: TorchDataset, index: int) -> ImageItem:
    def read() -> object:
        try:
            sample = dataset[index]
        # A dataset is the user's code and may raise anything; one bad image must not stop the rest.
        except Exception as error:
            raise ImageError(f"the dataset raised {type(error).__name__}: {error}") from error
        return sample[0] if isinstance(sample, tuple | list) else sample

    return ImageItem(str(index), read)


def decode(raw: object, draft: int | None = None) -> Image.Image:
    """Decode to an RGB image, by the rules at the top of this module.

    Args:
        raw: encoded bytes, a PIL image, an array of shape `(H, W)` or `(H, W, 1 | 3 | 4)`, or a torch tensor of
            shape `(1 | 3, H, W)`; arrays uint8 (or bool), tensors uint8 or float in `[0, 1]`.
        draft: decode a JPEG no larger than needed for this many pixels a side: at 1/2, 1/4 or 1/8 of its size, which
            is quicker and gives slightly other pixels. None decodes in full.

    Raises:
        ImageError: with the reason, if that cannot be done.
    """
    try:
        if isinstance(raw, bytes):
            image = _opened(raw)
        elif isinstance(raw, Image.Image):
            image = raw
        else:
            image = _image_from_array(raw)
        if image.width * image.height > MAX_PIXELS:
            raise ImageTooLargeError(f"{image.width}x{image.height} pixels are over the limit of {MAX_PIXELS}")
        if draft is not None:
            image.draft(None, (draft, draft))
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    # Decoders of damaged files raise whatever they stumble on: ValueError, SyntaxError, struct.error, ...
    except Exception as error:
        raise _undecodable(error) from error


def pixels_of(raw: bytes) -> int:
    """How many pixels an encoded image has, by its header, without decoding it.

    Raises:
        ImageError: with the reason, if that cannot be told.
        ImageTooLargeError: if the header alone is enough to refuse it.
    """
    try:
        image = _opened(raw)
    except ImageError:
        raise
    except Exception as error:
        raise _undecodable(error) from error
    return image.width * image.height


def _opened(raw: bytes) -> Image.Image:
    if not raw:
        raise ImageError("empty file")
    try:
        image: Image.Image = Image.open(io.BytesIO(raw))
    except UnidentifiedImageError:
        raise ImageError("not an image, or of an unknown format") from None
    except Image.DecompressionBombError:
        raise ImageTooLargeError(f"more than {2 * MAX_PIXELS} pixels are over the limit of {MAX_PIXELS}") from None
    if image.format not in FORMATS:
        raise ImageError(f"{image.format} files are not read; convert to PNG or JPEG")
    return image


def _undecodable(error: Exception) -> ImageError:
    return ImageError(f"cannot be decoded: {one_line(error)}")


def _image_from_array(raw: object) -> Image.Image:
    if isinstance(raw, torch.Tensor):
        if raw.is_floating_point():
            if not (torch.isfinite(raw).all() and raw.min() >= 0 and raw.max() <= 1):
                raise ImageError("a float tensor must lie in [0, 1]; drop normalisation from the dataset")
            raw = (raw * 255).round().to(torch.uint8)
        array = raw.permute(1, 2, 0).cpu().numpy() if raw.ndim == 3 else raw.cpu().numpy()
    elif isinstance(raw, np.ndarray):
        array = raw
    else:
        raise ImageError(f"a {type(raw).__name__} is not an image")
    if array.dtype != np.uint8:
        raise ImageError(f"an array must be uint8, got {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ImageError(f"an array of shape {array.shape} is not an image")
    return Image.fromarray(np.ascontiguousarray(array))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise ImageError("floating-point pixels have no known range; convert to 8 bits")
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def resize(image: Image.Image, size: int, interpolation: Interpolation) -> NDArray[np.uint8]:
    """Resize to `size` x `size` pixels: uint8 array of shape `(size, size, 3)`."""
    return np.asarray(image.resize((size, size), _RESAMPLING[interpolation]), dtype=np.uint8)


def read_pixels(
    images: ImageSet,
    size: int,
    interpolation: Interpolation,
    *,
    apply: Callable[[Image.Image], Image.Image] | None = None,
    workers: int = 2,
) -> tuple[NDArray[np.uint8], list[str | None]]:
    """Decode and resize all images of a set.

    Args:
        images: what to read.
        size: pixels a side.
        interpolation: of the resize.
        apply: a change made to each image before it is resized.
        workers: threads.

    Returns:
        The readable ones, uint8 of shape `(R, size, size, 3)`; and for each image why it cannot be read, or None.
    """

    def read(item: ImageItem) -> NDArray[np.uint8] | str:
        try:
            image = decode(item.read())
            return resize(apply(image) if apply else image, size, interpolation)
        except (ImageError, OSError) as error:
            return reason_of(error)

    read_ones = list(map_ahead(read, images.items, workers, ahead=256))
    pixels = [one for one in read_ones if not isinstance(one, str)]
    errors = [one if isinstance(one, str) else None for one in read_ones]
    return np.stack(pixels) if pixels else np.empty((0, size, size, 3), np.uint8), errors


def reason_of(error: ImageError | OSError) -> str:
    """Why an image cannot be read, in one line."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def warn_of_unreadable(unreadable: Mapping[str, str]) -> None:
    """Warn the caller's caller of images that could not be read: reasons by name."""
    if unreadable:
        listed = "; ".join(f"{name}: {reason}" for name, reason in islice(unreadable.items(), 10))
        more = f"; and {len(unreadable) - 10} more" if len(unreadable) > 10 else ""
        warnings.warn(
            f"{len(unreadable)} images could not be read: {listed}{more}", UnreadableImagesWarning, stacklevel=3
        )


def recompress(image: Image.Image, size: int, quality: int) -> Image.Image:
    """Resize to `size` x `size`, then JPEG with 4:2:0 chroma: what the `matched` protocol does to every image."""
    buffer = io.BytesIO()
    image.resize((size, size), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return Image.open(buffer).convert("RGB")


A = TypeVar("A")
B = TypeVar("B")


def in_groups(items: Iterable[A], size: int) -> Iterator[list[A]]:
    """Items in their order, `size` at a time; the last group may be smaller."""
    remaining = iter(items)
    while group := list(islice(remaining, size)):
        yield group


def map_ahead(function: Callable[[A], B], items: Iterable[A], workers: int, ahead: int) -> Generator[B]:
    """Map in threads, in order, working at most `ahead` items ahead of the consumer (so memory stays bounded)."""
    with ThreadPoolExecutor(workers) as pool:
        remaining = iter(items)
        pending: list[Future[B]] = [pool.submit(function, item) for item in islice(remaining, ahead)]
        try:
            while pending:
                result = pending.pop(0).result()
                pending.extend(pool.submit(function, item) for item in islice(remaining, 1))
                yield result
        finally:
            for future in pending:
                future.cancel()
