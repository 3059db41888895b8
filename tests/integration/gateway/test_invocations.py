"""Requests through the real gateway to real servers, counted at both ends."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, EventStreamError

from zeropull.awsprotocol.event_stream import EventDecoder
from zeropull.controlapi.messages import AccessKey, EndpointRoute, Routes, VariantRoute
from zeropull.gateway.signed_request import SignedRequests

from .harness import (
    KEY,
    Behaviour,
    Client,
    Received,
    Writer,
    answer,
    container,
    copy,
    gateway,
    routes,
)


def runtime(
    address: tuple[str, int],
    secret: str = KEY.secret_access_key,
    access_key_id: str = KEY.access_key_id,
) -> Any:
    return boto3.client(
        "sagemaker-runtime",
        endpoint_url=f"http://{address[0]}:{address[1]}",
        region_name="us-east-1",
        aws_access_key_id=access_key_id,
        aws_secret_access_key=secret,
        config=Config(retries={"total_max_attempts": 1}),
    )


async def test_boto3_invokes_an_endpoint_with_its_signature_checked() -> None:
    async def behave(request: Received, writer: Writer) -> None:
        writer.write(
            b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
            b"X-Amzn-SageMaker-Custom-Attributes: from=model\r\nX-Secret: no\r\n\r\n{}"
        )

    async with (
        container(behave) as model,
        gateway(routes(copy("1", model.port)), verify_signatures=True) as served,
    ):
        client = runtime(served.address)
        found = await asyncio.to_thread(
            client.invoke_endpoint,
            EndpointName="e",
            Body=b"question",
            ContentType="text/plain",
            Accept="application/json",
            CustomAttributes="a=b",
            TargetVariant="AllTraffic",
        )
        assert found["Body"].read() == b"{}"
        assert found["InvokedProductionVariant"] == "AllTraffic"
        assert found["CustomAttributes"] == "from=model"
        assert found["ContentType"] == "application/json"
        (request,) = model.received
        assert request.line == b"POST /invocations HTTP/1.1"
        assert request.body == b"question"
        assert set(request.headers) == {
            "host",
            "content-type",
            "accept",
            "content-length",
            "x-amzn-sagemaker-custom-attributes",
            "x-amzn-sagemaker-target-variant",
        }
        with pytest.raises(ClientError) as wrong:
            await asyncio.to_thread(
                runtime(served.address, "wrong").invoke_endpoint, EndpointName="e", Body=b""
            )
        assert wrong.value.response["Error"]["Code"] == "InvalidSignatureException"
        with pytest.raises(ClientError, match="Endpoint none of account 123456789012 not found"):
            await asyncio.to_thread(client.invoke_endpoint, EndpointName="none", Body=b"")
        assert len(model.received) == 1


async def test_signatures_with_a_head_known_before_are_verified_each() -> None:
    other = AccessKey("OTHER", "another secret", "999988887777")

    def invoke(address: tuple[str, int], key: AccessKey, secret: str, number: int) -> bytes:
        client = runtime(address, secret, key.access_key_id)
        answers = [
            client.invoke_endpoint(EndpointName="e", Body=b"%d" % (number + i)) for i in (0, 9, 99)
        ]
        return b" ".join(answer["Body"].read() for answer in answers)

    async with container() as ours, container() as theirs:
        served = routes(copy("1", ours.port))
        (endpoint,) = served.endpoints
        (variant,) = endpoint.variants
        foreign = replace(
            endpoint,
            account=other.account,
            variants=(replace(variant, targets=(copy("2", theirs.port),)),),
        )
        served = replace(served, keys=(KEY, other), endpoints=(endpoint, foreign))
        async with gateway(served, verify_signatures=True) as running:
            remembered = running.state.known_requests
            assert isinstance(remembered, SignedRequests)
            for number in range(3):
                for key, model in ((KEY, ours), (other, theirs)):
                    before = len(model.received)
                    call = (running.address, key, key.secret_access_key, number)
                    assert await asyncio.to_thread(invoke, *call) == (
                        b"%d %d %d" % (number, number + 9, number + 99)
                    )
                    assert len(model.received) == before + 3
            assert sum(map(len, remembered._known.values())) >= 2
            received = len(ours.received)
            with pytest.raises(ClientError, match="does not match the signature"):
                await asyncio.to_thread(invoke, running.address, KEY, "wrong", 1)
            running.apply(replace(served, version=2, keys=(other,)))
            assert not remembered._known
            with pytest.raises(ClientError, match="security token included in the request is inv"):
                await asyncio.to_thread(invoke, running.address, KEY, KEY.secret_access_key, 1)
            assert len(ours.received) == received


async def test_boto3_reads_a_stream_and_the_error_that_ends_it() -> None:
    async def behave(request: Received, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n")
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n")
        await writer.drain()
        if request.body == b"break":
            writer.transport.abort()
        else:
            writer.write(b"0\r\n\r\n")

    def read(address: tuple[str, int], body: bytes) -> tuple[str, bytes]:
        found = runtime(address).invoke_endpoint_with_response_stream(EndpointName="e", Body=body)
        parts = b"".join(event["PayloadPart"]["Bytes"] for event in found["Body"])
        return found["ContentType"], parts

    async with container(behave) as model, gateway(routes(copy("1", model.port))) as served:
        kind, parts = await asyncio.to_thread(read, served.address, b"whole")
        assert (kind, parts) == ("text/plain", b"onetwo")
        with pytest.raises(EventStreamError, match="ModelStreamError"):
            await asyncio.to_thread(read, served.address, b"break")


@pytest.mark.parametrize(
    ("status", "kind"), [("404 Not Found", "client"), ("500 Oh no", "server"), ("302 Go", "server")]
)
async def test_what_is_not_2xx_is_a_model_error(status: str, kind: str) -> None:
    async def behave(request: Received, writer: Writer) -> None:
        await answer(writer, b"because", status)

    async with container(behave) as model, gateway(routes(copy("1", model.port))) as served:
        found = await (await Client.open(served)).call(b"x")
        assert (found.status, found.headers["x-amzn-errortype"]) == (424, "ModelError")
        members = json.loads(found.body)
        code = int(status[:3])
        assert (members["OriginalStatusCode"], members["OriginalMessage"]) == (code, "because")
        assert members["LogStreamArn"].endswith(":log-group:/aws/sagemaker/Endpoints/e")
        start = f'Received {kind} error ({code}) from primary with message "because".'
        assert members["Message"].startswith(start)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"hello\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ],
)
async def test_a_broken_answer_is_a_model_error_with_status_0(raw: bytes) -> None:
    async def behave(request: Received, writer: Writer) -> None:
        writer.write(raw)
        await writer.drain()
        writer.close()

    async with container(behave) as model, gateway(routes(copy("1", model.port))) as served:
        found = await (await Client.open(served)).call(b"x")
        assert found.status == 424
        assert json.loads(found.body)["OriginalStatusCode"] == 0


async def test_a_large_answer_that_breaks_off_breaks_the_clients_connection() -> None:
    async def behave(request: Received, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 500_000)
        await writer.drain()
        writer.close()

    async with container(behave) as model, gateway(routes(copy("1", model.port))) as served:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await (await Client.open(served)).call(b"x")


async def test_an_answer_that_ends_with_its_connection_is_whole() -> None:
    async def behave(request: Received, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nall of it")
        await writer.drain()
        writer.close()

    async with container(behave) as model, gateway(routes(copy("1", model.port))) as served:
        found = await (await Client.open(served)).call(b"x")
        assert (found.status, found.body) == (200, b"all of it")


async def test_every_one_of_thousands_of_requests_arrives_once_and_is_answered_with_its_own() -> (
    None
):
    connections, each = 40, 75
    async with (
        container() as first,
        container() as second,
        gateway(
            routes(
                copy("1", first.port, max_concurrency=8), copy("2", second.port, max_concurrency=8)
            )
        ) as served,
    ):

        async def one(number: int) -> None:
            client = await Client.open(served)
            for turn in range(each):
                body = f"{number}-{turn}".encode()
                found = await client.call(body)
                assert (found.status, found.body) == (200, body)

        await asyncio.gather(*(one(number) for number in range(connections)))
        arrived = Counter(r.body for r in (*first.received, *second.received))
        assert len(arrived) == connections * each
        assert set(arrived.values()) == {1}
        assert first.received and second.received
        assert served.in_flight == 0


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with container() as model, gateway(routes(copy("1", model.port))) as served:
        client = await Client.open(served)
        for number in range(200):
            client.send(str(number).encode())
        for number in range(200):
            assert (await client.receive()).body == str(number).encode()
        assert len(model.received) == 200


async def test_bodies_up_to_the_limit_pass_and_larger_ones_are_refused() -> None:
    limit = 25 * 1024 * 1024
    body = bytes(range(256)) * (limit // 256)
    async with container() as model, gateway(routes(copy("1", model.port))) as served:
        client = await Client.open(served)
        assert (await client.call(body)).body == body
        client.send(body + b"x")
        found = await client.receive()
        assert (found.status, found.headers["x-amzn-errortype"]) == (
            413,
            "RequestEntityTooLargeException",
        )
        assert found.headers["connection"] == "close"
        chunked = await Client.open(served)
        chunked.writer.write(b"POST /endpoints/e/invocations HTTP/1.1\r\nHost: h\r\n")
        chunked.writer.write(b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        assert (await chunked.receive()).body == b"abcde"
        assert served.state.bodies.used_bytes == 0
        assert len(model.received) == 2


async def test_a_client_that_expects_100_continue_gets_it() -> None:
    async with container() as model, gateway(routes(copy("1", model.port))) as served:
        client = await Client.open(served)
        client.writer.write(
            b"POST /endpoints/e/invocations HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.writer.write(b"hi")
        assert (await client.receive()).body == b"hi"


async def test_a_client_that_goes_away_cancels_the_containers_work() -> None:
    async def behave(request: Received, writer: Writer) -> None:
        await asyncio.Event().wait()

    async with container(behave) as model, gateway(routes(copy("1", model.port))) as served:
        client = await Client.open(served)
        client.send(b"x")
        await asyncio.wait_for(model.arrived.acquire(), 5)
        assert served.in_flight == 1
        client.close()
        await asyncio.wait_for(model.gone.wait(), 5)
        assert served.in_flight == 0
        assert served.state.table.targets["1"].meter.in_flight == 0


async def test_a_slow_client_holds_nobody_else_up() -> None:
    async def behave(request: Received, writer: Writer) -> None:
        await answer(writer, b"x" * (20_000_000 if request.body == b"large" else 10))

    async with container(behave) as model, gateway(routes(copy("1", model.port))) as served:
        slow, quick = await Client.open(served), await Client.open(served)
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        slow.send(b"large")
        await asyncio.wait_for(model.arrived.acquire(), 5)
        for _ in range(100):
            assert (await quick.call(b"small")).status == 200
        slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len((await slow.receive()).body) == 20_000_000


async def test_an_invocation_that_takes_too_long_is_a_model_error() -> None:
    async def behave(request: Received, writer: Writer) -> None:
        if request.body == b"stream":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await asyncio.Event().wait()

    async with (
        container(behave) as model,
        gateway(
            routes(copy("1", model.port)), request_timeout_s=0.3, stream_timeout_s=0.3
        ) as served,
    ):
        client = await Client.open(served)
        found = await client.call(b"x")
        assert found.status == 424
        assert "timed out while waiting" in json.loads(found.body)["OriginalMessage"]
        streamed = await client.call(b"stream", operation="invocations-response-stream")
        first, last = EventDecoder().feed(streamed.body)
        assert first.payload == b"a"
        assert last.headers[":exception-type"] == "ModelStreamError"
        assert json.loads(last.payload)["ErrorCode"] == "ModelInvocationTimeExceeded"
        assert served.in_flight == 0


async def test_weights_hold_over_many_requests() -> None:
    async with container() as first, container() as second:
        variants = (
            VariantRoute("a", 0.75, targets=(copy("1", first.port),)),
            VariantRoute("b", 0.25, targets=(copy("2", second.port),)),
        )
        made = Routes(1, endpoints=(EndpointRoute("e", "1", "InService", variants=variants),))
        async with gateway(made) as served:
            client = await Client.open(served)
            seen: Counter[str] = Counter()
            for _ in range(800):
                found = await client.call(b"x")
                seen[found.headers["x-amzn-invoked-production-variant"]] += 1
            assert 0.65 < seen["a"] / 800 < 0.85
            assert (len(first.received), len(second.received)) == (seen["a"], seen["b"])


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000,
    ],
)
async def test_malformed_and_endless_heads_are_refused(raw: bytes) -> None:
    async with gateway(routes()) as served:
        client = await Client.open(served)
        client.writer.write(raw)
        assert (await client.receive()).status in (400, 431)


async def test_bytes_behind_an_answer_never_become_the_next_requests_answer() -> None:
    async def behave(request: Received, writer: Writer) -> None:
        if request.body == b"first":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na" * 2)
        else:
            await answer(writer, request.body)

    async with container(behave) as model, gateway(routes(copy("1", model.port))) as served:
        client = await Client.open(served)
        assert (await client.call(b"first")).body == b"a"
        for number in range(5):
            assert (await client.call(str(number).encode())).body == str(number).encode()


@pytest.mark.parametrize("operation", ["invocations", "invocations-response-stream"])
async def test_an_answer_without_a_body_ends_whatever_length_it_names(operation: str) -> None:
    async def behave(request: Received, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nextra")
        await writer.drain()

    async with container(behave) as model, gateway(routes(copy("1", model.port))) as served:
        client = await Client.open(served)
        for _ in range(2):
            async with asyncio.timeout(5):
                found = await client.call(b"x", operation=operation)
            assert (found.status, found.body) == (200, b"")
        client.close()


async def test_a_session_goes_to_the_copy_that_began_it_and_ends_with_it() -> None:
    def behaviour(name: bytes) -> Behaviour:
        async def behave(request: Received, writer: Writer) -> None:
            session = request.headers.get("x-amzn-sagemaker-session-id", "").encode()
            line = b""
            if session == b"NEW_SESSION":
                line = b"X-Amzn-SageMaker-Session-Id: s-%b; Expires=2030-01-01T00:00:00Z\r\n" % name
            elif request.body == b"close":
                line = b"X-Amzn-SageMaker-Closed-Session-Id: %b\r\n" % session
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%b\r\n%b" % (len(name), line, name)
            )
            await writer.drain()

        return behave

    async with (
        container(behaviour(b"1")) as one,
        container(behaviour(b"2")) as two,
        gateway(routes(copy("1", one.port), copy("2", two.port), strategy="RANDOM")) as served,
    ):
        client = await Client.open(served)
        begun = await client.call(b"x", headers="X-Amzn-SageMaker-Session-Id: NEW_SESSION\r\n")
        new_session = begun.headers["x-amzn-sagemaker-new-session-id"]
        session = new_session.partition(";")[0]
        assert session == f"s-{begun.body.decode()}"
        line = f"X-Amzn-SageMaker-Session-Id: {session}\r\n"
        for _ in range(20):
            assert (await client.call(b"x", headers=line)).body == begun.body
        streamed = await client.call(b"x", headers=line, operation="invocations-response-stream")
        assert begun.body in streamed.body
        closed = await client.call(b"close", headers=line)
        assert closed.headers["x-amzn-sagemaker-closed-session-id"] == session
        group = next(iter(served.state.table.groups.values()))
        assert len(group.sessions) == 0
        line = "X-Amzn-SageMaker-Session-Id: NEW_SESSION\r\n"
        refused = await client.call(b"x", headers=line, operation="invocations-response-stream")
        assert refused.status == 400
        client.close()


@pytest.mark.parametrize(
    ("at_zero", "status"),
    [((), 503), (("c",), 400)],
    ids=["crashed", "at zero"],
)
async def test_a_component_without_a_copy_is_worth_another_try_only_when_one_is_wanted(
    at_zero: tuple[str, ...], status: int
) -> None:
    served = routes()
    (endpoint,) = served.endpoints
    endpoint = replace(
        endpoint, component_based=True, components=("c",), components_at_zero=at_zero
    )
    async with gateway(replace(served, endpoints=(endpoint,))) as running:
        client = await Client.open(running)
        found = await client.call(b"x", headers="X-Amzn-SageMaker-Inference-Component: c\r\n")
        assert found.status == status
        client.close()
