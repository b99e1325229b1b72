"""Resizing, by Pillow or by the Rust library `fast_image_resize` (package `cykooz.resizer`).

Both convolve with the same kernels in 8 bits, so their pixels rarely differ by more than 1 of 255. The second is five
to seven times as fast. It has no wheels for some platforms, such as Linux on ARM.
"""

import functools
from importlib import metadata
from importlib.util import find_spec
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dlsr.errors import SettingsError
from dlsr.images.decode import undecodable

Interpolation = Literal["bilinear", "bicubic"]
Resizer = Literal["pillow", "cykooz"]
RESIZERS: tuple[Resizer, ...] = get_args(Resizer)

_PACKAGES: dict[Resizer, str] = {"pillow": "pillow", "cykooz": "cykooz.resizer"}
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def resize(
    image: Image.Image, size: int, interpolation: Interpolation, resizer: Resizer = "pillow"
) -> NDArray[np.uint8]:
    """Resize an RGB image to `size` x `size` pixels: uint8 array of shape `(size, size, 3)`.

    Raises:
        ImageError: if there is not enough memory.
        SettingsError: if the resizer is not installed.
    """
    cykooz, options = (None, None) if resizer == "pillow" else _cykooz(interpolation)
    if image.size == (size, size):
        return np.asarray(image, dtype=np.uint8)
    with undecodable():
        if cykooz is None:
            return np.asarray(image.resize((size, size), _RESAMPLING[interpolation]), dtype=np.uint8)
        resized = Image.new("RGB", (size, size))
        # A new one each time, since it keeps its buffers and serves one thread only.
        cykooz.Resizer().resize_pil(image, resized, options)
        return np.asarray(resized, dtype=np.uint8)


def choose_resizer(resizer: str) -> Resizer:
    """Check a resizer's name and resolve `auto`: `cykooz` if it is installed, else `pillow`.

    Raises:
        SettingsError: for an unknown name, or if it is not installed.
    """
    if resizer == "auto":
        return "cykooz" if find_spec("cykooz_resizer") else "pillow"
    if resizer == "pillow":
        return "pillow"
    if resizer == "cykooz":
        _cykooz("bicubic")
        return "cykooz"
    raise SettingsError(f"unknown resizer '{resizer}'; choose one of auto, {', '.join(RESIZERS)}")


def resizer_version(resizer: Resizer) -> str:
    """Name and version of the package of a resizer. Raises SettingsError if it is not installed."""
    try:
        return f"{_PACKAGES[resizer]} {metadata.version(_PACKAGES[resizer])}"
    except metadata.PackageNotFoundError:
        raise _not_installed() from None


@functools.cache
def _cykooz(interpolation: Interpolation) -> tuple[Any, Any]:
    """The module, and its options for an interpolation. Its Catmull-Rom is Pillow's bicubic kernel."""
    try:
        import cykooz_resizer  # noqa: PLC0415 - not on all platforms
    except ImportError:
        raise _not_installed() from None
    kinds = cykooz_resizer.FilterType
    kind = {"bilinear": kinds.bilinear, "bicubic": kinds.catmull_rom}[interpolation]
    return cykooz_resizer, cykooz_resizer.ResizeOptions(cykooz_resizer.ResizeAlg.convolution(kind))


def _not_installed() -> SettingsError:
    return SettingsError(
        "cykooz.resizer is not installed, with which images are resized here; run: pip install cykooz.resizer, or fit "
        "with --resizer pillow"
    )
