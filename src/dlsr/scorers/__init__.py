"""From features to scores: one file a score. Each module registers its scores when it is imported."""

from importlib import import_module
from pkgutil import iter_modules

from dlsr.scorers.base import PRESETS, SCORES, Scorer, Settings, register, resolve
from dlsr.scorers.settings import ScorerSettings

__all__ = ["PRESETS", "SCORES", "Scorer", "ScorerSettings", "Settings", "register", "resolve"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
