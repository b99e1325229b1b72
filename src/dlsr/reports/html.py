"""A report on scored images as one self-contained HTML file."""

import heapq
import html
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from dlsr.artifact import installed_versions
from dlsr.calibration.fdr import why_none
from dlsr.calibration.promise import promise
from dlsr.calibration.reasons import LEVEL, why_no_reasons
from dlsr.encoding.pipeline import Progress
from dlsr.errors import NoImagesError
from dlsr.explaining.layout import Layout, check_layout
from dlsr.files import replacing
from dlsr.images.names import in_utf8
from dlsr.images.sources import ImageDataset, ImagesLike, open_images
from dlsr.reports.figures import THUMBNAIL, Figures
from dlsr.reports.pages import filled
from dlsr.reports.refused import MOST_GROUPED, MOST_ON_MAP, Drawn, groups_and_map
from dlsr.reports.svg import Series, score_histogram
from dlsr.results import Result

if TYPE_CHECKING:
    from dlsr.fitted_detector import FittedDetector

SHOW_MAPS = (
    '<p><label><input type="checkbox" id="maps" checked> Show where images deviate: in orange to yellow, on one scale '
    "for all images. In 95 % of in-distribution images hardly any place is coloured.</label></p>"
)
SHOWN = 24
"""Thumbnails of the highest scores, and of the lowest."""
NAMED = 1000
"""Unreadable images listed by name; the rest are only counted."""
MOST_DRAWN = {True: MOST_GROUPED, False: MOST_ON_MAP}
"""Images of each verdict, OOD or not, that are drawn at random for the groups and the map."""
ABOUT_REASONS = (
    "Unlike ID images: simple properties that lie outside the range of the ID images, each with its own p-value. They "
    f"are named so rarely that at most {100 * LEVEL:.0f} % of ID images have any."
)
ABOUT_LAYOUTS = {
    "pca": "the two directions in which the features of these images vary most",
    "umap": "UMAP, which keeps neighbours side by side; distances between clusters mean little",
}

Entry = tuple[float, int, Result]
"""A number to sort by, the negative position of an image, and its result."""


@dataclass
class Summary:
    """The numbers in a report, collected from a stream of results. Memory grows by one number per image."""

    rule: str
    """What verdicts follow, in words."""
    threshold: float
    """Images with a higher score are called OOD."""
    fdr: float | None = None
    """The false discovery rate, if verdicts follow one."""
    why_none: str | None = None
    """Why no image is rejected, see `dlsr.calibration.fdr.why_none`."""
    scores: list[float] = field(default_factory=list)
    ood: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """Names and reasons. Two images may have one name."""
    top_layers: Counter[str] = field(default_factory=Counter)
    """How many OOD images deviate most at each layer."""
    layer_sums: dict[bool, dict[str, float]] = field(default_factory=lambda: {False: {}, True: {}})
    """Sums of each layer's deviations, over OOD images (True) and over ID images (False)."""
    highest: list[Entry] = field(default_factory=list)
    """Heap of score, negative index and result of the highest scores."""
    lowest: list[Entry] = field(default_factory=list)
    """Heap of negative score, negative index and result of the lowest scores."""
    drawn: dict[bool, list[Entry]] = field(default_factory=lambda: {False: [], True: []})
    """OOD images (True) and ID images (False) drawn at random: heaps of a random number, negative index and result."""
    random: Random = field(default_factory=lambda: Random(0))

    def add(self, results: Iterable[Result]) -> "Summary":
        """Add results, in the order of the images."""
        for index, result in enumerate(results):
            if result.score is None or result.is_ood is None or result.layers is None:
                self.unreadable.append((result.path, str(result.error)))
                continue
            self.scores.append(result.score)
            self.ood += result.is_ood
            self.top_layers[str(result.top_layer)] += result.is_ood
            sums = self.layer_sums[result.is_ood]
            for layer, deviation in result.layers.items():
                sums[layer] = sums.get(layer, 0.0) + deviation
            _keep(self.highest, (result.score, -index, result), SHOWN)
            _keep(self.lowest, (-result.score, -index, result), SHOWN)
            _keep(self.drawn[result.is_ood], (self.random.random(), -index, result), MOST_DRAWN[result.is_ood])
        return self

    def layer_means(self, is_ood: bool) -> dict[str, float]:
        """Mean deviation of each layer over the OOD images, or over the ID images."""
        count = self.ood if is_ood else len(self.scores) - self.ood
        return {layer: total / count for layer, total in self.layer_sums[is_ood].items()}


def _keep(heap: list[Entry], entry: Entry, limit: int) -> None:
    (heapq.heappush if len(heap) < limit else heapq.heappushpop)(heap, entry)


def write_html_report(
    path: Path,
    detector: "FittedDetector",
    images: ImagesLike,
    *,
    title: str,
    fdr: float | None = None,
    layout: Layout = "pca",
    progress: Progress | None = None,
) -> Summary:
    """Score images and write the report.

    Some of the images are read again: those shown, and up to `dlsr.reports.refused.MOST_GROUPED` refused ones, whose
    features come from the feature store or are computed once more without one.

    Args:
        path: HTML file to write.
        detector: fitted.
        images: see `dlsr.open_images`.
        title: heading of the report.
        fdr: false discovery rate that verdicts follow instead of the false-alarm rate, see `Results.at_fdr`; then all
            results are held in memory.
        layout: of the map: principal components, or UMAP.
        progress: callback with the number of images that were scored since the last call.

    Returns:
        The numbers in the report.

    Raises:
        NoImagesError: if no image can be read.
        OutputError: if the file cannot be written.
        SettingsError: for a false discovery rate outside (0, 1).
        MissingExtraError: for UMAP without umap-learn.
    """
    check_layout(layout)
    found = open_images(images)
    if fdr is None:
        summary = Summary(promise(detector.false_alarm_rate, detector.confidence), detector.threshold_)
        summary.add(detector.results(found, progress=progress))
    else:
        results = detector.detect(found, progress=progress).at_fdr(fdr)
        why = why_none(results.p_values, float(detector.p_values_of([np.inf])[0]), fdr)
        summary = Summary(results.rule, results.threshold, fdr, why).add(results)
    if not summary.scores:
        raise NoImagesError.of_unreadable(len(found), "images", summary.unreadable)
    page = _page(detector, found, summary, title, layout)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return summary


def _page(detector: "FittedDetector", images: ImageDataset, summary: Summary, title: str, layout: Layout) -> str:
    why_not = why_no_reasons(detector.ranges_)
    shown = sorted({-entry[1] for entry in (*summary.highest, *summary.lowest)})
    maps = dict(zip(shown, detector.anomaly_maps(images.subset(shown)), strict=True)) if detector.has_maps_ else {}
    figures = Figures(images, detector.ranges_ if why_not is None else None, maps)
    figures.prepare(shown, THUMBNAIL)
    chosen = sorted((-negative, result) for heap in summary.drawn.values() for _, negative, result in heap)
    drawn = Drawn.of(detector, images, chosen, why_not is None)
    groups, placed = groups_and_map(detector, drawn, figures, summary.ood, layout)
    judged = len(summary.scores)
    verdict = (
        f"{summary.ood} of {judged} images ({100 * summary.ood / judged:.1f} %) are out of distribution at "
        f"{summary.rule}."
    )
    if summary.why_none is not None:
        verdict += f" {summary.why_none[:1].upper()}{summary.why_none[1:]}."
    elif summary.fdr is not None:
        verdict += f" Expect at most about {summary.fdr * summary.ood:.0f} of them to be in distribution."
    else:
        alarms = detector.false_alarm_rate * judged
        verdict += f" If all were in distribution, expect at most about {alarms:.0f} false alarms."
    return filled(
        "page.html",
        title=html.escape(in_utf8(title)),
        verdict=html.escape(verdict),
        made=html.escape(f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}, dlsr {installed_versions()['dlsr']}"),
        total=judged + len(summary.unreadable),
        inside=judged - summary.ood,
        ood=summary.ood,
        unreadable=len(summary.unreadable),
        histogram=_histogram(detector, summary),
        why=html.escape(f"There are no reasons in words: {why_not}." if why_not else ABOUT_REASONS),
        maps=SHOW_MAPS if maps else "",
        highest=_gallery(sorted(summary.highest, reverse=True), figures),
        lowest=_gallery(sorted(summary.lowest, reverse=True), figures),
        groups=groups,
        map=placed,
        layout=ABOUT_LAYOUTS[layout],
        layers=_layers(detector, summary),
        failures=failures(summary.unreadable),
        settings=_settings(detector, summary),
    )


def _histogram(detector: "FittedDetector", summary: Summary) -> str:
    calibration = Series("calibration images", detector.calibration_scores_)
    return score_histogram(calibration, Series("these images", np.array(summary.scores)), summary.threshold)


def _gallery(entries: Sequence[Entry], figures: Figures) -> str:
    return "\n".join(figures.figure(-negative, result) for _, negative, result in entries)


def _layers(detector: "FittedDetector", summary: Summary) -> str:
    means = {is_ood: summary.layer_means(is_ood) for is_ood in (False, True) if summary.layer_sums[is_ood]}
    rows = []
    for layer in detector.layer_names_:
        cells = [f"{means[is_ood][layer]:+.2f}" if is_ood in means else "-" for is_ood in (False, True)]
        count = summary.top_layers[layer]
        width = 100 * count / max(summary.ood, 1)
        cells += [str(count), f'<div class="track"><div class="fill" style="width:{width:.1f}%"></div></div>']
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f"<tr><th scope=row>{html.escape(layer)}</th>{row}</tr>")
    return "\n".join(rows)


def failures(unreadable: Sequence[tuple[str, str]]) -> str:
    """A table of images that cannot be read: names and reasons, the first `NAMED` of them."""
    if not unreadable:
        return "<p>None.</p>"
    cells = ((html.escape(name), html.escape(why)) for name, why in unreadable[:NAMED])
    rows = "\n".join(f"<tr><td>{name}</td><td>{why}</td></tr>" for name, why in cells)
    more = f"<p>And {len(unreadable) - NAMED} more.</p>" if len(unreadable) > NAMED else ""
    return f"<table><thead><tr><th>file</th><th>reason</th></tr></thead><tbody>{rows}</tbody></table>{more}"


def _settings(detector: "FittedDetector", summary: Summary) -> str:
    settings, fit = detector.settings_, detector.fit_summary_
    rows = {
        "score": f"{settings.score} (preset {settings.preset})",
        "encoder": detector.encoder_name_,
        "threshold": f"{summary.threshold:.6g} at {summary.rule}",
        "fitted to": f"{fit.training_images} images ({len(fit.unreadable)} unreadable images skipped)",
        "calibrated on": f"{len(detector.calibration_scores_)} images"
        + (", each left out in turn" if fit.left_out else ""),
        "groups": f"{fit.groups}, grouped by {fit.grouped_by}",
        "rate": ("may not hold: " if fit.check.fired else "") + fit.check.message,
        "seed": settings.seed,
        "versions": ", ".join(f"{name} {version}" for name, version in installed_versions().items()),
    }
    return "\n".join(
        f"<tr><th scope=row>{name}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows.items()
    )
