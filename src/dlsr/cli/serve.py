"""`dlsr serve`."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from dlsr.cli.console import print_message
from dlsr.cli.options import Backend, BackendName, Device, Model, Quiet, Workers
from dlsr.errors import MissingExtraError, SettingsError

SHORTEST_TOKEN = 8

app = typer.Typer(add_completion=False)


@app.command()
def serve(
    model: Model,
    host: Annotated[
        str, typer.Option(help="Address to listen on; by default, only this machine can reach it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free port.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token that clients must send; or set DLSR_TOKEN.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of the service, besides --host, localhost and IP addresses; pages of this host may use it, too. "
            "Repeat for more."
        ),
    ] = None,
    max_body: Annotated[int, typer.Option(min=1, help="Largest request, in MiB.")] = 32,
    max_images: Annotated[int, typer.Option(min=1, help="Most images in a request.")] = 64,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Most pixels of an image, and of large images decoded at once.")
    ] = 50_000_000,
    max_requests: Annotated[int, typer.Option(min=1, help="Most requests handled at once.")] = 256,
    max_connections: Annotated[int, typer.Option(min=1, help="Most open connections.")] = 1024,
    max_waiting: Annotated[int, typer.Option(min=1, help="Most images that wait to be scored.")] = 1024,
    max_batch: Annotated[int, typer.Option(min=1, help="Most images of several requests scored together.")] = 64,
    max_wait: Annotated[
        float, typer.Option(min=0, help="Milliseconds that an idle service waits for more images.")
    ] = 5,
    drain: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds during which a closing service still answers, with status 503, and waits for bodies."
        ),
    ] = 1,
    drift_window: Annotated[int, typer.Option(min=20, help="Images over which /metrics measures drift.")] = 1000,
    device: Device = "auto",
    backend: Backend = BackendName.AUTO,
    workers: Workers = 2,
    quiet: Quiet = False,
) -> None:
    """Serve a model over HTTP, with a page at /. Reloads a changed model; on SIGTERM, shuts down gracefully."""
    if any(find_spec(package) is None for package in ("fastapi", "uvicorn", "prometheus_client", "python_multipart")):
        raise MissingExtraError("fastapi", "serve")
    from dlsr.serve.server import is_loopback  # noqa: PLC0415
    from dlsr.serve.server import serve as run  # noqa: PLC0415
    from dlsr.serve.service import Service  # noqa: PLC0415
    from dlsr.serve.settings import ServeSettings  # noqa: PLC0415

    token = _read_token(token_file)
    if token is None and not is_loopback(host):
        print_message(f"warning: anyone who can reach {host} can use this service; set --token-file", quiet=False)
    settings = ServeSettings(
        token=token,
        hosts=frozenset([host, *(allow_host or [])]),
        max_body_bytes=max_body * 2**20,
        max_images=max_images,
        max_pixels=max_pixels,
        max_requests=max_requests,
        max_connections=max_connections,
        max_waiting=max_waiting,
        max_batch=max_batch,
        max_wait_seconds=max_wait / 1000,
        drift_window=drift_window,
    )
    service = Service(model, settings, device=device, backend=backend.value, workers=workers)
    run(service, host, port, drain_seconds=drain, ready=lambda url: print_message(f"serving {model} at {url}", quiet))


def _read_token(file: Path | None) -> str | None:
    """The token from a file, or from the environment."""
    try:
        token = os.environ.get("DLSR_TOKEN") if file is None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the token file '{file}': {error}; check it") from error
    if token is None:
        return None
    token = token.strip()
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
        raise SettingsError(f"a token needs {SHORTEST_TOKEN} or more printable ASCII characters; make another")
    return token
