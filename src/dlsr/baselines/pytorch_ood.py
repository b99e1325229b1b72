"""Access to the detectors of pytorch-ood, an optional extra."""

from typing import Any

from dlsr.errors import MissingExtraError


def pytorch_ood_detector(name: str) -> Any:
    """A detector class of pytorch-ood.

    Raises:
        MissingExtraError: if pytorch-ood is not installed.
    """
    try:
        from pytorch_ood import detector  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise MissingExtraError("pytorch-ood", "bench") from None
    return getattr(detector, name)
