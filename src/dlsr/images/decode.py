"""Decoding to RGB. An image that cannot be decoded raises an ImageError with the reason.

EXIF rotation is applied. Of an animation, the first frame is used. Transparent images are composited over white.
Greyscale, palette and CMYK are converted to RGB. Unsigned integers of 9 to 16 bits are reduced to their upper 8 bits,
by the number of bits that the file declares, whatever values it holds. Other integers and floating-point numbers are
refused: no file says which of their values is white.

Decoding an image takes at most 1.1 GB of memory besides its file, and mostly 3 to 8 bytes a pixel.
"""

import functools
import io
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from dlsr.errors import ImageError, ImageTooLargeError, MissingExtraError, one_line

MAX_PIXELS = 89_478_485
"""Larger images are refused as decompression bombs (Pillow's own warning limit). See `most_pixels`."""

MAX_SIDE = 65_535
"""Images with a longer side are refused, since the memory that resizing takes grows with it."""

_SMALLER_BY = {"WEBP": 1.5, "JPEG2000": 2.0}
"""How much smaller an image must be, since its decoder takes up to 18 or 24 bytes of memory a pixel instead of 12."""

MAX_PLAIN_BYTES = 2**23
"""Larger PPM files whose pixels are written as text are refused, since Pillow takes long for their comments."""

MAX_SCANS = 100
"""JPEGs with more scans are refused: each costs time for all pixels, and a dozen bytes. Encoders write at most 20."""

MAX_TEXT_HEADER = 65_536
"""Longer headers of PPM files are refused, since Pillow takes half a second for a megabyte of them."""

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000", "DIB", "TGA")
"""Formats that are decoded, by Pillow's names: raster formats whose decoders run no other program. Tried in turn."""

UNREADABLE = (ImageError, OSError, MemoryError)
"""What reading and decoding an image raise. Each costs that image only."""

NO_MEMORY = "there is not enough memory for it"

_STRIP_PIXELS = 2**21
"""Pixels that are converted to RGB at once."""
_TILE_SIDES = (322, 323)
"""Tags of a TIFF, as are the next two."""
_SAMPLE_FORMAT = 339
_PLANES = 284
_SIGNED = 2
"""A value of `_SAMPLE_FORMAT`."""
_SEPARATE = 2
"""A value of `_PLANES`: all red values, then all green ones, .."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""
_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
"""Where a part of a JPEG begins; the data of a scan have none inside."""
_END = b"\xff\xd9"
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})

Decoding = Literal["full", "draft"]
DECODINGS: tuple[Decoding, ...] = get_args(Decoding)
DRAFT_MARGIN = 2
"""A draft has at least this many times the width and height that it is resized to. With 1 its pixels differ twice as
much from those of the full image, and decoding takes about as long."""


def decode(raw: object, draft: int | None = None) -> Image.Image:
    """Decode to an RGB image, see the module's docstring.

    Args:
        raw: encoded bytes, a PIL image, an array of shape `(H, W)` or `(H, W, 1 | 3 | 4)`, or a torch tensor of
            shape `(1 | 3, H, W)`. Arrays are uint8, tensors uint8 or float in `[0, 1]`.
        draft: the width and height in pixels that the image will be resized to. A JPEG is then decoded at 1/2, 1/4 or
            1/8 of its size, if that is at least `DRAFT_MARGIN` times as large. This is faster and gives slightly
            different pixels. None decodes at full size.

    Raises:
        ImageError: with the reason, if it cannot be decoded.
        ImageTooLargeError: if it has more pixels than `most_pixels`, or a side over `MAX_SIDE`.
    """
    with undecodable():
        if isinstance(raw, bytes):
            image: Image.Image = opened(raw)
        elif isinstance(raw, Image.Image):
            image = raw
        else:
            image = _image_from_array(raw)
        _check_size(image)
        if draft is not None:
            image.draft(None, (DRAFT_MARGIN * draft, DRAFT_MARGIN * draft))
        image.load()
        bits = _bits(image)
        decoded = _to_rgb(_upright(image), bits)
        if bits > 8 and _is_negative(image):
            decoded = ImageOps.invert(decoded)
        return decoded.copy() if decoded is raw else decoded


@contextmanager
def undecodable() -> Iterator[None]:
    """Raise errors of the block as an ImageError with the reason.

    Decoders of damaged files raise errors of any kind: ValueError, SyntaxError, struct.error, ..
    """
    try:
        yield
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(NO_MEMORY) from None
    except Exception as error:
        raise ImageError(f"cannot be decoded: {one_line(error)}") from error


def most_pixels(format: str | None) -> int:
    """How many pixels an image may have, by Pillow's name of its format."""
    return int(MAX_PIXELS / _SMALLER_BY.get(format or "", 1.0))


def pixels_of(raw: bytes) -> int:
    """The number of pixels that decoding an image takes memory for, read from its header without decoding it.

    Raises:
        ImageError: with the reason, if the header cannot be read.
        ImageTooLargeError: if the header says more than twice `MAX_PIXELS`.
    """
    with undecodable():
        return _pixels(opened(raw))


def opened(raw: bytes) -> Image.Image:
    """An encoded image, of which only the header is read. Errors are of any kind, see `undecodable`."""
    if not raw:
        raise ImageError("empty file")
    _check_text_header(raw)
    _check_scans(raw)
    try:
        return Image.open(io.BytesIO(raw), formats=FORMATS)
    except UnidentifiedImageError:
        if raw[4:8] == b"ftyp" and raw[8:12] in _HEIF_BRANDS:
            return _opened_heif(raw)
        raise ImageError(_why_unidentified(raw[:16])) from None
    except Image.DecompressionBombError:
        raise ImageTooLargeError(f"more than {2 * MAX_PIXELS} pixels are over the limit of {MAX_PIXELS}") from None


def _opened_heif(raw: bytes) -> Image.Image:
    _register_heif()
    try:
        return Image.open(io.BytesIO(raw), formats=("HEIF",))
    except UnidentifiedImageError:
        raise ImageError("not an image, or of an unknown format") from None


@functools.cache
def _register_heif() -> None:
    try:
        import pillow_heif  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise ImageError(str(MissingExtraError("pillow-heif", "heic"))) from None
    pillow_heif.register_heif_opener()


def _why_unidentified(prefix: bytes) -> str:
    Image.init()
    for name, (_, accepts) in Image.OPEN.items():
        if name not in FORMATS and accepts is not None and accepts(prefix) is True:
            return f"{name} files are not read; convert to PNG or JPEG"
    return "not an image, or of an unknown format"


def _check_text_header(raw: bytes) -> None:
    """Refuse a PPM file with much text, which is read a byte or a word at a time."""
    if len(raw) <= MAX_TEXT_HEADER or raw[:1] != b"P":
        return
    if raw[1:2] in b"123" and len(raw) > MAX_PLAIN_BYTES:
        raise ImageTooLargeError(f"{len(raw)} bytes of plain text are over the limit of {MAX_PLAIN_BYTES}")
    words = re.sub(rb"#[^\r\n]*", b"", raw[:MAX_TEXT_HEADER]).split(maxsplit=4)
    # Type, width and height; and the largest value, except of bitmaps.
    if len(words) < (3 if raw[1:2] in b"14" else 4):
        raise ImageError(f"its header is over the limit of {MAX_TEXT_HEADER} bytes")


def _check_scans(raw: bytes) -> None:
    """Refuse a progressive JPEG that holds its decoder for minutes."""
    # What is behind the image, such as a film, may have the bytes of a scan by chance; then its parts are counted.
    if raw.startswith(b"\xff\xd8") and raw.count(_SCAN) > MAX_SCANS and (scans := _scans(raw)) > MAX_SCANS:
        raise ImageTooLargeError(f"{scans} scans are over the limit of {MAX_SCANS}")


def _scans(raw: bytes) -> int:
    scans, at = 0, 2
    while (marker := _MARKER.search(raw, at)) and marker[0] != _END:
        scans += marker[0] == _SCAN
        at = marker.end() + int.from_bytes(raw[marker.end() : marker.end() + 2])
    return scans


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > (most := most_pixels(image.format)):
        raise ImageTooLargeError(f"{width}x{height} pixels are over the limit of {most}")
    if (pixels := _pixels(image)) > most:
        raise ImageTooLargeError(f"tiles of {pixels} pixels are over the limit of {most}")
    if max(width, height) > MAX_SIDE:
        raise ImageTooLargeError(f"{width}x{height} pixels have a side over the limit of {MAX_SIDE}")
    if min(width, height) < 1:
        raise ImageError(f"{width}x{height} pixels are none")


def _pixels(image: Image.Image) -> int:
    """Pixels of an image, or of a tile of a TIFF that is larger: a whole tile is decoded at once."""
    tile = [image.tag_v2.get(tag, 0) for tag in _TILE_SIDES] if isinstance(image, TiffImageFile) else (0, 0)
    return max(image.width * image.height, math.prod(map(int, tile)))


def _image_from_array(raw: object) -> Image.Image:
    # Who has a tensor has imported PyTorch, which nothing else here needs.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(raw, torch.Tensor):
        array = _array_from_tensor(raw.cpu().numpy())
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


def _array_from_tensor(array: NDArray[Any]) -> NDArray[Any]:
    """The values of a tensor, with its channels last and as whole numbers."""
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ImageError("a float tensor must lie in [0, 1]; drop normalisation from the dataset")
        array = np.rint(array * 255).astype(np.uint8)
    return array.transpose(1, 2, 0) if array.ndim == 3 else array


def _bits(image: Image.Image) -> int:
    """How many bits a channel of an image has.

    Raises:
        ImageError: if its pixels have no known range.
    """
    if isinstance(image, TiffImageFile):
        _check_samples(image)
    if image.mode == "F":
        raise ImageError("floating-point pixels have no known range; convert to 8 bits")
    if image.mode.startswith("I;16"):
        declared = image.tag_v2.get(ExifTags.Base.BitsPerSample, (16,)) if isinstance(image, TiffImageFile) else (16,)
        return int(declared[0])
    if image.mode == "I":
        if image.format in ("PPM", "PNG"):  # Pillow scales their values to 16 bits
            return 16
        raise ImageError("signed and 32-bit integers have no known range; convert to 8 or unsigned 16 bits")
    return 8


def _check_samples(image: TiffImageFile) -> None:
    """Refuse what Pillow would read wrongly, as unsigned or as 8 bits."""
    tags = image.tag_v2
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise ImageError("signed integers have no known range; convert to 8 or unsigned 16 bits")
    planes = tags.get(_PLANES) == _SEPARATE and tags.get(ExifTags.Base.Compression, 1) == 1
    if planes and max(tags.get(ExifTags.Base.BitsPerSample, (8,))) > 8:
        raise ImageError("separate planes of more than 8 bits are not read; store pixel by pixel, or convert to 8 bits")


def _is_negative(image: Image.Image) -> bool:
    """Whether 0 is white in a TIFF. Pillow inverts such images itself if they have 8 bits."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == 0


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an image; 1, upright, if its EXIF data are damaged, as they are no part of its pixels."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:
        return 1


def _upright(image: Image.Image) -> Image.Image:
    # Pillow's own function also writes the EXIF data anew, which fails if any of them are damaged.
    turn = _TURNS.get(orientation_of(image))
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image, bits: int) -> Image.Image:
    """Convert strip by strip, since some steps take many times the memory of the image."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    rgb = Image.new("RGB", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        rgb.paste(_strip_to_rgb(image.crop(box), bits), box)
    return rgb


def _strip_to_rgb(image: Image.Image, bits: int) -> Image.Image:
    if bits > 8:
        return Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def reason_of(error: Exception) -> str:
    """The reason why an image cannot be read, in one line. The error is one of `UNREADABLE`."""
    if isinstance(error, MemoryError):
        return NO_MEMORY
    return (error.strerror if isinstance(error, OSError) else None) or one_line(error)
