"""Decoding to RGB. An image that cannot be decoded raises an ImageError with the reason.

EXIF rotation is applied. Of an animation, the first frame is used. Transparent images are composited over white.
Greyscale, palette and CMYK are converted to RGB. 16-bit values are reduced to their upper 8 bits.
"""

import io
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from dlsr.errors import ImageError, ImageTooLargeError, one_line

MAX_PIXELS = 89_478_485
"""Larger images are refused as decompression bombs (Pillow's own warning limit)."""

FORMATS = frozenset({"AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP"})
"""Formats that are decoded, by Pillow's names: raster formats whose decoders run no other program."""

Interpolation = Literal["bilinear", "bicubic"]
Decoding = Literal["full", "draft"]
DECODINGS: tuple[Decoding, ...] = get_args(Decoding)


def decode(raw: object, draft: int | None = None) -> Image.Image:
    """Decode to an RGB image, see the module's docstring.

    Args:
        raw: encoded bytes, a PIL image, an array of shape `(H, W)` or `(H, W, 1 | 3 | 4)`, or a torch tensor of
            shape `(1 | 3, H, W)`. Arrays are uint8, tensors uint8 or float in `[0, 1]`.
        draft: decode a JPEG at 1/2, 1/4 or 1/8 of its size, but at least at this width and height in pixels. This is
            faster and gives slightly different pixels. None decodes at full size.

    Raises:
        ImageError: with the reason, if it cannot be decoded.
        ImageTooLargeError: if it has more than `MAX_PIXELS`.
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
    # Decoders of damaged files raise errors of any kind: ValueError, SyntaxError, struct.error, ..
    except Exception as error:
        raise _undecodable(error) from error


def pixels_of(raw: bytes) -> int:
    """The number of pixels of an encoded image, read from its header without decoding it.

    Raises:
        ImageError: with the reason, if the header cannot be read.
        ImageTooLargeError: if the header says more than twice `MAX_PIXELS`.
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


def reason_of(error: ImageError | OSError) -> str:
    """The reason why an image cannot be read, in one line."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
