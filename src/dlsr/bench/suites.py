"""The paper's tables and figures, each by one command: sets found, detectors run, results beside the printed ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlsr.bench.compare import (
    CompareSettings,
    Sets,
    compare,
    digest_of,
    key_of,
    read_scores,
    scored_images,
    write_failures,
)
from dlsr.bench.datasets import Dataset, open_dataset
from dlsr.bench.figures import save_bars, save_distributions, save_over_time
from dlsr.bench.paper import PAPER, PaperTable
from dlsr.calibration.metrics import evaluate_scores
from dlsr.config import RestorationSettings
from dlsr.detector import Detector
from dlsr.encoding.pipeline import Encoded
from dlsr.errors import InputError, SettingsError
from dlsr.images.transforms import protocol_transform
from dlsr.method.diffusion import skipping_steps
from dlsr.scorers.base import PaperScorer, Scorer, score_rows
from dlsr.scorers.fitting import restored_scorer

TABLES = tuple(dict.fromkeys(table.table for table in PAPER))
FIGURES = ("fig3", "fig4", "fig5", "fig6", "fig7", "fig8", "fig9", "table4", "ablation")
TIMES = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 100)
ALSO = ("dlsr", "mahalanobis", "knn")
"""Added to every table: this project's default, and the simple methods on the same features."""

SIX = ("svhn", "lsun-c", "lsun-r", "isun", "textures", "places365")
"""The OOD sets of the figures (those of table 3)."""

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Where:
    """Where benchmark sets are found, see `open_dataset`."""

    root: Path | None
    places: Mapping[str, Path]
    download: bool = False

    def open(self, name: str, part: Any = "test", against: str | None = None) -> Dataset:
        """As `open_dataset`."""
        return open_dataset(name, self.root, part=part, against=against, places=self.places, download=self.download)


def open_sets(id: str, ood: Sequence[str], where: Where) -> tuple[Sets, dict[str, str]]:
    """The sets of a benchmark; and of OOD sets that are not there, why.

    Raises:
        InputError: if the ID set is not there, or none of the OOD sets.
    """
    train, test = where.open(id, "train"), where.open(id)
    found: dict[str, Dataset] = {}
    missing: dict[str, str] = {}
    for name in ood:
        try:
            found[name] = where.open(name, against=id)
        except InputError as error:
            missing[name] = str(error)
    if not found:
        raise InputError(f"none of the OOD sets is there; {next(iter(missing.values()))}")
    remarks = {name: one.remarks for name, one in {"train": train, "ID": test, **found}.items() if one.remarks}
    return Sets(train.images, train.labels, test.images, {k: v.images for k, v in found.items()}, remarks), missing


def run_table(
    table: str,
    where: Where,
    settings: CompareSettings,
    folder: Path,
    *,
    ids: Sequence[str] = (),
    ood: Sequence[str] = (),
    store: Path | None = None,
    said: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run the detectors of a table of the paper.

    Args:
        table: of `TABLES`.
        where: the sets are.
        settings: how to compare; without detectors, those of the table and `ALSO`.
        folder: where finished runs are kept; contact sheets of failures are written beside it.
        ids: ID sets; the table's if empty.
        ood: OOD sets; likewise.
        store: of features.
        said: told of each detector.

    Returns:
        A report ready for JSON: for each ID set what `compare` gives, `missing` sets, and `printed` rows.
    """
    if table not in TABLES:
        raise SettingsError(f"unknown table '{table}'; choose among {', '.join(TABLES)}")
    parts = [one for one in PAPER if one.table == table]
    reports: dict[str, Any] = {}
    for id in ids or dict.fromkeys(one.id for one in parts):
        printed = [one for one in parts if one.id == id]
        wanted = tuple(ood) or (printed[0].ood if printed else parts[0].ood)
        names = settings.detectors or tuple(dict.fromkeys([*parts[0].rows, *ALSO]))
        said(f"{table}, ID {id}")
        try:
            sets, missing = open_sets(id, wanted, where)
        except InputError as error:
            reports[id] = {"why": str(error)}
            continue
        done = compare(sets, replace(settings, detectors=names), folder, store=store, said=said)
        write_failures(folder, sets, settings, done, folder.parent / f"{table}-{id}-failures.png")
        reports[id] = {**done, "missing": missing, "printed": [_printed(one) for one in printed]}
    return {"table": table, "ids": reports}


def _printed(table: PaperTable) -> dict[str, Any]:
    rows = {name: dict(zip(table.ood, numbers, strict=True)) for name, numbers in table.rows.items()}
    return {"encoder": table.encoder, "metric": table.metric, "rows": rows}


@dataclass(frozen=True)
class PaperNetwork:
    """The paper's network fitted to the ID set, and the features of all sets."""

    detector: Detector
    encoded: Mapping[str, Encoded]
    """By set; the ID set's name is `ID`."""

    def scores(self, scorer: Scorer) -> dict[str, Scores]:
        """Scores by set."""
        seed = self.detector.settings_.seed
        return {
            name: score_rows(scorer, torch.from_numpy(one.z0), one.digests, seed)[0].double().numpy()
            for name, one in self.encoded.items()
        }

    def scorer(self, score: Any, steps: Sequence[int] | None = None, initial: bool = False) -> Scorer:
        """Another score of the same network: along other steps, or of the network after the first epoch."""
        settings = self.detector.settings_.model_copy(update={"score": score})
        if steps is not None:
            settings = settings.model_copy(update={"restoration": RestorationSettings(steps=tuple(steps))})
        scorer = restored_scorer(
            settings, self.detector.channels_, self.detector.learned_tensors(), torch.device("cpu")
        )
        assert isinstance(scorer, PaperScorer)
        if not initial:
            return scorer
        return PaperScorer(score, scorer.initial, scorer.initial, settings, self.detector.channels_)


@dataclass(frozen=True)
class FigureRun:
    """What the figures are drawn from."""

    sets: Sets
    settings: CompareSettings
    folder: Path
    """Where fitted networks are kept, so that the next figure finds them."""
    epochs: int | None = None
    """Of the paper's network; None for its own."""
    store: Path | None = None
    """Of features."""
    said: Callable[[str], None] = lambda _: None

    def fit(self, **changes: Any) -> PaperNetwork:
        """Preset `paper` fitted to the ID set, or as an earlier figure fitted it, and the features of all sets."""
        settings = self.settings
        train = self.sets.train.sample(settings.train_limit)
        detector = Detector(
            settings.encoder,
            preset="paper",
            weights=settings.weights,
            epochs=self.epochs,
            store=self.store,
            device="cpu",
            **changes,
        )
        parameters = {**detector.get_params(), "store": None}
        model = self.folder / f"network-{key_of(parameters, settings.protocol, digest_of(train))}"
        transform = protocol_transform(settings.protocol)
        if model.exists():
            detector = Detector.load(model, weights=settings.weights, store=self.store, device="cpu")
        else:
            self.said(f"fitting the paper's network{_told(changes)}")
            checkpoint = model.with_suffix(".checkpoint")
            detector.fit(train, transform=transform, checkpoint=checkpoint)
            detector.save(model)
            checkpoint.unlink(missing_ok=True)
        images = scored_images(self.sets, settings)
        return PaperNetwork(detector, {name: detector.encode(one, transform=transform) for name, one in images.items()})


def _told(changes: Mapping[str, Any]) -> str:
    return " with " + ", ".join(f"{name} {value}" for name, value in changes.items()) if changes else ""


def first_and_last_epoch(network: PaperNetwork) -> dict[str, dict[str, Scores]]:
    """Fig. 3 (and 6, 7 with ResNet-50): MFsim by set, after the first and the best epoch."""
    return {
        "after the first epoch": network.scores(network.scorer("mfsim", initial=True)),
        "at the end": network.scores(network.scorer("mfsim")),
    }


def over_time(network: PaperNetwork, times: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """Fig. 4: average AUROC and FPR95 of each score over the time that features are distorted to."""
    found: dict[str, dict[str, list[float]]] = {}
    for score in ("mse", "lr", "mfsim"):
        rows = [average(network.scores(network.scorer(score, skipping_steps(t, min(t, 3))))) for t in times]
        found[score] = {key: [row[key] for row in rows] for key in rows[0]}
    return found


def over_layers(run: FigureRun) -> dict[str, dict[str, float]]:
    """Fig. 5: MFsim on the last stage alone against all stages."""
    whole = run.fit()
    stages = whole.detector.encoder_.spec.stages
    last = run.fit(stages=(stages[-1],))
    return {
        f"stage {stages[-1]} alone": average(last.scores(last.scorer("mfsim"))),
        "all stages": average(whole.scores(whole.scorer("mfsim"))),
    }


def over_sizes(run: FigureRun) -> dict[str, dict[str, float]]:
    """Table 4: each score with half the width and half the blocks of the paper's network."""
    found = {}
    c = sum(run.fit().detector.channels_)
    for name, changes in {
        f"width {2 * c}, 16 blocks": {},
        f"width {c}, 16 blocks": {"width": c},
        f"width {2 * c}, 8 blocks": {"blocks": 8},
    }.items():
        network = run.fit(**changes)
        found[name] = {s: average(network.scores(network.scorer(s)))["auroc"] for s in ("mse", "lr", "mfsim")}
    return found


def draw(figure: str, run: FigureRun, folder: Path) -> dict[str, Any]:
    """Run what a figure shows and write it as PNG to `folder`.

    Args:
        figure: of `FIGURES`; `ablation` is figs. 4 and 5 and table 4; figs. 6 and 7 are fig. 3 for ResNet-50.
        run: images and settings.
        folder: to write to.

    Returns:
        The numbers behind the picture, ready for JSON.
    """
    if figure not in FIGURES:
        raise SettingsError(f"unknown figure '{figure}'; choose among {', '.join(FIGURES)}")
    if figure == "fig8":
        settings = replace(run.settings, detectors=("ddpm",))
        done = compare(run.sets, settings, run.folder, store=run.store, said=run.said)
        (row,) = done["rows"]
        if "why" in row:
            raise InputError(f"ddpm cannot run: {row['why']}")
        scores = read_scores(run.folder, row["run_files"][0])
        save_distributions(folder / "fig8.png", {"DDPM on pixels": scores}, "reconstruction error")
        return {"average": average({name: one[np.isfinite(one)] for name, one in scores.items()})}
    if figure == "table4":
        return {"table4": over_sizes(run)}
    network = run.fit()
    numbers: dict[str, Any] = {"epochs": len(network.detector.fit_summary_.log)}
    if figure in ("fig3", "fig6", "fig7"):
        panels = first_and_last_epoch(network)
        save_distributions(folder / f"{figure}.png", panels, "MFsim")
        numbers["averages"] = {title: average(scores) for title, scores in panels.items()}
    if figure == "fig9":
        panels = {score: network.scores(network.scorer(score)) for score in ("mse", "mfsim")}
        save_distributions(folder / "fig9.png", panels, "score")
        numbers["averages"] = {title: average(scores) for title, scores in panels.items()}
    if figure in ("fig4", "ablation"):
        numbers |= {"times": TIMES, "over_time": over_time(network, TIMES)}
        save_over_time(folder / "fig4.png", TIMES, numbers["over_time"])
    if figure in ("fig5", "ablation"):
        numbers["over_layers"] = over_layers(run)
        save_bars(folder / "fig5.png", numbers["over_layers"])
    if figure == "ablation":
        numbers["table4"] = over_sizes(run)
    return numbers


def average(scores: Mapping[str, Scores]) -> dict[str, float]:
    """Mean AUROC and FPR95 over OOD sets."""
    metrics = [evaluate_scores(scores["ID"], one) for name, one in scores.items() if name != "ID"]
    return {
        "auroc": float(np.mean([one.auroc for one in metrics])),
        "fpr95": float(np.mean([one.fpr95_id_positive for one in metrics])),
    }
