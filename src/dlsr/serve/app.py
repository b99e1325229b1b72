"""The HTTP application: routes, error handlers and OpenAPI schema."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import request_response

from dlsr.artifact import installed_versions
from dlsr.serve.answers import ModelAnswer, ScoreAnswer, State
from dlsr.serve.bodies import images_of
from dlsr.serve.forms import request_body_schema
from dlsr.serve.gate import GUARDED, Gate
from dlsr.serve.models import Scored
from dlsr.serve.problems import (
    CLIENT_GONE,
    MEDIA_TYPE,
    RefusedError,
    on_failure,
    on_http_exception,
    on_invalid,
    shutting_down,
)
from dlsr.serve.service import Service
from dlsr.serve.static import add_page

SMALL_BODY = 2**16
"""A body of at most this many bytes is parsed at once: to hand it to a thread takes as long."""

REASONS_PARAMETER = {
    "name": "reasons",
    "in": "query",
    "required": False,
    "description": "Also tell in which simple properties, such as brightness, each image is unlike ID images. "
    "Each image is then decoded twice.",
    "schema": {"type": "boolean", "default": False},
}
MAPS_PARAMETER = {
    "name": "maps",
    "in": "query",
    "required": False,
    "description": "Also show where each image deviates, for models that were fitted with maps. This takes about 1.4 "
    "times as long.",
    "schema": {"type": "boolean", "default": False},
}


def create_app(service: Service) -> FastAPI:
    """The service as an ASGI application.

    Args:
        service: started and stopped together with the application.
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

    async def on_gone(_: Request, __: Exception) -> Response:
        """The client left before its body had arrived."""
        return Response(status_code=CLIENT_GONE)

    app = FastAPI(
        title="dlsr",
        description="Scores how far images are out of distribution. Larger score = more OOD.",
        version=installed_versions()["dlsr"],
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,  # a redirect would name the host that the client sent
        exception_handlers={
            RefusedError: on_refused,
            ClientDisconnect: on_gone,
            Exception: on_failure,
            HTTPException: on_http_exception,
            RequestValidationError: on_invalid,
        },
    )
    guarded = _problems(401) if service.settings.token else {}

    async def score(request: Request) -> Response:
        """Score one or many images."""
        asked = {"explain": _asks_for(request, "reasons"), "maps": _asks_for(request, "maps")}
        with service.bodies.hold() as body:
            scored = await _while_connected(request, _score(service, request, await body.read(request), asked))
        if scored is None:
            return Response(status_code=CLIENT_GONE)
        _refuse_if_none_is_readable(scored)
        return Response(ScoreAnswer.of(scored).model_dump_json(), media_type="application/json")

    app.router.add_api_route(
        "/v1/score",
        score,
        methods=["POST"],
        response_model=ScoreAnswer,
        responses=_problems(400, 408, 413, 415, 422, 429, 503) | guarded,
        openapi_extra={"requestBody": request_body_schema(), "parameters": [REASONS_PARAMETER, MAPS_PARAMETER]},
        route_class_override=PlainRoute,
    )

    @app.get("/v1/model", responses=_problems(503) | guarded)
    async def model() -> ModelAnswer:
        """Describe the loaded model."""
        return ModelAnswer.of(service)

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
        # Caches must not keep it for those who have no token.
        return Response(examples.thumbnails[index], headers={"Cache-Control": "no-store"}, media_type="image/jpeg")

    @app.get("/healthz", responses=_problems())
    async def healthz() -> State:
        """Whether the service is alive."""
        return State(status="alive")

    @app.get("/readyz", responses=_problems(503))
    async def readyz() -> State:
        """Whether the service accepts requests."""
        if service.draining:
            raise shutting_down()
        return State(status="ready")

    @app.get(
        "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **_problems(), **guarded}
    )
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        content = await asyncio.to_thread(service.telemetry.exposition, service.waiting)
        return Response(content, media_type="text/plain; version=0.0.4")

    add_page(app)
    if service.settings.token:
        _declare_token(app)
    app.add_middleware(Gate, service=service)
    return app


class PlainRoute(APIRoute):
    """A route whose function takes the request and returns the response itself; FastAPI only describes it.

    What FastAPI does around other functions takes a tenth of the time in which a small image is scored.
    """

    def __init__(self, path: str, endpoint: Callable[[Request], Awaitable[Response]], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = request_response(endpoint)


def _asks_for(request: Request, name: str) -> bool:
    given = request.query_params.getlist(name)
    if given not in ([], ["true"], ["false"]):
        raise RefusedError(422, f"the parameter '{name}' is given once, as true or false", "malformed")
    return given == ["true"]


async def _score(service: Service, request: Request, body: bytearray, asked: Mapping[str, bool]) -> Scored:
    content_type = request.headers["content-type"]
    if len(body) <= SMALL_BODY:
        images = images_of(content_type, body, service.settings)
    else:
        images = await service.decoder.run(images_of, content_type, body, service.settings)
    body.clear()  # its images have been copied
    return await service.score(images, **asked)


async def _while_connected(request: Request, work: Coroutine[Any, Any, Scored]) -> Scored | None:
    """The result of work that is cancelled when the client leaves; None if it has left."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    """Wait until the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refuse_if_none_is_readable(scored: Scored) -> None:
    reasons = [(result.path, result.error) for result in scored.results if result.error is not None]
    if len(reasons) < len(scored.results):
        return
    subject = "the image cannot" if len(reasons) == 1 else f"none of the {len(reasons)} images can"
    raise RefusedError(422, f"{subject} be read: {reasons[0][1]}", "unreadable", images=dict(reasons))


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Problem documents as responses of the OpenAPI schema, by status; with those of every path."""
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
        for status in (403, 421, 431, *statuses)
    }


def _declare_token(app: FastAPI) -> None:
    """Add the bearer token to the OpenAPI schema."""
    schema = app.openapi()
    schema.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, methods in schema["paths"].items():
        if path.startswith(GUARDED):
            for operation in methods.values():
                operation["security"] = [{"token": []}]
