"""An audit of an image folder as one self-contained HTML file: the faults, with thumbnails of the images."""

import html
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from dlsr.artifact import installed_versions
from dlsr.audit import FAULTS, Audit, CopySet
from dlsr.files import replacing
from dlsr.fitting import UNLIKE
from dlsr.images.names import in_utf8
from dlsr.images.sources import ImageDataset, ImageItem, ImagesLike, open_images
from dlsr.reports.figures import embedded
from dlsr.reports.html import failures
from dlsr.reports.pages import filled

SHOWN = 24
"""Thumbnails of a fault, the worst first."""
SETS_SHOWN = 12
"""Sets of copies, the largest first."""
SHOWN_OF_SET = 6
"""Thumbnails of a set of copies, of each folder."""

_WORST: dict[str, Callable[[Audit, int], float]] = {
    "dark": lambda audit, i: audit.measures["bright_end"][i],
    "bright": lambda audit, i: -audit.measures["dark_end"][i],
    "blurry": lambda audit, i: audit.measures["sharpness"][i],
    "low-information": lambda audit, i: audit.measures["entropy"][i],
    "odd-aspect": lambda audit, i: min(_sides(audit, i)) / max(_sides(audit, i)),
}
_TOLD: dict[str, Callable[[Audit, int], str]] = {
    "unlike": lambda audit, i: f"{audit.deviations[i]:.1f} standard deviations",
    "dark": lambda audit, i: f"99 % of the pixels under {audit.measures['bright_end'][i]:.2f}",
    "bright": lambda audit, i: f"95 % of the pixels over {audit.measures['dark_end'][i]:.2f}",
    "blurry": lambda audit, i: f"sharpness {audit.measures['sharpness'][i]:.2g}",
    "low-information": lambda audit, i: f"{audit.measures['entropy'][i]:.1f} bits",
    "odd-aspect": lambda audit, i: "{:.0f} x {:.0f}".format(*_sides(audit, i)),
    "odd-size": lambda audit, i: "{:.0f} x {:.0f}".format(*_sides(audit, i)),
}


def write_audit_page(
    path: Path, audit: Audit, images: ImagesLike, *, against: ImagesLike | None = None, title: str
) -> None:
    """Write an audit as a page. The images that it shows are read again.

    Args:
        path: HTML file to write.
        audit: of these images.
        images: see `dlsr.open_images`.
        against: the other folder, if the audit had one.
        title: heading of the page.

    Raises:
        InputError: if the images cannot be opened any more.
        OutputError: if the file cannot be written.
    """
    found, other = open_images(images), ImageDataset([]) if against is None else open_images(against)
    page = filled(
        "audit.html",
        title=html.escape(in_utf8(title)),
        verdict=html.escape(verdict(audit)),
        made=html.escape(f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}, dlsr {installed_versions()['dlsr']},"),
        table="\n".join(_row(audit, kind) for kind in FAULTS),
        notes="\n".join(f'<p class="quiet">Note: {html.escape(note)}.</p>' for note in audit.notes),
        sections="\n".join(_section(audit, kind, found, other) for kind in audit.faults if _shown(audit, kind)),
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def verdict(audit: Audit) -> str:
    """How many images have a fault, in a sentence."""
    compared = "" if audit.against is None else f", compared with {len(audit.against)} others"
    return f"{audit.faulty()} of {len(audit.names)} images have a fault{compared}."


def _row(audit: Audit, kind: str) -> str:
    positions = audit.faults.get(kind)
    if positions is None or not _shown(audit, kind):
        count = "-" if positions is None else "0"
        return f'<tr class="none"><td>{kind}</td><td class="count">{count}</td><td>{FAULTS[kind]}</td></tr>'
    n = len(audit.sets.get(kind, ()))
    sets = f" in {n} set{'s' if n != 1 else ''}" if kind in audit.sets else ""
    cells = f'<td><a href="#{kind}">{kind}</a></td><td class="count">{len(positions)}{sets}</td>'
    return f"<tr>{cells}<td>{FAULTS[kind]}</td></tr>"


def _shown(audit: Audit, kind: str) -> list[int]:
    """Positions of the images in a fault's section. Those least like the rest are shown even if they are no fault."""
    positions = audit.faults[kind]
    if kind == "unlike" and len(positions) < SHOWN:
        return audit.least_like_the_rest(SHOWN)
    return sorted(positions, key=lambda i: _WORST[kind](audit, i)) if kind in _WORST else positions


def _section(audit: Audit, kind: str, images: ImageDataset, others: ImageDataset) -> str:
    if kind == "unreadable":
        content, shown = failures(audit.unreadable), ""
    elif kind in audit.sets:
        sets = audit.sets[kind]
        content = f'<div class="sets">{"".join(_set(one, images, others) for one in sets[:SETS_SHOWN])}</div>'
        shown = f" The {SETS_SHOWN} largest of {len(sets)} sets." if len(sets) > SETS_SHOWN else ""
    else:
        positions = _shown(audit, kind)
        figures = "".join(
            _figure(images.items[i], _TOLD[kind](audit, i) if kind in _TOLD else "") for i in positions[:SHOWN]
        )
        content = f'<div class="gallery">{figures}</div>'
        first = "The worst" if kind in (*_WORST, "unlike") else "The first"
        shown = f" {first} {SHOWN} of {len(positions)} images." if len(positions) > SHOWN else ""
    if kind == "unlike" and len(audit.faults[kind]) < SHOWN:
        shown = f" The images least like the rest: those above {UNLIKE:g} standard deviations count as a fault."
    meaning = f"{FAULTS[kind][:1].upper()}{FAULTS[kind][1:]}.{shown}"
    return f'<section><h2 id="{kind}">{kind}</h2>\n<p class="quiet">{meaning}</p>\n{content}</section>'


def _set(one: CopySet, images: ImageDataset, others: ImageDataset) -> str:
    figures = [_figure(images.items[i], "") for i in one.images[:SHOWN_OF_SET]]
    figures += [_figure(others.items[i], "in the other folder") for i in one.others[:SHOWN_OF_SET]]
    left = len(one.images) + len(one.others) - len(figures)
    more = f'<p class="more">and {left} more</p>' if left else ""
    return f'<div class="set">{"".join(figures)}{more}</div>'


def _figure(item: ImageItem, told: str) -> str:
    name = html.escape(item.name)
    file = f'<span title="{name}">{html.escape(Path(item.name).name)}</span>'
    caption = f"{html.escape(told)}<br>{file}" if told else file
    return f"<figure>{embedded(item)}<figcaption>{caption}</figcaption></figure>"


def _sides(audit: Audit, i: int) -> tuple[float, float]:
    return float(audit.measures["width"][i]), float(audit.measures["height"][i])
