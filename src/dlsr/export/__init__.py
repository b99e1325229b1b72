"""A fitted detector as one graph that runs without dlsr."""

from dlsr.export.graph import export
from dlsr.export.int8 import export_int8

__all__ = ["export", "export_int8"]
