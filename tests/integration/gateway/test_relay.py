"""What is not an invocation reaches the control plane byte for byte, and comes back so."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import web

from .harness import KEY, Client, Writer, container, copy, gateway, routes, until


@contextlib.asynccontextmanager
async def raw_api(
    path: Path, serve: Callable[[asyncio.StreamReader, Writer], object]
) -> AsyncIterator[str]:
    server = await asyncio.start_unix_server(serve, path)  # type: ignore[arg-type]
    try:
        yield str(path)
    finally:
        server.close()


@contextlib.asynccontextmanager
async def aiohttp_api(path: Path) -> AsyncIterator[str]:
    async def echo(request: web.Request) -> web.StreamResponse:
        return web.Response(body=await request.read(), headers={"X-Target": request.path_qs})

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(text="control_plane_metric 1\n")

    app = web.Application(client_max_size=1 << 30)
    app.router.add_get("/metrics", metrics)
    app.router.add_route("*", "/{rest:.*}", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(path)).start()
        yield str(path)
    finally:
        await runner.cleanup()


async def test_heads_are_kept_byte_for_byte_both_ways(tmp_path: Path) -> None:
    head = (
        b"POST /?a=%20b HTTP/1.1\r\nHost: Some.Host:8440\r\nX-Amz-Target: SageMaker.ListModels\r\n"
        b"authorization: AWS4\r\nContent-Length: 2\r\n\r\n"
    )
    reply = (
        b"HTTP/1.1 400 Very Bad\r\nx-CASE: Kept\r\nx-amzn-RequestId: 1\r\n"
        b"content-length: 3\r\n\r\nabc"
    )
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: Writer) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                seen.append(await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(2))
                writer.write(reply)

    async with raw_api(tmp_path / "s", serve) as api, gateway(api_socket=api) as served:
        client = await Client.open(served)
        for _ in range(2):
            client.writer.write(head + b"{}")
            assert await client.reader.readexactly(len(reply)) == reply
        assert seen == [head + b"{}"] * 2
        client.close()


async def test_large_and_chunked_bodies_are_streamed_through(tmp_path: Path) -> None:
    body = bytes(range(256)) * 15_000
    async with aiohttp_api(tmp_path / "s") as api, gateway(api_socket=api) as served:
        client = await Client.open(served)
        client.writer.write(b"POST /service/x?q=1 HTTP/1.1\r\nHost: h\r\n")
        client.writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        found = await client.receive()
        assert found.body == body
        assert found.headers["x-target"] == "/service/x?q=1"
        client.writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.writer.write(b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n")
        assert (await client.receive()).body == b"abcdef"


async def test_without_a_control_plane_serving_goes_on(tmp_path: Path) -> None:
    async with (
        container() as model,
        gateway(routes(copy("1", model.port)), api_socket=str(tmp_path / "none")) as served,
    ):
        client = await Client.open(served)
        for _ in range(3):
            client.writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}")
            found = await client.receive()
            assert found.status == 503
            assert json.loads(found.body)["__type"] == "ServiceUnavailable"
            assert (await client.call(b"x")).body == b"x"


async def test_a_control_plane_that_dies_in_an_answer_breaks_the_connection(
    tmp_path: Path,
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")
        await writer.drain()
        writer.close()

    async with raw_api(tmp_path / "s", serve) as api, gateway(api_socket=api) as served:
        client = await Client.open(served)
        client.writer.write(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await client.receive()


async def test_metrics_name_every_copy_and_hold_the_control_planes_too(tmp_path: Path) -> None:
    async with (
        container() as model,
        aiohttp_api(tmp_path / "s") as api,
        gateway(routes(copy("copy-1", model.port)), api_socket=api) as served,
    ):
        client = await Client.open(served)
        assert (await client.call(b"x")).status == 200
        client.writer.write(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n")
        page = (await client.receive()).body.decode()
        labels = 'account="123456789012",endpoint="e",variant="AllTraffic"'
        assert f'zeropull_gateway_requests_total{{{labels},status="200",code=""}} 1' in page
        assert f'zeropull_gateway_in_flight_requests{{{labels},copy="copy-1"}} 0' in page
        assert f"zeropull_gateway_request_seconds_count{{{labels}}} 1" in page
        assert "control_plane_metric 1" in page
        client.writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
        assert json.loads((await client.receive()).body) == {"status": "ok", "routes_version": 1}


async def test_a_body_is_not_taken_when_no_key_can_have_signed_the_call(tmp_path: Path) -> None:
    """The control plane words the refusal, for which it needs the head only."""
    async with (
        aiohttp_api(tmp_path / "s") as api,
        gateway(routes(), api_socket=api, verify_signatures=True) as served,
    ):
        for key_id, passed in (("NOBODY", b""), (KEY.access_key_id, b"x" * 1000), ("", b"")):
            client = await Client.open(served)
            signed = f"AWS4-HMAC-SHA256 Credential={key_id}/20261130/us/x/aws4_request"
            line = f"Authorization: {signed}\r\n" if key_id else ""
            client.writer.write(
                f"POST / HTTP/1.1\r\nHost: h\r\n{line}Content-Length: 1000\r\n\r\n".encode()
                + b"x" * 1000
            )
            assert (await client.receive()).body == passed
            client.close()
        assert served.state.relayed_bodies.used_bytes == 0


async def test_relayed_bodies_are_bounded_each_and_all_together(tmp_path: Path) -> None:
    async with (
        aiohttp_api(tmp_path / "s") as api,
        gateway(api_socket=api, max_relayed_bytes=1500) as served,
    ):
        client = await Client.open(served)
        client.writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5000000\r\n\r\nx")
        refused = await client.receive()
        assert refused.status == 413
        assert json.loads(refused.body)["__type"] == "RequestEntityTooLargeException"
        first, second = await Client.open(served), await Client.open(served)
        for one in (first, second):
            one.writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n")
        first.writer.write(b"x" * 900)
        await until(lambda: served.state.relayed_bodies.used_bytes == 900)
        second.writer.write(b"x" * 900)
        assert (await second.receive()).status == 503
        first.writer.write(b"x" * 100)
        assert (await first.receive()).body == b"x" * 1000
        assert served.state.relayed_bodies.used_bytes == 0


async def test_metrics_are_for_this_machine_and_for_whoever_has_the_token(tmp_path: Path) -> None:
    async with (
        aiohttp_api(tmp_path / "s") as api,
        gateway(api_socket=api, metrics_token="secret") as served,
    ):
        client = await Client.open(served)
        lines = ("", "Authorization: Bearer wrong\r\n", "Authorization: Bearer secret\r\n")
        for address, statuses in (
            ("127.0.0.1", [200, 200, 200]),
            ("198.18.0.9", [403, 403, 200]),  # as a client from elsewhere
        ):
            await until(lambda: served.state.clients.open)
            (connection,) = served.state.clients.open
            connection.address = address
            found = []
            for line in lines:
                client.writer.write(f"GET /metrics HTTP/1.1\r\nHost: h\r\n{line}\r\n".encode())
                found.append((await client.receive()).status)
            assert found == statuses
        connection.address = "127.0.0.1"
        client.close()


@pytest.mark.parametrize(
    "head",
    [
        b"POST * HTTP/1.1\r\nHost: h\r\n",
        b"POST x HTTP/1.1\r\nHost: h\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nHost: b\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nExpect: more\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nX: %b\r\n" % (b"a" * 20_000),
        b"POST /%b HTTP/1.1\r\nHost: h\r\n" % (b"a" * 20_000),
    ],
)
async def test_a_head_that_no_api_reads_is_refused_in_words_of_our_own(
    tmp_path: Path, head: bytes
) -> None:
    async with aiohttp_api(tmp_path / "s") as api, gateway(api_socket=api) as served:
        client = await Client.open(served)
        client.writer.write(head + b"Content-Length: 0\r\n\r\n")
        refused = await client.receive()
        assert refused.status == 400
        assert "server" not in refused.headers
        client.close()


async def test_an_error_of_the_library_behind_the_api_does_not_come_through(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: Writer) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 400 Bad Request\r\nServer: lib\r\nContent-Len")
            await writer.drain()
            writer.write(b"gth: 9\r\n\r\nTraceback")
            await writer.drain()
        writer.close()

    async with raw_api(tmp_path / "s", serve) as api, gateway(api_socket=api) as served:
        client = await Client.open(served)
        client.writer.write(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
        refused = await client.receive()
        assert refused.status == 400
        assert b"Traceback" not in refused.body
        assert json.loads(refused.body)["__type"] == "MalformedHttpRequestException"
        client.close()
