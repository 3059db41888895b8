"""Which service, protocol and operation a request names: by its method, path and headers alone.

A form names its operation in the body, which is not read before the request is authenticated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from zeropull.api.messages import ApiRequest
from zeropull.awsprotocol.cbor import PROTOCOL as CBOR_PROTOCOL
from zeropull.awsprotocol.faults import ApiFault
from zeropull.awsprotocol.services import Service

_SHOWN = 128
_CBOR_PATH = "/service/"
_FORM = "application/x-www-form-urlencoded"


class Protocol(Enum):
    JSON = "json"
    QUERY = "query"
    CBOR = "cbor"


@dataclass(slots=True)
class Route:
    """What is known of a request so far: errors answer in its protocol as soon as it is known.

    `is_query_mode`: the client wants the error codes and statuses of the query protocol.
    """

    protocol: Protocol = Protocol.JSON
    service: Service | None = None
    operation: str = ""
    is_query_mode: bool = False
    account: str = ""
    access_key_id: str = ""


def find_route(request: ApiRequest, services: Mapping[str, Service], route: Route) -> Service:
    """Fill `route`; its operation stays empty for a form.

    Raises:
        ApiFault: UnknownOperationException.
    """
    target = request.header("x-amz-target")
    route.is_query_mode = request.header("x-amzn-query-mode").strip().lower() == "true"
    smithy_protocol = request.header("smithy-protocol").strip()
    if smithy_protocol or request.path.startswith(_CBOR_PATH):
        route.protocol = Protocol.CBOR
        if request.method == "POST" and smithy_protocol == CBOR_PROTOCOL:
            prefix, route.operation = _of_path(request.path)
            route.service = _by_prefix(services, prefix, cbor_only=True)
    elif request.method == "POST" and request.path == "/" and target:
        prefix, _, operation = target.rpartition(".")
        route.operation = operation[:_SHOWN]
        route.service = _by_prefix(services, prefix)
    elif request.method == "POST" and request.path == "/" and _is_form(request):
        route.protocol = Protocol.QUERY
        route.service = next((s for s in services.values() if s.is_query_compatible), None)
    if route.service is None:
        raise ApiFault(
            "UnknownOperationException",
            f"{request.method} {request.path[:256]} with the target '{target[:_SHOWN]}' names no "
            "operation that is served here.",
            404,
        )
    return route.service


def _of_path(path: str) -> tuple[str, str]:
    """(service, operation) of /service/<service>/operation/<operation>."""
    parts = path.split("/")
    if len(parts) != 5 or parts[3] != "operation":
        return "", ""
    return parts[2], parts[4][:_SHOWN]


def _by_prefix(
    services: Mapping[str, Service], prefix: str, *, cbor_only: bool = False
) -> Service | None:
    return next(
        (
            service
            for service in services.values()
            if service.target_prefix == prefix and (service.speaks_cbor or not cbor_only)
        ),
        None,
    )


def _is_form(request: ApiRequest) -> bool:
    return request.header("content-type").strip().lower().startswith(_FORM)
