"""Formats of other tools that results are written in. A new one is a class in a file of its own, listed here."""

from dlsr.reports.formats.base import FolderFormat, ImageRoot
from dlsr.reports.formats.fiftyone import FiftyOne
from dlsr.reports.formats.label_studio import LabelStudio

__all__ = ["FORMATS", "FiftyOne", "FolderFormat", "ImageRoot", "LabelStudio"]

FORMATS: dict[str, type[FolderFormat]] = {one.name: one for one in (FiftyOne, LabelStudio)}
"""By name."""
