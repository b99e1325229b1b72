"""HTTP: the routes, the gate before them, and the page."""

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dlsr.artifact import installed_versions
from dlsr.serve.bodies import read_images, request_body_schema
from dlsr.serve.problems import MEDIA_TYPE, RefusedError, on_failure, on_http_exception, on_invalid
from dlsr.serve.service import RETRY_AFTER, Model, Scored, Service

PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
HISTOGRAM_BINS = 40
CLIENT_GONE = 499
"""What the metrics call a request whose sender did not wait for an answer, as nginx does."""
SWALLOW_SECONDS = 2
"""So long the rest of a refused request's body is awaited."""
GUARDED = ("/v1/", "/metrics")
"""Paths that ask for the token."""


class ImageAnswer(BaseModel):
    """What the model says of an image; one that cannot be read has an `error` and nothing else."""

    name: str
    score: float | None = None
    p_value: float | None = None
    is_ood: bool | None = None
    top_layer: str | None = None
    layers: dict[str, float] | None = None
    nearest: list[int] | None = None
    error: str | None = None


class ScoreAnswer(BaseModel):
    """What the model says of the images of a request, in their order."""

    model: str
    false_alarm_rate: float
    threshold: float
    images: list[ImageAnswer]


class HistogramAnswer(BaseModel):
    """Calibration scores, counted between edges."""

    edges: list[float]
    counts: list[int]


class ModelAnswer(BaseModel):
    """What the model is."""

    model: str
    encoder: str
    score: str
    preset: str
    layers: list[str]
    false_alarm_rate: float
    threshold: float
    training_images: int
    calibration_images: int
    calibration_histogram: HistogramAnswer
    examples: int
    """Training images kept as thumbnails: `/v1/examples/0` and so on."""
    max_images: int
    """In one request."""
    max_body_bytes: int
    reload_error: str | None
    """Why the model now in the directory could not be taken up."""
    versions: dict[str, str]


class State(BaseModel):
    """Whether the service lives, or takes requests."""

    status: str


def create_app(service: Service) -> FastAPI:
    """The service as an ASGI application.

    Args:
        service: is started and stopped with the application.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    async def on_refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        service.telemetry.rejected.labels(error.reason).inc()
        return error.response()

    app = FastAPI(
        title="dlsr",
        description="Tells how far out of distribution images lie. Larger score = more OOD.",
        version=installed_versions()["dlsr"],
        lifespan=lifespan,
        docs_url=None,  # its assets would come from elsewhere
        redoc_url=None,
        exception_handlers={
            RefusedError: on_refused,
            Exception: on_failure,
            HTTPException: on_http_exception,
            RequestValidationError: on_invalid,
        },
    )
    guarded = _problems(401) if service.settings.token else {}

    @app.post(
        "/v1/score",
        response_model=ScoreAnswer,
        responses=_problems(400, 408, 413, 415, 422, 429, 503) | guarded,
        openapi_extra={"requestBody": request_body_schema()},
    )
    async def score(request: Request) -> Response:
        """Score one or many images."""
        images = await read_images(request, service.settings)
        scored = await service.score(images)
        unreadable = {one.result.path: one.result.error for one in scored if one.result.error is not None}
        if len(scored) == sum(one.result.error is not None for one in scored):
            what = "the image cannot" if len(scored) == 1 else f"none of the {len(scored)} images can"
            detail = f"{what} be read: {next(iter(unreadable.values()))}"
            raise RefusedError(422, detail, "unreadable", images={k: str(v) for k, v in unreadable.items()})
        return Response(_score_answer(scored).model_dump_json(), media_type="application/json")

    @app.get("/v1/model", responses=_problems(503) | guarded)
    async def model() -> ModelAnswer:
        """What the model is."""
        return _model_answer(service, service.model)

    @app.get(
        "/v1/examples/{index}",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}, **_problems(404, 422, 503), **guarded},
    )
    async def example(index: int) -> Response:
        """The thumbnail of a training image."""
        examples = service.model.detector.examples_
        if examples is None or not 0 <= index < len(examples.thumbnails):
            kept = len(examples.thumbnails) if examples else 0
            raise RefusedError(404, f"the model keeps {kept} examples; there is no {index}", "not found")
        return Response(examples.thumbnails[index], media_type="image/jpeg")

    @app.get("/healthz")
    async def healthz() -> State:
        """Whether the service lives."""
        return State(status="alive")

    @app.get("/readyz", responses=_problems(503))
    async def readyz() -> State:
        """Whether the service takes requests."""
        if service.draining:
            raise RefusedError(503, "the service is shutting down", "shutting down", RETRY_AFTER)
        return State(status="ready")

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **guarded})
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(service.telemetry.exposition(service.waiting), media_type="text/plain; version=0.0.4")

    for path, (file, media_type) in PAGE.items():
        content = files("dlsr.serve").joinpath("page", file).read_bytes()
        app.add_api_route(path, _page(content, media_type), include_in_schema=False)
    if service.settings.token:
        _declare_token(app)
    app.add_middleware(Gate, service=service)
    return app


class Gate:
    """Before the routes: the token, the limit of requests at once, the refusals of a closing service; and metrics."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        service, path = self._service, str(scope["path"])
        start = time.perf_counter()
        status = CLIENT_GONE
        heard_all = False

        async def heard() -> Message:
            nonlocal heard_all
            message = await receive()
            heard_all = not message.get("more_body", False)
            return message

        async def swallow() -> None:
            # A connection that is closed with a body unread is reset, and the answer may be lost on its way.
            left = service.settings.max_body_bytes
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWALLOW_SECONDS):
                    while not heard_all and left > 0:
                        left -= len((await heard()).get("body", b""))

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                await swallow()
            await send(message)

        service.handling += 1
        try:
            refused = self._refused(scope, path)
            if refused is None:
                await self._app(scope, heard, watched)
            else:
                await refused.response()(scope, heard, watched)
                service.telemetry.rejected.labels(refused.reason).inc()
        finally:
            service.handling -= 1
            label = path_label(path)
            service.telemetry.requests.labels(label, str(status)).inc()
            service.telemetry.seconds.labels(label).observe(time.perf_counter() - start)

    def _refused(self, scope: Scope, path: str) -> RefusedError | None:
        service = self._service
        if path.startswith(GUARDED) and not _has_token(scope, service.settings.token):
            detail = "send the header 'Authorization: Bearer TOKEN' with this service's token"
            return RefusedError(401, detail, "token", {"WWW-Authenticate": "Bearer"})
        if path.startswith("/v1/"):
            if service.draining:
                headers = {**RETRY_AFTER, "Connection": "close"}
                return RefusedError(503, "the service is shutting down; try another", "shutting down", headers)
            if service.handling > service.settings.max_requests:
                detail = f"{service.settings.max_requests} requests are being handled already; try again later"
                return RefusedError(429, detail, "too many requests", RETRY_AFTER)
        return None


def path_label(path: str) -> str:
    """A path as the metrics name it: there must not be as many names as callers can think of."""
    if path.startswith("/v1/examples/"):
        return "/v1/examples"
    return path if path in ("/v1/score", "/v1/model", "/healthz", "/readyz", "/metrics", *PAGE) else "other"


def _has_token(scope: Scope, token: str | None) -> bool:
    if token is None:
        return True
    given = dict(scope["headers"]).get(b"authorization", b"")
    scheme, _, value = given.partition(b" ")
    # Compared in constant time, so that answers do not tell how much of a guess was right.
    return scheme.lower() == b"bearer" and hmac.compare_digest(value.strip(), token.encode())


def _score_answer(scored: list[Scored]) -> ScoreAnswer:
    model = scored[0].model
    return ScoreAnswer(
        model=model.id,
        false_alarm_rate=model.detector.false_alarm_rate,
        threshold=model.detector.threshold_,
        images=[
            ImageAnswer(
                name=one.result.path,
                score=one.result.score,
                p_value=one.result.p_value,
                is_ood=one.result.is_ood,
                top_layer=one.result.top_layer,
                layers=None if one.result.layers is None else dict(one.result.layers),
                nearest=None if one.result.nearest is None else list(one.result.nearest),
                error=one.result.error,
            )
            for one in scored
        ],
    )


def _model_answer(service: Service, model: Model) -> ModelAnswer:
    detector = model.detector
    counts, edges = np.histogram(detector.calibration_scores_, HISTOGRAM_BINS)
    return ModelAnswer(
        model=model.id,
        encoder=str(detector.encoder_name_),
        score=detector.settings_.score,
        preset=detector.settings_.preset,
        layers=detector.layer_names_,
        false_alarm_rate=detector.false_alarm_rate,
        threshold=detector.threshold_,
        training_images=detector.fit_summary_.training_images,
        calibration_images=len(detector.calibration_scores_),
        calibration_histogram=HistogramAnswer(edges=edges.tolist(), counts=counts.tolist()),
        examples=len(detector.examples_.names) if detector.examples_ else 0,
        max_images=service.settings.max_images,
        max_body_bytes=service.settings.max_body_bytes,
        reload_error=service.reload_error,
        versions=installed_versions(),
    )


def _page(content: bytes, media_type: str) -> Any:
    async def page() -> Response:
        return Response(content, headers=PAGE_HEADERS, media_type=media_type)

    return page


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Refusals for OpenAPI."""
    schema = {
        "type": "object",
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "images": {"type": "object", "additionalProperties": {"type": "string"}},
        },
        "required": ["type", "title", "status", "detail"],
    }
    return {
        status: {"description": "Refused; see `detail`.", "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def _declare_token(app: FastAPI) -> None:
    schema = app.openapi()
    schema.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, methods in schema["paths"].items():
        if path.startswith(GUARDED):
            for operation in methods.values():
                operation["security"] = [{"token": []}]
