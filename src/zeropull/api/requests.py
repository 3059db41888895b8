"""From bytes to an operation and back: route, authenticate, parse, call, answer.

Knows no HTTP server: `zeropull.api.app` brings the request's parts and takes the answer's.
"""

from __future__ import annotations

import hashlib
import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zeropull.api.answers import fault_answer, output_answer
from zeropull.api.large_bodies import SMALL_BYTES, LargeBodies
from zeropull.api.messages import ApiAnswer, ApiRequest
from zeropull.api.operations import Call, Members, Operation, OperationTable, merge_tables
from zeropull.api.request_rates import RateLimit
from zeropull.api.routing import Protocol, Route, find_route
from zeropull.awsprotocol import aws_json, cbor, query
from zeropull.awsprotocol.faults import ApiFault, fault_of, internal_failure
from zeropull.awsprotocol.services import Service, load_service
from zeropull.awsprotocol.sigv4 import verify
from zeropull.awsprotocol.sigv4_claims import RememberedClaims
from zeropull.awsprotocol.validation import parse_members
from zeropull.errors import ZeropullError
from zeropull.resources.accounts import StoredKey
from zeropull.telemetry.logs import get_logger

# As received, and again when it is unzipped; the largest real one is a PutMetricData of 1 MB.
MAX_BODY_BYTES = 4 << 20

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Parsed:
    call: Call
    operation: Operation
    members: Members


class RequestHandler:
    """All services behind one address. `keys` gives the enabled keys by ID."""

    def __init__(
        self,
        tables: Sequence[OperationTable],
        keys: Callable[[], Mapping[str, StoredKey]],
        *,
        region: str,
        clock: Callable[[], float],
        admit: Callable[[str], None] = lambda operation: None,
    ) -> None:
        """`admit` raises an error of ours for an operation that cannot be carried out now."""
        self._tables = merge_tables(tables)
        self._services = {name: load_service(name) for name in self._tables}
        self._limits = {
            (name, row.name): RateLimit(row.rate)
            for name, table in self._tables.items()
            for row in table.operations
            if row.rate is not None
        }
        self._large = LargeBodies()
        self._claims = RememberedClaims()
        self._keys = keys
        self._region = region
        self._clock = clock
        self._admit = admit

    def close(self) -> None:
        """Requests that still wait for a thread are dropped."""
        self._large.close()

    async def handle(self, request: ApiRequest) -> ApiAnswer:
        """Never raises but for cancellation: every error is an answer."""
        route = Route()
        began_s = self._clock()
        code = ""
        try:
            answer = await self._answer(request, route)
        except ZeropullError as error:
            fault = fault_of(error, route.service.name if route.service else "")
            if fault.status >= 500:
                _log.error("request failed", request_id=request.request_id, exc_info=True)
            code, answer = fault.code, fault_answer(fault, route, request.request_id)
        except Exception:
            _log.exception("request failed", request_id=request.request_id)
            fault = internal_failure()
            code, answer = fault.code, fault_answer(fault, route, request.request_id)
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

    async def _answer(self, request: ApiRequest, route: Route) -> ApiAnswer:
        service = find_route(request, self._services, route)
        key = self._authenticate(request, service)
        route.account, route.access_key_id = key.account, key.access_key_id
        if route.protocol is not Protocol.QUERY:
            self._operation(service, route)
            self._pay(service, route, request)
        if len(request.body) <= SMALL_BYTES and not request.header("content-encoding"):
            parsed = self._parse(request, service, route)
        else:
            parsed = await self._large.run(
                key.account, lambda: self._parse(request, service, route)
            )
        if route.protocol is Protocol.QUERY:
            self._pay(service, route, request)
        self._admit(route.operation)
        if parsed.operation.runs_in_thread:
            output: Any = await self._large.run(
                key.account, lambda: parsed.operation.handler(parsed.call, parsed.members)
            )
        else:
            output = parsed.operation.handler(parsed.call, parsed.members)
        if inspect.isawaitable(output):
            output = await output
        if parsed.operation.has_large_output:
            return await self._large.run(
                key.account, lambda: output_answer(service, route, output, request.request_id)
            )
        return output_answer(service, route, output, request.request_id)

    def _operation(self, service: Service, route: Route) -> Operation:
        model = service.operation(route.operation)
        operation = self._tables[service.name].operation(route.operation)
        if model is None or operation is None:
            what = "is not supported here" if model is not None else "is not an operation"
            raise ApiFault(
                "UnknownOperationException", f"{route.operation} of {service.name} {what}.", 404
            )
        return operation

    def _pay(self, service: Service, route: Route, request: ApiRequest) -> None:
        limit = self._limits.get((service.name, route.operation))
        if limit is not None:
            limit.take(route.account, len(request.body), self._clock())

    def _parse(self, request: ApiRequest, service: Service, route: Route) -> _Parsed:
        """Changes nothing but `route`: it may run in a thread."""
        body = _unzipped(request)
        raw: Any
        if route.protocol is Protocol.QUERY:
            form = query.parse_form(body)
            _name_operation(service, route, form)
            operation = self._operation(service, route)
            raw = query.members_of(service.model.operation_model(operation.name).input_shape, form)
        else:
            operation = self._operation(service, route)
            parse = cbor.parse_body if route.protocol is Protocol.CBOR else aws_json.parse_body
            raw = parse(body)
        members = parse_members(
            service.model.operation_model(operation.name).input_shape,
            raw,
            enum_extras=self._tables[service.name].enum_extras,
            is_text=route.protocol is Protocol.QUERY,
        )
        for path, why in operation.rules.check(operation.name, members):
            _log.warning(
                "member has no effect here", operation=operation.name, member=path, why=why
            )
        call = Call(
            account=route.account,
            region=self._region,
            operation=operation.name,
            request_id=request.request_id,
            now_s=self._clock(),
            access_key_id=route.access_key_id,
        )
        if operation.prepare is not None:
            members = operation.prepare(call, members)
        return _Parsed(call, operation, members)

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
            claims=self._claims,
        )


def too_large(request_id: str) -> ApiAnswer:
    """For the server, which stops reading at MAX_BODY_BYTES."""
    fault = ApiFault(
        "RequestEntityTooLargeException",
        f"The body of a request may have at most {MAX_BODY_BYTES} bytes.",
        413,
    )
    return fault_answer(fault, Route(), request_id)


def _name_operation(service: Service, route: Route, form: Mapping[str, str]) -> None:
    route.operation = form.get("Action", "")[:128]
    version = form.get("Version", "")
    if version != service.api_version:
        raise ApiFault(
            "UnknownOperationException",
            f"The version '{version[:32]}' is not known here: {service.name} has "
            f"{service.api_version}.",
            404,
        )


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
        data = inflate.decompress(request.body, MAX_BODY_BYTES)
    except zlib.error as error:
        raise ApiFault("SerializationException", "The body is not valid gzip.") from error
    if inflate.unconsumed_tail:
        raise ApiFault(
            "RequestEntityTooLargeException",
            f"The body may have at most {MAX_BODY_BYTES} bytes when it is unzipped.",
            413,
        )
    if not inflate.eof:
        raise ApiFault("SerializationException", "The gzip body is cut short.")
    return data
