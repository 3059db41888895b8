"""From bytes to an operation and back: which service and protocol, who signed, parse, answer.

Knows no HTTP server: `zeropull.api.app` brings the request's parts and takes the answer's.
"""

from __future__ import annotations

import hashlib
import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from zeropull.api.operations import Call, OperationTable, merge_tables
from zeropull.awsprotocol import aws_json, query
from zeropull.awsprotocol.faults import QUERY_CODES, ApiFault, fault_of, internal_failure
from zeropull.awsprotocol.services import Service, load_service
from zeropull.awsprotocol.sigv4 import verify
from zeropull.awsprotocol.validation import parse_members
from zeropull.errors import ZeropullError
from zeropull.resources.accounts import StoredKey
from zeropull.telemetry.logs import get_logger

MAX_BODY_BYTES = 4 << 20  # as received; the largest real one is a PutMetricData of 1 MB
MAX_UNZIPPED_BYTES = 16 << 20

_CBOR_PATH = "/service/"
_log = get_logger(__name__)


class Protocol(Enum):
    JSON = "json"
    QUERY = "query"
    CBOR = "cbor"


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """`target` is path and query as they came; headers in order, bytes as they came."""

    method: str
    target: str
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    request_id: str

    def header(self, name: str) -> str:
        wanted = name.lower().encode()
        return next(
            (value.decode("latin-1") for key, value in self.headers if key.lower() == wanted), ""
        )


@dataclass(frozen=True, slots=True)
class ApiAnswer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class _Route:
    """What is known of a request so far: errors answer in its protocol as soon as it is known."""

    protocol: Protocol = Protocol.JSON
    service: Service | None = None
    operation: str = ""
    account: str = ""
    access_key_id: str = ""


class RequestHandler:
    """All services behind one address. `keys` gives the enabled keys by ID."""

    def __init__(
        self,
        tables: Sequence[OperationTable],
        keys: Callable[[], Mapping[str, StoredKey]],
        *,
        region: str,
        clock: Callable[[], float],
    ) -> None:
        self._tables = merge_tables(tables)
        self._services = {name: load_service(name) for name in self._tables}
        self._keys = keys
        self._region = region
        self._clock = clock

    async def handle(self, request: ApiRequest) -> ApiAnswer:
        """Never raises but for cancellation: every error is an answer."""
        route = _Route()
        began_s = self._clock()
        code = ""
        try:
            answer = await self._answer(request, route)
        except ZeropullError as error:
            fault = fault_of(error, route.service.name if route.service else "")
            if fault.status >= 500:
                _log.error("request failed", request_id=request.request_id, exc_info=True)
            code, answer = fault.code, _fault_answer(fault, route, request.request_id)
        except Exception:
            _log.exception("request failed", request_id=request.request_id)
            fault = internal_failure()
            code, answer = fault.code, _fault_answer(fault, route, request.request_id)
        _log.info(
            "request",
            service=route.service.name if route.service else "",
            operation=route.operation,
            account=route.account,
            access_key_id=route.access_key_id,
            status=answer.status,
            code=code,
            request_id=request.request_id,
            duration_s=round(self._clock() - began_s, 4),
        )
        return answer

    async def _answer(self, request: ApiRequest, route: _Route) -> ApiAnswer:
        self._route(request, route)
        service = route.service
        assert service is not None
        key = self._authenticate(request, service)
        route.account, route.access_key_id = key.account, key.access_key_id
        if route.protocol is Protocol.CBOR:
            raise ApiFault(
                "UnknownOperationException",
                "The protocol smithy-rpc-v2-cbor is not supported here: use awsJson1.0 or the "
                "query protocol.",
                404,
            )
        table = self._tables[service.name]
        model, operation = service.operation(route.operation), table.operation(route.operation)
        if model is None or operation is None:
            what = "is not supported here" if model is not None else "is not an operation"
            raise ApiFault(
                "UnknownOperationException", f"{route.operation} of {service.name} {what}.", 404
            )
        body = _unzipped(request)
        raw: Any
        if route.protocol is Protocol.QUERY:
            raw = query.members_of(model.input_shape, query.parse_form(body))
        else:
            raw = aws_json.parse_body(body)
        members = parse_members(
            model.input_shape,
            raw,
            enum_extras=table.enum_extras,
            is_text=route.protocol is Protocol.QUERY,
        )
        for path, why in operation.rules.check(operation.name, members):
            _log.warning(
                "member has no effect here", operation=operation.name, member=path, why=why
            )
        call = Call(
            account=key.account,
            region=self._region,
            operation=operation.name,
            request_id=request.request_id,
            now_s=self._clock(),
            access_key_id=key.access_key_id,
        )
        output = operation.handler(call, members)
        if inspect.isawaitable(output):
            output = await output
        if route.protocol is Protocol.QUERY:
            text = query.serialize_output(service, model, output, request.request_id)
            return ApiAnswer(200, _headers(query.CONTENT_TYPE, request.request_id), text)
        data = aws_json.serialize_output(model.output_shape, output)
        return ApiAnswer(200, _headers(service.json_content_type, request.request_id), data)

    def _route(self, request: ApiRequest, route: _Route) -> None:
        path = request.target.partition("?")[0]
        target = request.header("x-amz-target")
        if path.startswith(_CBOR_PATH) or "cbor" in request.header("smithy-protocol"):
            route.protocol = Protocol.CBOR
            parts = path.split("/")  # /service/<prefix>/operation/<name>
            if len(parts) == 5:
                route.service = self._service_by_prefix(parts[2])
                route.operation = parts[4][:128]
        elif request.method == "POST" and path == "/" and target:
            prefix, _, operation = target.rpartition(".")
            route.operation = operation[:128]
            route.service = self._service_by_prefix(prefix)
        elif request.method == "POST" and path == "/" and _is_form(request):
            route.protocol = Protocol.QUERY
            fields = query.parse_form(_unzipped(request))
            route.operation = fields.get("Action", "")[:128]
            route.service = self._service_by_version(fields.get("Version", ""))
        if route.service is None:
            raise ApiFault(
                "UnknownOperationException",
                f"{request.method} {path[:256]} with the target '{target[:128]}' names no "
                "operation that is served here.",
                404,
            )

    def _service_by_prefix(self, prefix: str) -> Service | None:
        return next((s for s in self._services.values() if s.target_prefix == prefix), None)

    def _service_by_version(self, version: str) -> Service | None:
        return next(
            (
                s
                for s in self._services.values()
                if s.is_query_compatible and s.api_version == version
            ),
            None,
        )

    def _authenticate(self, request: ApiRequest, service: Service) -> StoredKey:
        path, _, query_string = request.target.partition("?")
        return verify(
            request.method,
            path,
            query_string,
            request.headers,
            hashlib.sha256(request.body).hexdigest(),
            self._keys(),
            region=self._region,
            service=service.signing_name,
            now_s=self._clock(),
        )


def too_large(request_id: str) -> ApiAnswer:
    """For the server, which stops reading at MAX_BODY_BYTES."""
    fault = ApiFault(
        "RequestEntityTooLargeException",
        f"The body of a request may have at most {MAX_BODY_BYTES} bytes.",
        413,
    )
    return _fault_answer(fault, _Route(), request_id)


def _fault_answer(fault: ApiFault, route: _Route, request_id: str) -> ApiAnswer:
    service = route.service
    shape_name, query_code, status = fault.code, QUERY_CODES.get(fault.code, fault.code), None
    if service is not None:
        shape_name, own_code, status = service.error(fault.code)
        query_code = QUERY_CODES.get(own_code, own_code)
    status = status or fault.status
    if route.protocol is Protocol.QUERY:
        text = query.serialize_fault(service, fault, query_code, request_id)
        return ApiAnswer(status, _headers(query.CONTENT_TYPE, request_id), text)
    if route.protocol is Protocol.CBOR:
        headers = _headers("application/cbor", request_id) | {"smithy-protocol": "rpc-v2-cbor"}
        pairs = {"__type": shape_name, "message": fault.message}
        return ApiAnswer(status, headers, _cbor_map(pairs))
    content_type = service.json_content_type if service else "application/x-amz-json-1.1"
    headers = _headers(content_type, request_id)
    if service is not None and service.is_query_compatible:
        side = "Sender" if status < 500 else "Receiver"
        headers["x-amzn-query-error"] = f"{query_code};{side}"
    return ApiAnswer(status, headers, aws_json.serialize_fault(fault, shape_name))


def _headers(content_type: str, request_id: str) -> dict[str, str]:
    return {"Content-Type": content_type, "x-amzn-RequestId": request_id}


def _is_form(request: ApiRequest) -> bool:
    return request.header("content-type").startswith("application/x-www-form-urlencoded")


def _unzipped(request: ApiRequest) -> bytes:
    """The body without its Content-Encoding; the signature covers it with."""
    encoding = request.header("content-encoding").strip().lower()
    if encoding in ("", "identity"):
        return request.body
    if encoding != "gzip":
        raise ApiFault(
            "SerializationException", f"The content encoding '{encoding[:64]}' is not supported."
        )
    inflate = zlib.decompressobj(wbits=31)
    try:
        data = inflate.decompress(request.body, MAX_UNZIPPED_BYTES)
    except zlib.error as error:
        raise ApiFault("SerializationException", "The body is not valid gzip.") from error
    if inflate.unconsumed_tail:
        raise ApiFault(
            "RequestEntityTooLargeException",
            f"The body may have at most {MAX_UNZIPPED_BYTES} bytes when it is unzipped.",
            413,
        )
    if not inflate.eof:
        raise ApiFault("SerializationException", "The gzip body is cut short.")
    return data


def _cbor_map(pairs: Mapping[str, str]) -> bytes:
    """Text to text, enough for an error (RFC 8949, major types 5 and 3)."""

    def text(value: str) -> bytes:
        raw = value.encode()
        return b"\x79" + len(raw).to_bytes(2, "big") + raw

    assert len(pairs) < 24
    return bytes([0xA0 + len(pairs)]) + b"".join(text(k) + text(v) for k, v in pairs.items())
