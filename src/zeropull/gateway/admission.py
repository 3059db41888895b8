"""Who sends an invocation, and which group of copies it is for."""

from __future__ import annotations

from zeropull.awsprotocol import sigv4
from zeropull.awsprotocol.faults import SignatureError
from zeropull.awsprotocol.sigv4 import SignedHead
from zeropull.gateway import refusals
from zeropull.gateway.body import RequestBody
from zeropull.gateway.invocation_head import InvocationHead, parse_path
from zeropull.gateway.refusals import Refusal
from zeropull.gateway.request import Request
from zeropull.gateway.routing import Group
from zeropull.gateway.runtime_members import STREAM_SESSION
from zeropull.gateway.state import GatewayState
from zeropull.gateway.whole_request import KnownHead


def admit(
    state: GatewayState,
    request: Request,
    head: InvocationHead,
    body: RequestBody,
    received_s: float,
) -> tuple[Group, bool]:
    """The group that takes the request, and whether its answer is streamed.

    Raises:
        Refusal: as AWS answers.
    """
    account = _signer(state, request, body.sha256(), received_s) if state.signed else None
    return _group(state, request, head, account)


def refuse_by_head(state: GatewayState, request: Request) -> Refusal | None:
    """Why no body could make this request right, so that none need come; None = one could."""
    if not state.signed:
        return None
    try:
        sigv4.check_head(
            request.query,
            request.headers,
            state.table.keys,
            region=state.table.region,
            service="sagemaker",
            now_s=state.clock(),
        )
    except SignatureError as error:
        return Refusal(error.status, error.code, str(error))
    return None


def admit_signed(
    state: GatewayState, known: KnownHead, signed: SignedHead, signature: bytes, body_sha256: str
) -> tuple[Group, bool]:
    """As `admit`, for a request that came at this moment with a head known before."""
    now_s = state.clock()
    try:
        key = signed.verify(signature, body_sha256, state.table.keys, now_s=now_s)
    except SignatureError as error:
        raise Refusal(error.status, error.code, str(error)) from error
    if known.group is not None:
        return known.group, known.streamed
    return _group(state, known.request, known.head, key.account)


def is_settled(head: InvocationHead, group: Group) -> bool:
    """Whether every request of one account with this head is for this group while the routes
    last."""
    return head.variant is not None or group.is_only


def _group(
    state: GatewayState, request: Request, head: InvocationHead, account: str | None
) -> tuple[Group, bool]:
    name, streamed = parse_path(request.path, request.method)
    head.refuse_unfit(name)
    if streamed and head.session_id is not None:
        problem = STREAM_SESSION.problem(head.session_id)
        if problem is not None:
            raise problem
    endpoint = state.table.find(name, account)
    if endpoint is None:
        raise refusals.endpoint_not_found(name, account or state.account)
    return endpoint.group(head.variant, head.component), streamed


def _signer(state: GatewayState, request: Request, body_sha256: str, received_s: float) -> str:
    """Its account."""
    # A large body may take longer than a signature holds: what counts is when its head came.
    received_at_s = state.clock() - (state.monotonic() - received_s)
    try:
        key, request.signed = sigv4.verify_head(
            request.method,
            request.path,
            request.query,
            request.headers,
            body_sha256,
            state.table.keys,
            region=state.table.region,
            service="sagemaker",
            now_s=received_at_s,
            claims=state.claims,
        )
    except SignatureError as error:
        raise Refusal(error.status, error.code, str(error)) from error
    return key.account
