"""The AWS-facing HTTP server of the control plane, which the gateway relays to."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence

from aiohttp import web

from zeropull.api.keys import KeyRing
from zeropull.api.messages import ApiAnswer, ApiRequest
from zeropull.api.operations import OperationTable
from zeropull.api.requests import MAX_BODY_BYTES, RequestHandler, too_large
from zeropull.api.sagemaker import EndpointHooks, sagemaker_table
from zeropull.placement.capacity import Shape
from zeropull.resources.accounts import StoredKey
from zeropull.resources.components import InferenceComponent
from zeropull.statestore import Store

CREATING = ("Create", "PutScal", "PutScheduled", "PutMetricAlarm", "Register", "AddTags", "Tag")
"""How operations begin that are refused on a full disk; what reads, changes or deletes is not."""
SHUTDOWN_S = 5.0


def create_api_app(
    store: Store,
    *,
    region: str,
    instance_types: Collection[str],
    tables: Sequence[OperationTable] = (),
    with_components: bool = False,
    hooks: EndpointHooks | None = None,
    component_shape: Callable[[str], Shape | None] = lambda instance_type: None,
    on_component_delete: Callable[[InferenceComponent, float], None] = lambda *_: None,
    keys: Callable[[], Mapping[str, StoredKey]] | None = None,
    clock: Callable[[], float] = time.time,
    metrics: Callable[[], bytes] | None = None,
) -> web.Application:
    """The operations of SageMaker and of `tables`, behind SigV4 with the store's keys.

    `metrics` answers GET /metrics, which the gateway asks for. Serve the application with
    `create_api_runner`: a server that inflates bodies by itself breaks signatures.
    """
    sagemaker = sagemaker_table(
        store,
        instance_types=instance_types,
        with_components=with_components,
        hooks=hooks,
        component_shape=component_shape,
        on_component_delete=on_component_delete,
    )

    def admit(operation: str) -> None:
        if operation.startswith(CREATING):
            store.refuse_growth()

    handler = RequestHandler(
        (sagemaker, *tables),
        keys or KeyRing(store).current,
        region=region,
        clock=clock,
        admit=admit,
    )

    async def serve(request: web.Request) -> web.Response:
        request_id = str(uuid.uuid4())
        body = await _read(request)
        if body is None:
            return _response(too_large(request_id))
        answer = await handler.handle(
            ApiRequest(request.method, _origin_form(request), request.raw_headers, body, request_id)
        )
        return _response(answer)

    async def scrape(request: web.Request) -> web.Response:
        return web.Response(body=metrics() if metrics else b"", content_type="text/plain")

    async def close(app: web.Application) -> None:
        handler.close()

    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.on_cleanup.append(close)
    if metrics is not None:
        app.router.add_get("/metrics", scrape)
    app.router.add_route("*", "/{path:.*}", serve)
    return app


def create_api_runner(app: web.Application) -> web.AppRunner:
    """The runner, not yet set up: bodies are handed over as they came over the wire."""
    return web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=SHUTDOWN_S)


async def _read(request: web.Request) -> bytes | None:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        return None


def _origin_form(request: web.Request) -> str:
    """Path and query as they were signed."""
    target = request.raw_path
    if target.startswith("/"):
        return target
    return request.rel_url.raw_path_qs  # a proxy's absolute form


def _response(answer: ApiAnswer) -> web.Response:
    return web.Response(status=answer.status, headers=answer.headers, body=answer.body)
