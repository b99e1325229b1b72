"""Names of image files: which files are images, and how their names are written."""

SUFFIXES = frozenset(
    {
        ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm",
        ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
    }
)  # fmt: skip
"""Files with these suffixes are the images of a folder or tar."""


def in_utf8(name: str) -> str:
    r"""A file's name for reports. Bytes that are not valid UTF-8, as Python names them, are written as `\udce9`."""
    return name.encode("utf-8", "backslashreplace").decode()
