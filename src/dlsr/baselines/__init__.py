"""Detectors to compare with: those of the paper and those of other libraries, behind one interface."""

from dlsr.baselines.registry import DETECTORS, DetectorInfo, make_detector

__all__ = ["DETECTORS", "DetectorInfo", "make_detector"]
