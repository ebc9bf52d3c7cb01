"""Lists of models; uploads and deletion of adapters."""

import asyncio
import itertools
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from aligner_jax.decoding.request import Request as EngineRequest
from aligner_jax.errors import InputError
from aligner_jax.peft.bank_index import name_problem
from aligner_jax.peft.stored import StoredAdapter
from aligner_jax.serving.adapters import parse_upload
from aligner_jax.serving.errors import ApiError
from aligner_jax.serving.models import unknown_model
from aligner_jax.serving.service import Service
from aligner_jax.serving.transport import read_body

_MOST_LISTED = 10_000


async def list_models(http: Request) -> Response:
    """Lists the base and the adapters; at most `_MOST_LISTED` of them."""
    service: Service = http.app.state.service
    names = await asyncio.to_thread(lambda: list(itertools.islice(service.models.adapters.names(), _MOST_LISTED)))
    shown = [_model(service, name) for name in (service.models.base_name, *names)]
    return JSONResponse({"object": "list", "data": shown})


async def get_model(http: Request) -> Response:
    """Returns a model of any name that requests may have. Raises ApiError if there is none."""
    service: Service = http.app.state.service
    name = http.path_params["name"]
    await asyncio.to_thread(service.models.stored, name)
    return JSONResponse(_model(service, name))


async def list_adapters(http: Request) -> Response:
    """Lists adapters in the order of their names: `limit` of them, after the name `after`."""
    service: Service = http.app.state.service
    after, text = http.query_params.get("after", ""), http.query_params.get("limit", "1000")
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= _MOST_LISTED):
        raise ApiError(400, f"limit is not a number from 1 to {_MOST_LISTED}", param="limit")

    def page() -> list[str]:
        return list(itertools.islice(service.models.adapters.names(after), int(text) + 1))

    names = await asyncio.to_thread(page)
    shown = [{"id": name, "object": "adapter"} for name in names[: int(text)]]
    return JSONResponse({"object": "list", "data": shown, "has_more": len(names) > int(text)})


async def upload(http: Request) -> Response:
    """Adds an adapter or replaces it. The body is its safetensors file.

    Raises:
      ApiError: the name or the body is wrong, or the adapter is of another base.
    """
    service: Service = http.app.state.service
    name = http.path_params.get("name") or http.query_params.get("name", "")
    if problem := name_problem(name):
        raise ApiError(400, f"the adapter's name is not allowed: {problem}", param="name")
    if name == service.models.base_name:
        raise ApiError(400, f"{name!r} is the base's name", param="name")
    if service.uploading.locked():
        raise ApiError.overloaded("other adapters are being uploaded; try again later")
    async with service.uploading:
        limits = service.limits
        content = await read_body(http, most=limits.adapter_bytes, seconds=limits.body_seconds)
        await asyncio.to_thread(_register, service, name, content)
    return JSONResponse({"id": name, "object": "adapter"}, 201)


def _register(service: Service, name: str, content: bytes) -> None:
    try:
        artifact = parse_upload(content, service.base)
        adapter = StoredAdapter.of(artifact.adapter, None)
        # The engine must have room for it in a row.
        service.engine.engine.check(EngineRequest([0], 1, adapters=((adapter, 1.0),)))
    except InputError as error:
        raise ApiError(400, str(error), code="invalid_adapter") from error
    held = service.engine.engine.held
    assert held is not None
    # Here, since the engine's thread, which would compile at the first request, has other rows to serve.
    held.prepare(adapter)
    service.models.adapters.register(name, artifact)


async def delete(http: Request) -> Response:
    """Removes an adapter. Requests that have it go on. Raises ApiError if there is none."""
    service: Service = http.app.state.service
    name = http.path_params["name"]
    try:
        await asyncio.to_thread(service.models.adapters.delete, name)
    except KeyError:
        raise unknown_model(name) from None
    return JSONResponse({"id": name, "object": "adapter", "deleted": True})


def _model(service: Service, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": service.started, "owned_by": "aligner_jax"}
