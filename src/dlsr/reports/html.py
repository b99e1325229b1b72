"""A report on scored images as one self-contained HTML file."""

import base64
import heapq
import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np

from dlsr.artifact import installed_versions
from dlsr.calibration.fdr import why_none
from dlsr.calibration.promise import promise
from dlsr.encoding.examples import thumbnail
from dlsr.encoding.pipeline import Progress
from dlsr.errors import NoImagesError
from dlsr.files import replacing
from dlsr.images.decode import UNREADABLE, reason_of
from dlsr.images.names import in_utf8
from dlsr.images.sources import ImageDataset, ImageItem, ImagesLike, open_images
from dlsr.reports.svg import Series, score_histogram
from dlsr.results import Result

if TYPE_CHECKING:
    from dlsr.fitted_detector import FittedDetector

SHOWN = 24
"""Thumbnails of the highest scores, and of the lowest."""
NAMED = 1000
"""Unreadable images listed by name; the rest are only counted."""
THUMBNAIL = 160
"""Longer side of a thumbnail, in pixels."""


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
    highest: list[tuple[float, int, Result]] = field(default_factory=list)
    """Heap of score, negative index and result of the highest scores."""
    lowest: list[tuple[float, int, Result]] = field(default_factory=list)
    """Heap of negative score, negative index and result of the lowest scores."""

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
            _keep(self.highest, (result.score, -index, result))
            _keep(self.lowest, (-result.score, -index, result))
        return self

    def layer_means(self, is_ood: bool) -> dict[str, float]:
        """Mean deviation of each layer over the OOD images, or over the ID images."""
        count = self.ood if is_ood else len(self.scores) - self.ood
        return {layer: total / count for layer, total in self.layer_sums[is_ood].items()}


def _keep(heap: list[tuple[float, int, Result]], entry: tuple[float, int, Result]) -> None:
    (heapq.heappush if len(heap) < SHOWN else heapq.heappushpop)(heap, entry)


def write_html_report(
    path: Path,
    detector: "FittedDetector",
    images: ImagesLike,
    *,
    title: str,
    fdr: float | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Score images and write the report.

    Args:
        path: HTML file to write.
        detector: fitted.
        images: see `dlsr.open_images`.
        title: heading of the report.
        fdr: false discovery rate that verdicts follow instead of the false-alarm rate, see `Results.at_fdr`; then all
            results are held in memory.
        progress: callback with the number of images that were scored since the last call.

    Returns:
        The numbers in the report.

    Raises:
        NoImagesError: if no image can be read.
        OutputError: if the file cannot be written.
        SettingsError: for a false discovery rate outside (0, 1).
    """
    found = open_images(images)
    if fdr is None:
        summary = Summary(promise(detector.false_alarm_rate, detector.confidence), detector.threshold_)
        summary.add(detector.results(found, progress=progress))
    else:
        results = detector.detect(found, progress=progress).at_fdr(fdr)
        why = why_none(results.p_values, float(detector.p_values_of([np.inf])[0]), fdr)
        summary = Summary(results.rule, results.threshold, fdr, why).add(results)
    if not summary.scores:
        name, reason = summary.unreadable[0]
        raise NoImagesError(f"none of {len(found)} images can be read; the first, {name}: {reason}")
    page = _page(detector, found, summary, title)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return summary


def _page(detector: "FittedDetector", images: ImageDataset, summary: Summary, title: str) -> str:
    template = Template(files("dlsr.reports").joinpath("page.html").read_text(encoding="utf-8"))
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
    pictures = _pictures(images, sorted({-entry[1] for entry in (*summary.highest, *summary.lowest)}))
    return template.substitute(
        title=html.escape(in_utf8(title)),
        verdict=html.escape(verdict),
        made=html.escape(f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}, dlsr {installed_versions()['dlsr']}"),
        total=judged + len(summary.unreadable),
        inside=judged - summary.ood,
        ood=summary.ood,
        unreadable=len(summary.unreadable),
        histogram=_histogram(detector, summary),
        highest=_gallery(sorted(summary.highest, reverse=True), pictures),
        lowest=_gallery(sorted(summary.lowest, reverse=True), pictures),
        layers=_layers(detector, summary),
        failures=failures(summary.unreadable),
        settings=_settings(detector, summary),
    )


def _histogram(detector: "FittedDetector", summary: Summary) -> str:
    calibration = Series("calibration images", detector.calibration_scores_)
    return score_histogram(calibration, Series("these images", np.array(summary.scores)), summary.threshold)


def _pictures(images: ImageDataset, indices: Iterable[int]) -> dict[int, str]:
    """Thumbnails by index. Frames of a clip are read fastest in their order."""
    return {index: embedded(images.items[index]) for index in indices}


def _gallery(entries: Sequence[tuple[float, int, Result]], pictures: Mapping[int, str]) -> str:
    return "\n".join(_figure(pictures[-negative], result) for _, negative, result in entries)


def _figure(picture: str, result: Result) -> str:
    name = html.escape(result.path)
    assert result.score is not None
    verdict = "OOD" if result.is_ood else "ID"
    numbers = f"{result.score:.2f}, p = {result.p_value:.2g}, {html.escape(str(result.top_layer))}"
    file = f'<span title="{name}">{html.escape(Path(result.path).name)}</span>'
    caption = f'<strong class="{verdict.lower()}">{verdict}</strong> {numbers}<br>{file}'
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def embedded(item: ImageItem) -> str:
    """An image's thumbnail as an element that needs no other file; or the reason, if the image cannot be read."""
    try:
        content = base64.b64encode(thumbnail(item.read(), THUMBNAIL)).decode()
    except UNREADABLE as error:  # the file may have changed since it was first read
        return html.escape(reason_of(error))
    return f'<img src="data:image/jpeg;base64,{content}" alt="{html.escape(item.name)}">'


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
