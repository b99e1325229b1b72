"""The web page, served with a content security policy that allows nothing from other hosts."""

from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response

PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
"""File and media type by path."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Add the routes of the page, which are not part of the OpenAPI schema."""
    for path, (file, media_type) in PAGE.items():
        content = files("dlsr.serve").joinpath("page", file).read_bytes()
        app.add_api_route(path, _endpoint(content, media_type), include_in_schema=False)


def _endpoint(content: bytes, media_type: str) -> Any:
    async def page() -> Response:
        return Response(content, headers=HEADERS, media_type=media_type)

    return page
