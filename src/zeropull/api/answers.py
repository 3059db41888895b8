"""Outputs and faults as answers, in the protocol of their request."""

from __future__ import annotations

from zeropull.api.messages import ApiAnswer
from zeropull.api.operations import Output
from zeropull.api.routing import Protocol, Route
from zeropull.awsprotocol import aws_json, cbor, query
from zeropull.awsprotocol.faults import QUERY_CODES, ApiFault
from zeropull.awsprotocol.services import Service


def output_answer(service: Service, route: Route, output: Output, request_id: str) -> ApiAnswer:
    """`output` has members of the operation's output shape."""
    model = service.operation(route.operation)
    assert model is not None
    match route.protocol:
        case Protocol.QUERY:
            text = query.serialize_output(service, model, output, request_id)
            return ApiAnswer(200, _headers(query.CONTENT_TYPE, request_id), text)
        case Protocol.CBOR:
            data = cbor.serialize_output(model.output_shape, output)
            return ApiAnswer(200, _cbor_headers(request_id), data)
    data = aws_json.serialize_output(model.output_shape, output)
    return ApiAnswer(200, _headers(service.json_content_type, request_id), data)


def fault_answer(fault: ApiFault, route: Route, request_id: str) -> ApiAnswer:
    """`fault` by the name, with the status and with the headers that its protocol has for it.

    https://smithy.io/2.0/aws/protocols/aws-query-protocol.html#awsquerycompatible-trait: the
    query protocol's codes and statuses are for clients that ask for them. For others an error of
    the model is 400 when the client is at fault and 500 when the server is.
    """
    service = route.service
    shape_name, query_code, own_status = fault.code, fault.code, None
    if service is not None:
        shape_name, query_code, own_status = service.error(fault.code)
    query_code = QUERY_CODES.get(query_code, query_code)
    status = own_status or fault.status
    if route.protocol is Protocol.QUERY:
        text = query.serialize_fault(service, fault, query_code, request_id)
        return ApiAnswer(status, _headers(query.CONTENT_TYPE, request_id), text)
    if route.protocol is Protocol.CBOR:
        headers = _cbor_headers(request_id)
        body = cbor.serialize_fault(service, fault, shape_name)
    else:
        content_type = service.json_content_type if service else "application/x-amz-json-1.1"
        headers = _headers(content_type, request_id)
        body = aws_json.serialize_fault(fault, shape_name)
    if service is not None and service.is_query_compatible:
        if route.is_query_mode:
            side = "Sender" if status < 500 else "Receiver"
            headers["x-amzn-query-error"] = f"{query_code};{side}"
        elif own_status:
            status = 400 if own_status < 500 else 500
    return ApiAnswer(status, headers, body)


def _headers(content_type: str, request_id: str) -> dict[str, str]:
    return {"Content-Type": content_type, "x-amzn-RequestId": request_id}


def _cbor_headers(request_id: str) -> dict[str, str]:
    return _headers(cbor.CONTENT_TYPE, request_id) | {"smithy-protocol": cbor.PROTOCOL}
