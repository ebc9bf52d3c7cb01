"""ASGI application with all endpoints."""

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from aligner_jax.errors import InputError
from aligner_jax.serving import listing
from aligner_jax.serving.answers import answer
from aligner_jax.serving.chats import Chats
from aligner_jax.serving.completions import Completions
from aligner_jax.serving.errors import ApiError
from aligner_jax.serving.gate import Gate
from aligner_jax.serving.service import Service
from aligner_jax.serving.transport import ClientGoneError

_GONE = 499
"""Status for the metrics; the client has gone."""


def make_app(service: Service) -> Starlette:
    """Returns the application."""
    app = Starlette(
        routes=[
            Route("/v1/completions", _complete, methods=["POST"]),
            Route("/v1/chat/completions", _chat, methods=["POST"]),
            Route("/v1/models", listing.list_models),
            Route("/v1/models/{name:path}", listing.get_model),
            Route("/v1/adapters", listing.list_adapters),
            Route("/v1/adapters", listing.upload, methods=["POST"]),
            Route("/v1/adapters/{name}", listing.upload, methods=["PUT"]),
            Route("/v1/adapters/{name}", listing.delete, methods=["DELETE"]),
            Route("/health", _health),
            Route("/ready", _ready),
            Route("/metrics", _metrics),
        ],
        middleware=[Middleware(Gate, service=service)],
        exception_handlers={
            ApiError: _api_error,
            InputError: _input_error,
            HTTPException: _http_error,
            ClientGoneError: _gone,
            Exception: _bug,
        },
    )
    # Redirects have no error's form.
    app.router.redirect_slashes = False
    app.state.service = service
    return app


async def _complete(http: Request) -> Response:
    return await answer(http, Completions())


async def _chat(http: Request) -> Response:
    return await answer(http, Chats())


async def _health(http: Request) -> Response:
    """Returns 200 while the engine runs."""
    has_failed = http.app.state.service.engine.failure is not None
    return JSONResponse({"status": "failed" if has_failed else "ok"}, 500 if has_failed else 200)


async def _ready(http: Request) -> Response:
    """Returns 200 while new requests are welcome."""
    service: Service = http.app.state.service
    is_ready = service.engine.is_ready and not service.is_draining
    return JSONResponse({"status": "ready" if is_ready else "not ready"}, 200 if is_ready else 503)


async def _metrics(http: Request) -> Response:
    return Response(http.app.state.service.metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})


async def _api_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _input_error(http: Request, error: Exception) -> Response:
    # Wrong requests are ApiErrors; what is left is wrong with the server's files, such as a damaged adapter.
    return ApiError(503, str(error)).response()


async def _http_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, f"{http.method} {http.url.path}: {error.detail}").response()


async def _gone(http: Request, error: Exception) -> Response:
    http.app.state.service.metrics.cancelled.inc()
    return Response(status_code=_GONE)


async def _bug(http: Request, error: Exception) -> Response:
    return ApiError(500, "the server has made a mistake; see its log").response()
