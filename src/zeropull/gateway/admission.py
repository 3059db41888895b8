"""Who sends an invocation, and which group of copies it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zeropull.awsprotocol import sigv4
from zeropull.awsprotocol.faults import SignatureError
from zeropull.gateway import refusals
from zeropull.gateway.invocation_head import InvocationHead, parse_path
from zeropull.gateway.refusals import Refusal
from zeropull.gateway.request import Request
from zeropull.gateway.routing import Group

if TYPE_CHECKING:
    from zeropull.awsprotocol.sigv4 import SignedHead
    from zeropull.gateway.server import Gateway
    from zeropull.gateway.whole_request import KnownHead


def admit(
    gateway: Gateway,
    request: Request,
    head: InvocationHead,
    body_sha256: str,
    received_s: float,
) -> tuple[Group, bool]:
    """The group that takes the request, and whether its answer is streamed.

    Raises:
        Refusal: as AWS answers.
    """
    account = _signer(gateway, request, body_sha256, received_s) if gateway.signed else None
    return _group(gateway, request, head, account)


def admit_signed(
    gateway: Gateway, known: KnownHead, signed: SignedHead, signature: bytes, body_sha256: str
) -> tuple[Group, bool]:
    """As `admit`, for a request that came at this moment with a head known before."""
    now_s = gateway.clock()
    try:
        key = signed.verify(signature, body_sha256, gateway.table.keys, now_s=now_s)
    except SignatureError as error:
        raise Refusal(error.status, error.code, str(error)) from error
    if known.group is not None:
        return known.group, known.streamed
    return _group(gateway, known.request, known.head, key.account)


def is_settled(head: InvocationHead, group: Group) -> bool:
    """Whether every request of one account with this head is for this group while the routes
    last."""
    return head.variant is not None or group.is_only


def _group(
    gateway: Gateway, request: Request, head: InvocationHead, account: str | None
) -> tuple[Group, bool]:
    name, streamed = parse_path(request.path, request.method)
    endpoint = gateway.table.find(name, account)
    if endpoint is None:
        raise refusals.endpoint_not_found(name, account or gateway.account)
    return endpoint.group(head.variant, head.component), streamed


def _signer(gateway: Gateway, request: Request, body_sha256: str, received_s: float) -> str:
    """Its account."""
    # A large body may take longer than a signature holds: what counts is when its head came.
    received_at_s = gateway.clock() - (gateway.monotonic() - received_s)
    try:
        key, request.signed = sigv4.verify_head(
            request.method,
            request.path,
            request.query,
            request.headers,
            body_sha256,
            gateway.table.keys,
            region=gateway.table.region,
            service="sagemaker",
            now_s=received_at_s,
        )
    except SignatureError as error:
        raise Refusal(error.status, error.code, str(error)) from error
    return key.account
