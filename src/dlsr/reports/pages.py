"""Pages of HTML that need no other file."""

from importlib.resources import files
from string import Template


def filled(template: str, **parts: object) -> str:
    """A page.

    Args:
        template: name of a file in this folder. Its `$style` stands for the style that all pages share.
        **parts: what its other names stand for, as HTML.
    """
    folder = files("dlsr.reports")
    style, page = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", template))
    return Template(page).substitute(parts, style=style)
