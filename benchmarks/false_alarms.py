"""Promised against realised false-alarm rates, over many folders drawn from each of four kinds of collections.

    python benchmarks/false_alarms.py --data ../shared/data --output docs/false-alarms.json

A folder is drawn, a detector is fitted to it and calibrated, and its rate is measured on images of the groups that were
not drawn, each group counting as one. "given": groups are known; "found": near copies are found; "none": each image is
taken for a group of its own. Draws are kept in `--work`, so an interrupted run resumes. Writes a JSON file with all
numbers, and a table and a picture beside it.
"""

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.stats import binom

from copies import augmented, derived, sample, sliding, tracks
from dlsr import Detector
from dlsr.artifact import installed_versions
from dlsr.calibration.copies import exact_groups
from dlsr.calibration.exchangeability import check
from dlsr.cli.console import progress_bars
from dlsr.encoding.store import default_store_root
from dlsr.errors import TooFewImagesError
from dlsr.files import write_json
from dlsr.images.sources import ImageDataset, open_images
from quality import write_report

RATES = (0.01, 0.05, 0.1)
CONFIDENCE = 0.95
MEASURED = 2000
"""At most this many images are scored in each draw."""
GROUPINGS = ("none", "found", "given")
TEST_PART = ", test part"
CALIBRATIONS = ("held-out", "leave-one-out")


@dataclass(frozen=True)
class Collection:
    """Features that folders are drawn from."""

    names: list[str]
    z0: NDArray[np.float32]
    digests: NDArray[np.uint8]
    groups: NDArray[np.intp]
    new: tuple[NDArray[np.float32], NDArray[np.uint8]] | None = None
    """Features and digests of a test part, that are measured on as well as the groups that are not drawn."""


def main(
    data: Annotated[Path, typer.Option(help="Folder with the tars of shared/data.")],
    output: Annotated[Path, typer.Option(help="JSON file to write, with a Markdown table and a picture beside it.")],
    work: Annotated[Path, typer.Option(help="Folder for finished draws.")],
    draws: Annotated[int, typer.Option(help="Folders drawn of each kind and size.")] = 200,
    sizes: Annotated[str, typer.Option(help="Images in a folder, separated by commas.")] = "60,200,1000,5000",
    score: str = "local",
    only: Annotated[str | None, typer.Option(help="Names of collections, separated by commas.")] = None,
    store: Path | None = None,
) -> None:
    work.mkdir(parents=True, exist_ok=True)
    made = collections(data)
    rows: list[dict[str, Any]] = []
    with progress_bars(quiet=False) as bars:
        for name in only.split(",") if only else made:
            collection: Collection | None = None
            for size in map(int, sizes.split(",")):
                path, advance = work / f"{name}-{size}-{score}.json", bars.images(f"{name}, {size} images", draws)
                done: list[dict[str, Any]] = json.loads(path.read_text())["draws"] if path.exists() else []
                advance(len(done))
                while len(done) < draws:
                    collection = collection or made[name](store or default_store_root())
                    if 2 * size > len(collection.z0):
                        break
                    done.append(drawn(collection, size, score, seed=len(done)))
                    write_json(path, {"draws": done})
                    advance(1)
                rows += summarised(name, size, done[:draws])
    content = {
        "command": "python benchmarks/false_alarms.py " + " ".join(sys.argv[1:]),
        "draws": draws,
        "rows": rows,
        "versions": installed_versions(),
    }
    write_report(output, content, markdown(content))
    picture(rows, output.with_suffix(".png"))


def collections(data: Path) -> dict[str, Callable[[Path], Collection]]:
    """The collections, by name. Each is encoded when it is first needed."""

    def exchangeable(store: Path) -> Collection:
        images = sample(data / "cifar10.tar", "/train/", 12_000, 0)
        return collection(images, np.arange(len(images)), store)

    def signs(store: Path) -> Collection:
        folder = tracks(data / "gtsrb.tar", 10_000)
        known = collection(folder.images, folder.siblings, store)
        items = [item for item in open_images(data / "gtsrb.tar").items if "/test/" in item.name]
        new = collection(ImageDataset(items), np.arange(len(items)), store)
        return replace(known, new=(new.z0, new.digests))

    def copies_of_cifar(store: Path) -> Collection:
        folder = derived(sample(data / "cifar10.tar", "/train/", 1500, 1), augmented)
        return collection(folder.images, folder.siblings, store)

    def video(store: Path) -> Collection:
        folder = derived(sample(data / "intel_scenes.tar", "/train/", 600, 1), sliding)
        return collection(folder.images, folder.siblings, store)

    return {
        "exchangeable": exchangeable,
        "tracks": signs,
        "augmented copies": copies_of_cifar,
        "sliding crops": video,
    }


def collection(images: ImageDataset, groups: NDArray[np.intp], store: Path) -> Collection:
    """Encode images, with the mean of each map: a third of the features, so that many detectors can be fitted."""
    encoded = Detector(pooling="mean", store=store).prepare_extractor().encode(images)
    return Collection(encoded.names, encoded.z0, encoded.digests, groups)


def drawn(collection: Collection, size: int, score: str, seed: int) -> dict[str, Any]:
    """Draw a folder, calibrate on it in all ways, and measure the rates."""
    random = np.random.default_rng(seed)
    order = random.permutation(np.unique(collection.groups))
    counts = np.bincount(collection.groups)[order]
    enough = int(np.searchsorted(np.cumsum(counts), size)) + 1
    inside = np.isin(collection.groups, order[:enough])
    folder = np.flatnonzero(inside)[:size]
    outside = random.permutation(np.flatnonzero(~inside))[:MEASURED]
    weights = 1 / np.bincount(collection.groups[outside])[collection.groups[outside]]
    measured = {"": (collection.z0[outside], collection.digests[outside], weights)}
    if collection.new is not None:
        measured[TEST_PART] = (*collection.new, np.ones(len(collection.new[0])))
    found: dict[str, Any] = {}
    alone, copies = counts.max() == 1, True  # if alone, the given groups are none
    for grouping in ("found", "none") if alone else ("found", "none", "given"):
        if grouping == "none" and not copies:  # then it is the same fit
            found |= {key.replace("found", "none", 1): value for key, value in found.items()}
            continue
        for calibration in CALIBRATIONS:
            detector = Detector(
                score=score,
                seed=seed,
                calibration=calibration,  # type: ignore[arg-type]
                false_alarm_rate=0.1,
                group_by="auto" if grouping == "found" else "none",
            )
            groups = [int(group) for group in collection.groups[folder]] if grouping == "given" else None
            try:
                detector.fit_features(collection.z0[folder], digests=collection.digests[folder], groups=groups)
            except TooFewImagesError:
                continue
            copies = detector.fit_summary_.groups < size
            for kind, (new, digests, counted) in measured.items():
                scores = detector.score_features(new, digests)
                for confidence in (None, CONFIDENCE):
                    key = f"{grouping}, {calibration}" + (f", confidence {confidence:g}" if confidence else "") + kind
                    found[key] = [rate_of(detector, scores, counted, rate, confidence) for rate in RATES]
            if calibration == "leave-one-out":
                calibrated, names = detector.calibration_, [collection.names[i] for i in folder]
                exact = exact_groups(collection.digests[folder]) if grouping == "found" else None
                tested = check(names, collection.z0[folder], calibrated.scores, calibrated.groups, seed, exact)
                found[f"{grouping}, fired"] = tested.fired
    return found


def rate_of(
    detector: Detector, scores: NDArray[np.float64], weights: NDArray[np.float64], rate: float, confidence: float | None
) -> float | None:
    """Share of new images called OOD; None if the calibration images are too few."""
    try:
        cut = detector.calibration_.threshold(rate, confidence)
    except TooFewImagesError:
        return None
    return float(np.average(scores > cut, weights=weights))


def summarised(name: str, size: int, done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean rates over draws; with a confidence, also the share of draws with a rate that is too high."""
    rows = []
    for key in sorted({key for draw in done for key in draw if not key.endswith("fired")}):
        calibration, kind = key.removesuffix(TEST_PART), TEST_PART if key.endswith(TEST_PART) else ""
        for i, rate in enumerate(RATES):
            values = np.array([draw[key][i] for draw in done if key in draw and draw[key][i] is not None])
            if not len(values):
                continue
            fired = [draw.get(f"{key.split(',')[0]}, fired", False) for draw in done]
            row = {
                "collection": name + kind,
                "images": size,
                "calibration": calibration,
                "rate": rate,
                "draws": len(values),
                "realised": float(values.mean()),
                "standard_deviation": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
                "too_high": float(((values if kind else without_noise(values)) > rate).mean()),
                "check_fired": float(np.mean(fired)),
            }
            rows.append(row | {"holds": holds(row)})
    return rows


def without_noise(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rates drawn towards their mean, so that their variance has no part due to the draw of the measured images.

    That part is taken for the variance of independent images. Those of a group are not, and its variance is larger.
    """
    variance, of_images = rates.var(), float((rates * (1 - rates)).mean()) / MEASURED
    kept = np.sqrt(max(0.0, 1 - of_images / variance)) if variance else 1.0
    return np.asarray(rates.mean() + kept * (rates - rates.mean()))


def holds(row: dict[str, Any]) -> bool:
    """Whether what is promised lies within the 99 % interval of what was measured."""
    if "confidence" in row["calibration"]:
        return bool(round(row["too_high"] * row["draws"]) <= binom.ppf(0.995, row["draws"], 1 - CONFIDENCE))
    return bool(row["realised"] <= row["rate"] + 2.576 * row["standard_deviation"] / np.sqrt(row["draws"]))


def markdown(content: dict[str, Any]) -> str:
    """Realised rates, and in bold those that break the promise."""
    keys = [f"{g}, {c}{s}" for g in GROUPINGS for c in CALIBRATIONS for s in ("", f", confidence {CONFIDENCE:g}")]
    lines = [
        f"`{content['command']}`",
        "",
        f"Realised rates in %, mean of {content['draws']} folders; with a confidence, also the share of folders with "
        f"a higher rate than promised, without the variance due to the draw of the {MEASURED:,} measured images (but "
        "with it for a test part, which is the same for all folders). In bold: outside the 99 % interval of what is "
        "promised. -: too few images, or no groups.",
        "",
        f"| collection | images | promised | check fires (none / found / given) | {' | '.join(keys)} |",
        "|---" * (len(keys) + 4) + "|",
    ]
    rows = content["rows"]
    for name, size, rate in table_rows(rows):
        of = {
            row["calibration"]: row
            for row in rows
            if (row["collection"], row["images"], row["rate"]) == (name, size, rate)
        }
        fired = " / ".join(
            next((f"{100 * row['check_fired']:.1f}" for key, row in of.items() if key.startswith(grouping)), "-")
            for grouping in GROUPINGS
        )
        cells = [cell(of.get(key)) for key in keys]
        lines.append(f"| {name} | {size} | {100 * rate:g} | {fired} | {' | '.join(cells)} |")
    plain = [f"none, {calibration}" for calibration in CALIBRATIONS]
    lines += [
        "",
        f"Standard deviation over folders, in points; {MEASURED:,} new images a folder, whose draw is part of it:",
        "",
        f"| collection | images | promised | {' | '.join(plain)} |",
        "|---" * (len(plain) + 3) + "|",
    ]
    for name, size, rate in table_rows(rows):
        if name == "exchangeable":
            deviations = {
                row["calibration"]: f"{100 * row['standard_deviation']:.1f}"
                for row in rows
                if (row["collection"], row["images"], row["rate"]) == (name, size, rate)
            }
            cells = [deviations.get(key, "-") for key in plain]
            lines.append(f"| {name} | {size} | {100 * rate:g} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def table_rows(rows: list[dict[str, Any]]) -> list[tuple[str, int, float]]:
    """Collections, sizes and rates, those of a collection together."""
    names = list(dict.fromkeys(row["collection"] for row in rows))
    found = {(row["collection"], row["images"], row["rate"]) for row in rows}
    return sorted(found, key=lambda row: (names.index(row[0]), row[1:]))


def cell(row: dict[str, Any] | None) -> str:
    """A rate, in bold if it breaks the promise."""
    if row is None:
        return "-"
    text = f"{100 * row['realised']:.2f}"
    if "confidence" in row["calibration"]:
        text += f" ({100 * row['too_high']:.1f})"
    return text if row["holds"] else f"**{text}**"


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Realised against promised rates, a panel for each collection."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    names = list(dict.fromkeys(row["collection"] for row in rows))
    figure = Figure(figsize=(3.6 * len(names), 4.2), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    colours = {"none": "tab:red", "found": "tab:orange", "given": "tab:green"}
    for axis, name in zip(axes, names, strict=True):
        for grouping in GROUPINGS:
            for calibration, marker in zip(CALIBRATIONS, "ox", strict=True):
                of = [
                    row
                    for row in rows
                    if row["collection"] == name and row["calibration"] == f"{grouping}, {calibration}"
                ]
                promised = [100 * row["rate"] for row in of]
                realised = [100 * row["realised"] for row in of]
                label = f"{grouping}, {calibration}"
                axis.scatter(promised, realised, color=colours[grouping], marker=marker, label=label, alpha=0.7)
        axis.axline((0, 0), slope=1, color="grey", linewidth=1)
        axis.set(title=name, xlabel="promised, %", xlim=(0, 12))
    axes[0].set_ylabel("realised, mean over folders, %")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    typer.run(main)
