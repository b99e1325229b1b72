"""Every error that a user can cause, as one tree.

    DlsrError
    ├── SettingsError          a parameter or combination of parameters that cannot work
    ├── InputError             what was given to score or fit cannot be used as a whole
    │   ├── NoImagesError      nothing there, or nothing readable there
    │   └── TooFewImagesError  not enough to fit, validate or calibrate
    ├── ImageError             one image cannot be read (never stops a batch)
    │   ├── ImageTooLargeError it has too many pixels
    │   └── NoSuchImageError   a clip was shorter than it seemed
    ├── FeatureError           features of the wrong shape or kind, or not finite
    ├── WeightsError           encoder weights missing, damaged or not those of the encoder
    ├── ArtifactError          a model directory, checkpoint or feature store that cannot be trusted
    ├── NotFittedError         a detector asked before `fit`
    ├── OutputError            a result that cannot be written
    ├── ExportError            an exported graph that does not compute what it should
    └── MissingExtraError      an optional dependency that is not installed

Messages are one line and end with the remedy.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Self


class DlsrError(Exception):
    """Base of all errors raised on purpose by dlsr."""


class SettingsError(DlsrError):
    """A parameter, or a combination of parameters, that cannot work."""


class InputError(DlsrError):
    """What was given to score or fit cannot be used as a whole."""


class NoImagesError(InputError):
    """There is no image, or no readable image, where images were expected."""

    @classmethod
    def of_unreadable(cls, count: int, what: str, reasons: Iterable[tuple[str, str]]) -> Self:
        """The error if all of some images cannot be read.

        Args:
            count: how many there are, at least one.
            what: what they are, such as `images`.
            reasons: names of unreadable images and the reasons, of which the first is shown.
        """
        first = next(iter(reasons), None)
        why = "a clip ends before them" if first is None else f"the first, {first[0]}: {first[1]}"
        return cls(f"none of {count} {what} can be read; {why}")


class TooFewImagesError(InputError):
    """There are images, but not enough to fit, validate or calibrate."""


class ImageError(DlsrError):
    """One image cannot be read. The message is the reason, without the name."""


class ImageTooLargeError(ImageError):
    """An image has more pixels than are decoded: a decompression bomb, or as good as one."""


class NoSuchImageError(ImageError):
    """There is no such image, as only reading could tell: a clip was shorter than it seemed. It is left out."""


class FeatureError(DlsrError):
    """Features have the wrong shape or type, or hold NaN or infinity."""


class WeightsError(DlsrError):
    """Encoder weights are missing, damaged, or not those of the encoder."""


class ArtifactError(DlsrError):
    """A model directory, checkpoint or feature store is damaged, foreign or newer than this dlsr."""


class NotFittedError(DlsrError):
    """The detector was asked for a score before it was fitted."""


class OutputError(DlsrError):
    """A result cannot be written."""


class ExportError(DlsrError):
    """An exported graph does not compute what it should."""


class MissingExtraError(DlsrError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str | None) -> None:
        """`extra` is None for what `pip install dlsr` brings along."""
        wanted = f"'dlsr[{extra}]'" if extra else f"dlsr {package}"
        super().__init__(f"{package} is not installed; run: pip install {wanted}")
        self._arguments = package, extra

    def __reduce__(self) -> tuple[type[Self], tuple[str, str | None]]:
        """Errors of another process come back pickled, which by default gives `__init__` the message alone."""
        return type(self), self._arguments


_FOR_FITS = {"torch", "torchvision", "timm", "sklearn", "scipy", "matplotlib", "onnx", "onnxscript"}


@contextmanager
def missing_told() -> Iterator[None]:
    """A package that is missing inside it is a MissingExtraError, if it is one that only fits need."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _FOR_FITS:
            raise
        raise MissingExtraError(package, "fit") from error


def one_line(error: Exception) -> str:
    """What an error of another library says, in one line; its kind, if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
