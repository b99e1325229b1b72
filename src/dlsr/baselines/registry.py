"""All detectors of `dlsr bench` by name.

To add a detector, add a file with its class, and an entry here. Entries are not beside the classes, since these import
PyTorch and `dlsr bench --list` should answer at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from dlsr.errors import SettingsError

Kind = Literal["generative on pixels", "generative on features", "classifier-based", "distance-based", "rival"]


@dataclass(frozen=True)
class DetectorInfo:
    """A detector, described without importing it. The defaults of its class are the full-size settings."""

    name: str
    kind: Kind
    paper: str
    make: Callable[..., Any]
    """Makes the detector; takes its settings by name."""
    needs_labels: bool = False
    needs_gpu: bool = False
    """Whether fitting at full size needs a GPU."""
    cost: str = ""
    """Rough cost of fitting at full size."""
    reduced: Mapping[str, Any] = field(default_factory=dict)
    """Settings with which a laptop fits it in minutes."""
    reduced_images: int | None = None
    """Most training images with these settings; None for all."""


def _lazily(module: str, name: str) -> Callable[..., Any]:
    def make(**settings: Any) -> Any:
        return getattr(import_module(f"dlsr.{module}"), name)(**settings)

    return make


def _detector(score: str) -> Callable[..., Any]:
    return lambda **settings: _lazily("detector", "Detector")(score=score, **settings)


def _classifier(name: str, class_name: str, paper: str) -> DetectorInfo:
    make = _lazily("baselines.classifier", class_name)
    return DetectorInfo(name, "classifier-based", paper, make, needs_labels=True, cost="one pass of the encoder")


def _trained(name: str, class_name: str, paper: str) -> DetectorInfo:
    return DetectorInfo(
        name,
        "classifier-based",
        paper,
        _lazily("baselines.classifier", class_name),
        needs_labels=True,
        needs_gpu=True,
        cost="an hour on a GPU",
        reduced={"width": 16, "epochs": 10},
        reduced_images=20_000,
    )


def _simclr(name: str, class_name: str, paper: str) -> DetectorInfo:
    return DetectorInfo(
        name,
        "distance-based",
        paper,
        _lazily("baselines.simclr", class_name),
        needs_gpu=True,
        cost="hours on a GPU",
        reduced={"width": 16, "epochs": 10, "batch_size": 256},
        reduced_images=20_000,
    )


def _rival(name: str, module: str, class_name: str, paper: str) -> DetectorInfo:
    make = _lazily(f"baselines.{module}", class_name)
    return DetectorInfo(name, "rival", f"{paper}, on our features", make, cost="seconds to minutes")


_OURS = "Yang et al. 2024, Diffusion-based Layer-wise Semantic Reconstruction"
_HALF_HOUR = "minutes on a GPU, hours on a CPU"
_SHORT = {"epochs": 2}

DETECTORS: Mapping[str, DetectorInfo] = {
    info.name: info
    for info in (
        DetectorInfo(
            "glow", "generative on pixels", "Kingma & Dhariwal 2018; Serrà et al. 2020",
            _lazily("baselines.glow", "Glow"), needs_gpu=True, cost="days on a GPU",
            reduced={"steps": 4, "hidden": 64, "epochs": 8, "lr": 1e-3},
            reduced_images=10_000,
        ),
        DetectorInfo(
            "pixelcnn++", "generative on pixels", "Salimans et al. 2017; Serrà et al. 2020",
            _lazily("baselines.pixelcnn", "PixelCNN"), needs_gpu=True, cost="days on a GPU",
            reduced={"channels": 16, "blocks": 1, "mixtures": 5, "dropout": 0.0, "epochs": 8, "lr": 2e-3},
            reduced_images=10_000,
        ),
        DetectorInfo(
            "vae", "generative on pixels", "Xiao et al. 2020, Likelihood Regret",
            _lazily("baselines.vae", "VAE"), needs_gpu=True, cost="an hour on a GPU; scoring is slow",
            reduced={"width": 16, "latent": 100, "epochs": 3, "lr": 2e-3, "regret_steps": 10, "regret_lr": 5e-4},
            reduced_images=4_000,
        ),
        DetectorInfo(
            "ddpm", "generative on pixels", "Graham et al. 2023, Denoising diffusion models for OOD detection",
            _lazily("baselines.ddpm", "DDPM"), needs_gpu=True, cost="a day on a GPU; scoring is slow",
            reduced={"width": 16, "starts": 5, "steps": 10, "epochs": 10, "batch_size": 32, "lr": 1e-3},
            reduced_images=10_000,
        ),
        DetectorInfo(
            "lmd", "generative on pixels", "Liu et al. 2023, Unsupervised OOD detection with diffusion inpainting",
            _lazily("baselines.lmd", "LMD"), needs_gpu=True, cost="a day on a GPU; scoring is slow",
            reduced={"width": 16, "attempts": 2, "steps": 20, "epochs": 10, "batch_size": 32, "lr": 1e-3},
            reduced_images=10_000,
        ),
        DetectorInfo(
            "diffguard", "generative on pixels", "Gao et al. 2023, DiffGuard", needs_labels=True, needs_gpu=True,
            make=_lazily("baselines.diffguard", "DiffGuard"), cost="a day on a GPU; scoring is slow",
            reduced={
                "width": 16, "steps": 10, "epochs": 10, "classifier_epochs": 8, "batch_size": 32, "lr": 1e-3,
            },
            reduced_images=10_000,
        ),
        DetectorInfo(
            "dlsr", "distance-based", "this project's default, see docs/design.md",
            _lazily("detector", "Detector"), cost="seconds",
        ),
        DetectorInfo(
            "dlsr+residual", "generative on features", "this project's variant of the paper's method",
            _detector("residual"), cost="a minute on a CPU",
        ),
        DetectorInfo(
            "dlsr+mse", "generative on features", _OURS, _detector("mse"), cost=_HALF_HOUR, reduced=_SHORT
        ),
        DetectorInfo("dlsr+lr", "generative on features", _OURS, _detector("lr"), cost=_HALF_HOUR, reduced=_SHORT),
        DetectorInfo(
            "dlsr+mfsim", "generative on features", _OURS, _detector("mfsim"), cost=_HALF_HOUR, reduced=_SHORT
        ),
        DetectorInfo(
            "autoencoder", "generative on features", f"{_OURS}, appendix B.2", _detector("autoencoder"),
            cost=_HALF_HOUR, reduced=_SHORT,
        ),
        DetectorInfo(
            "feature-vae", "generative on features", f"{_OURS}, table 11", _detector("feature-vae"),
            cost=_HALF_HOUR, reduced={"epochs": 6},
        ),
        _classifier("msp", "MSP", "Hendrycks & Gimpel 2017"),
        _classifier("energy", "Energy", "Liu et al. 2020"),
        _classifier("dice", "DICE", "Sun & Li 2022"),
        _classifier("ash-s", "ASHS", "Djurisic et al. 2022"),
        _trained("msp+trained", "TrainedMSP", "Hendrycks & Gimpel 2017, with its own network"),
        _trained("energy+trained", "TrainedEnergy", "Liu et al. 2020, with its own network"),
        _trained("dice+trained", "TrainedDICE", "Sun & Li 2022, with its own network"),
        _trained("ash-s+trained", "TrainedASHS", "Djurisic et al. 2022, with its own network"),
        _simclr("simclr+mahalanobis", "SimCLRMahalanobis", "Xiao et al. 2021"),
        _simclr("simclr+knn", "SimCLRKNN", "Sun et al. 2022"),
        DetectorInfo(
            "mahalanobis", "distance-based", "Lee et al. 2018, without classes, on our features",
            _detector("mahalanobis"), cost="seconds",
        ),
        DetectorInfo(
            "knn", "distance-based", "Sun et al. 2022, on our features", _detector("knn"), cost="seconds"
        ),
        _rival("anomalib+fre", "anomalib", "AnomalibFre", "Ndiour et al. 2023, by anomalib"),
        _rival("anomalib+dfm", "anomalib", "AnomalibDfm", "Ahuja et al. 2019, by anomalib"),
        _rival("pyod+iforest", "pyod", "PyODIForest", "Liu et al. 2008, by PyOD"),
        _rival("pyod+lof", "pyod", "PyODLOF", "Breunig et al. 2000, by PyOD"),
    )
}  # fmt: skip
"""Detectors by name."""


def make_detector(name: str, *, reduced: bool = False, **settings: Any) -> Any:
    """A detector of the registry, not fitted: a `dlsr.Detector` or a `dlsr.baselines.base.Baseline`.

    Args:
        name: a name of `DETECTORS`.
        reduced: use the settings with which a laptop fits it in minutes, instead of those at full size.
        **settings: settings that override these.

    Raises:
        SettingsError: for an unknown name, with the names that exist.
    """
    if name not in DETECTORS:
        raise SettingsError(f"unknown detector '{name}'; choose one of {', '.join(DETECTORS)}")
    info = DETECTORS[name]
    return info.make(**({**info.reduced, **settings} if reduced else settings))
