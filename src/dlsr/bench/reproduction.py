"""The paper's tables and figures: open the datasets, run the detectors, show results beside the printed numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlsr.bench.compare import (
    CompareSettings,
    OnMessage,
    Task,
    code_of,
    compare,
    digest_of,
    images_key,
    key_of,
    parameters_of,
    read_scores,
    scored_images,
    write_failures,
)
from dlsr.bench.datasets import Dataset, open_dataset
from dlsr.bench.figures import save_bars, save_distributions, save_over_time
from dlsr.bench.paper import PAPER, PaperTable
from dlsr.calibration.metrics import evaluate_scores
from dlsr.detector import Detector
from dlsr.encoding.pipeline import Encoded
from dlsr.errors import InputError, SettingsError
from dlsr.images.transforms import Protocol, protocol_transform
from dlsr.method.diffusion import skipping_steps
from dlsr.scorer_module import ModuleScorer
from dlsr.scorers import SCORES, Scorer

TABLES = tuple(dict.fromkeys(table.table for table in PAPER))
FIGURES = ("fig3", "fig4", "fig5", "fig6", "fig7", "fig8", "fig9", "table4", "ablation")
TIMES = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 100)
"""Times of fig. 4."""
ALSO = ("dlsr", "mahalanobis", "knn")
"""Added to every table: this project's default, and simple methods on the same features."""

SIX = ("svhn", "lsun-c", "lsun-r", "isun", "textures", "places365")
"""The OOD datasets of the figures, which are those of table 3."""
PAPER_SCORES = tuple(name for name, scorer in SCORES.items() if scorer.shared_network == SCORES["mfsim"].shared_network)
"""Scores of the paper's network."""

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Where:
    """The places of benchmark datasets, see `open_dataset`."""

    root: Path | None
    places: Mapping[str, Path]
    download: bool = False

    def open(self, name: str, part: Any = "test", against: str | None = None) -> Dataset:
        """Open a dataset, see `open_dataset`."""
        return open_dataset(name, self.root, part=part, against=against, places=self.places, download=self.download)


def open_task(id: str, ood: Sequence[str], where: Where) -> tuple[Task, dict[str, str]]:
    """The datasets of a benchmark, and for each OOD dataset that is missing the reason.

    Raises:
        InputError: if the ID dataset or all OOD datasets are missing.
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
        raise InputError(f"all OOD datasets are missing; {next(iter(missing.values()))}")
    opened = {"train": train, "ID": test, **found}
    remarks = {name: dataset.remarks for name, dataset in opened.items() if dataset.remarks}
    outside = {name: dataset.images for name, dataset in found.items()}
    return Task(train.images, train.labels, test.images, outside, remarks), missing


def run_table(
    table: str,
    where: Where,
    settings: CompareSettings,
    folder: Path,
    *,
    ids: Sequence[str] = (),
    ood: Sequence[str] = (),
    store: Path | None = None,
    on_message: OnMessage = lambda _: None,
) -> dict[str, Any]:
    """Run the detectors of a table of the paper.

    Args:
        table: a name of `TABLES`.
        where: places of the datasets.
        settings: settings of the comparison; without detectors, those of the table and `ALSO` are compared.
        folder: for finished runs; contact sheets of failures are written beside it.
        ids: names of ID datasets; the table's if empty.
        ood: names of OOD datasets; the table's if empty.
        store: folder of the feature store.
        on_message: callback with a line on the progress of each detector.

    Returns:
        A report for JSON: for each ID dataset the report of `compare`, with `missing` datasets and `printed` rows.

    Raises:
        SettingsError: for an unknown table.
    """
    if table not in TABLES:
        raise SettingsError(f"unknown table '{table}'; choose one of {', '.join(TABLES)}")
    parts = [part for part in PAPER if part.table == table]
    reports: dict[str, Any] = {}
    for id in ids or dict.fromkeys(part.id for part in parts):
        printed = [part for part in parts if part.id == id]
        wanted = tuple(ood) or (printed[0].ood if printed else parts[0].ood)
        names = settings.detectors or tuple(dict.fromkeys([*parts[0].rows, *ALSO]))
        on_message(f"{table}, ID {id}")
        try:
            task, missing = open_task(id, wanted, where)
        except InputError as error:
            reports[id] = {"why": str(error)}
            continue
        done = compare(task, replace(settings, detectors=names), folder, store=store, on_message=on_message)
        write_failures(folder, task, settings, done, folder.parent / f"{table}-{id}-failures.png")
        reports[id] = {**done, "missing": missing, "printed": [_printed(part) for part in printed]}
    return {"table": table, "ids": reports}


def _printed(table: PaperTable) -> dict[str, Any]:
    rows = {name: dict(zip(table.ood, numbers, strict=True)) for name, numbers in table.rows.items()}
    return {"encoder": table.encoder, "metric": table.metric, "rows": rows}


@dataclass(frozen=True)
class PaperNetwork:
    """The paper's network fitted to the ID dataset, and the features of all datasets."""

    detector: Detector
    encoded: Mapping[str, Encoded]
    """By dataset; `ID` is the ID test dataset."""

    def scores(self, scorer: Scorer) -> dict[str, Scores]:
        """Scores by dataset."""
        module, seed = ModuleScorer(scorer), self.detector.settings_.seed
        return {name: module.score(images.z0, images.digests, seed)[0] for name, images in self.encoded.items()}

    def scorer(self, score: str, t: Sequence[int] | None = None, initial: bool = False) -> Scorer:
        """Another score of the same network, along other times, or of the network after the first epoch."""
        learned = dict(self.detector.scorer_.state_dict())
        if initial:
            learned |= {
                name.replace("initial.", "lfdn."): value for name, value in learned.items() if "initial." in name
            }
        settings = self.detector.settings_.scorer.changed({} if t is None else {"t": tuple(t)})
        scorer = SCORES[score](settings, self.detector.channels_)
        scorer.load_state_dict(learned, assign=True)
        return scorer.to(ModuleScorer(self.detector.scorer_).device).eval()


@dataclass(frozen=True)
class FigureRun:
    """Images and settings from which the figures are drawn."""

    task: Task
    settings: CompareSettings
    folder: Path
    """Folder for fitted networks, from which later figures load them."""
    epochs: int | None = None
    """Epochs of the paper's network; None for its default."""
    store: Path | None = None
    """Folder of the feature store."""
    on_message: OnMessage = lambda _: None
    width: int | None = None
    """Width of the paper's network; None for its default."""

    def fit(self, **changes: Any) -> PaperNetwork:
        """Preset `paper`, with changes, fitted to the ID dataset or loaded, and the features of all datasets."""
        settings = self.settings
        train = self.task.train.sample(settings.train_limit)
        detector = Detector(
            settings.encoder,
            preset="paper",
            weights=settings.weights,
            store=self.store,
            **{"epochs": self.epochs, "width": self.width, **changes},
        )
        parameters, images = parameters_of(detector), digest_of(train)
        behind = [settings.protocol, images, images_key(parameters), code_of(detector)]
        model = self.folder / f"network-{key_of(parameters, *behind)}"
        if model.exists():
            detector = Detector.load(model, weights=settings.weights, store=self.store)
        else:
            self.on_message(f"fitting the paper's network{_described(changes)}")
            # The checkpoint stays: a later call with more epochs resumes from it.
            same = key_of({**parameters, "epochs": None}, *behind)
            checkpoint = self.folder / f"network-{same}.checkpoint"
            detector.fit(train, transform=protocol_transform(settings.protocol), checkpoint=checkpoint)
            detector.save(model)
        return self.with_images(detector, settings.protocol)

    def with_images(self, detector: Detector, protocol: Protocol) -> PaperNetwork:
        """A fitted network, and the features of the images to score in a protocol."""
        transform, extractor = protocol_transform(protocol), detector.extractor_
        images = scored_images(self.task, self.settings)
        encoded = {name: extractor.encode(part, transform=transform) for name, part in images.items()}
        for name, found in encoded.items():
            found.check_readable(f"images of '{name}'")
        return PaperNetwork(detector, encoded)

    def about_images(self) -> dict[str, Any]:
        """Numbers and SHA-256 of the images of each dataset, and remarks on them, as in a report of `compare`."""
        images = {"train": self.task.train.sample(self.settings.train_limit), **scored_images(self.task, self.settings)}
        return {
            "images": {name: len(part) for name, part in images.items()},
            "sha256": {name: digest_of(part) for name, part in images.items()},
            "remarks": {name: list(remarks) for name, remarks in self.task.remarks.items()},
        }


def _described(changes: Mapping[str, Any]) -> str:
    return " with " + ", ".join(f"{name} {value}" for name, value in changes.items()) if changes else ""


def first_and_last_epoch(network: PaperNetwork) -> dict[str, dict[str, Scores]]:
    """Fig. 3 (and 6, 7 with ResNet-50): MFsim by dataset, after the first and the best epoch."""
    return {
        "after the first epoch": network.scores(network.scorer("mfsim", initial=True)),
        "at the end": network.scores(network.scorer("mfsim")),
    }


def over_time(network: PaperNetwork, times: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """Fig. 4: average AUROC and FPR95 of each score over the time to which features are distorted."""
    found: dict[str, dict[str, list[float]]] = {}
    for score in PAPER_SCORES:
        rows = [average(network.scores(network.scorer(score, skipping_steps(t, min(t, 3))))) for t in times]
        found[score] = {key: [row[key] for row in rows] for key in rows[0]}
    return found


def over_layers(run: FigureRun, whole: PaperNetwork) -> dict[str, dict[str, float]]:
    """Fig. 5: MFsim on the last stage alone and on all stages."""
    stages = whole.detector.extractor_.encoder.spec.stages
    last = run.fit(stages=(stages[-1],))
    return {
        f"stage {stages[-1]} alone": average(last.scores(last.scorer("mfsim"))),
        "all stages": average(whole.scores(whole.scorer("mfsim"))),
    }


def over_sizes(run: FigureRun, whole: PaperNetwork) -> dict[str, dict[str, float]]:
    """Table 4: AUROC of each score with the paper's network, with half its width and with half its blocks."""
    c = sum(whole.detector.channels_)
    networks = {
        f"width {2 * c}, 16 blocks": whole,
        f"width {c}, 16 blocks": run.fit(width=c),
        f"width {2 * c}, 8 blocks": run.fit(blocks=8),
    }
    return {
        name: {score: average(network.scores(network.scorer(score)))["auroc"] for score in PAPER_SCORES}
        for name, network in networks.items()
    }


def draw(figure: str, run: FigureRun, folder: Path) -> dict[str, Any]:
    """Measure the numbers of a figure and draw it as PNG.

    Args:
        figure: a name of `FIGURES`; `ablation` is figs. 4 and 5 and table 4; figs. 6 and 7 are fig. 3 for ResNet-50.
        run: images and settings.
        folder: for the PNG file.

    Returns:
        The numbers behind the figure, for JSON.

    Raises:
        SettingsError: for an unknown figure.
        InputError: if the detector of fig. 8 cannot run.
    """
    if figure not in FIGURES:
        raise SettingsError(f"unknown figure '{figure}'; choose one of {', '.join(FIGURES)}")
    if figure == "fig8":
        settings = replace(run.settings, detectors=("ddpm",))
        done = compare(run.task, settings, run.folder, store=run.store, on_message=run.on_message)
        (row,) = done["rows"]
        if "why" in row:
            raise InputError(f"ddpm cannot run: {row['why']}")
        scores = read_scores(run.folder, row["run_files"][0])
        save_distributions(folder / "fig8.png", {"DDPM on pixels": scores}, "reconstruction error")
        found = average({name: values[np.isfinite(values)] for name, values in scores.items()})
        return {"average": found, "training_images": row["training_images"], "unreadable": done["unreadable"]}
    network = run.fit()
    unreadable = {name: found.unreadable for name, found in network.encoded.items() if found.unreadable}
    if figure == "table4":
        return {"table4": over_sizes(run, network), "unreadable": unreadable}
    numbers: dict[str, Any] = {
        "unreadable": unreadable,
        "epochs": len(network.detector.fit_summary_.log),
        "width": network.detector.scorer_.state_dict()["lfdn.linear_in.bias"].numel(),
    }
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
        numbers["over_layers"] = over_layers(run, network)
        save_bars(folder / "fig5.png", numbers["over_layers"])
    if figure == "ablation":
        numbers["table4"] = over_sizes(run, network)
    return numbers


def average(scores: Mapping[str, Scores]) -> dict[str, float]:
    """Mean AUROC and FPR95 over the OOD datasets."""
    metrics = [evaluate_scores(scores["ID"], outside) for name, outside in scores.items() if name != "ID"]
    return {
        "auroc": float(np.mean([dataset.auroc for dataset in metrics])),
        "fpr95": float(np.mean([dataset.fpr95_id_positive for dataset in metrics])),
    }
