"""The detectors that the paper compares with, behind one interface."""

from dlsr.baselines.base import Baseline
from dlsr.baselines.registry import DETECTORS, DetectorInfo, make_detector

__all__ = ["DETECTORS", "Baseline", "DetectorInfo", "make_detector"]
