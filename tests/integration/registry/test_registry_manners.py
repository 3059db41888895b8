"""Images pulled from registries that answer as real ones do now and then."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import Callable

import pytest

from tests.fixtures.images_over_http import Answering, ImageServer, RegistryHandler, image_server
from zeropull.errors import AccessDenied, NotFound, Unavailable
from zeropull.registry import BlobSource, RegistryClient, open_blob
from zeropull.registry.auth import Authorizer
from zeropull.registry.connecting import RateFloor, Route
from zeropull.registry.http import request
from zeropull.registry.ranges import RangeReader
from zeropull.resources.sources import RegistryAccess, RegistryMirror

PASSWORD = RegistryAccess("r", username="u", password="p")
IDENTITY = RegistryAccess("r", token="identity")
Access = Callable[[str], RegistryAccess | None]


def basic(password: str = "p") -> str:
    return "Basic " + base64.b64encode(f"u:{password}".encode()).decode()


async def pull(server: ImageServer, access: Access, patience_s: float = 60.0) -> None:
    """Resolve the image and read its layer."""
    async with RegistryClient(access, patience_s=patience_s) as client:
        image = await client.resolve(server.reference)
        source = await client.blob_source(server.reference, image.layers[0])

    def read() -> bytes:
        with open_blob(source, part_bytes=50_000) as parts:
            return b"".join(bytes(part) for part in parts)

    assert await asyncio.to_thread(read) == server.image.layers[0].content


def lets_in(
    challenge: str, token: object = b'{"token": "t"}', accepted: str = "Bearer t"
) -> Answering:
    """A registry that wants `accepted`, and its token server at /token."""

    def answer(handler: RegistryHandler) -> bool:
        if handler.path.startswith("/token"):
            if handler.headers.get("Authorization") != basic():
                return handler.reply(401)
            return handler.reply(200, token)
        if handler.headers.get("Authorization") == accepted:
            return False
        url = f"http://{handler.server.host}/token"
        return handler.reply(401, WWW_Authenticate=challenge.replace("REALM", url))

    return answer


BEARER = 'Bearer realm="REALM",service="s"'


@pytest.mark.parametrize(
    ("challenge", "accepted"),
    [
        (f'{BEARER}\nBasic realm="r"', "Bearer t"),
        (f'Basic realm="r"\n{BEARER}', "Bearer t"),
        (f'Basic realm="r", {BEARER}', "Bearer t"),
        (f'{BEARER}, Basic realm="r"', "Bearer t"),
        ('Basic realm="r"\nNegotiate', basic()),
        ("Negotiate, Basic", basic()),
    ],
)
async def test_one_of_several_challenges_is_answered(challenge: str, accepted: str) -> None:
    with image_server(lets_in(challenge, accepted=accepted)) as server:
        await pull(server, lambda host: PASSWORD)


async def test_basic_is_tried_when_the_token_server_refuses() -> None:
    with image_server(lets_in(f'{BEARER}, Basic realm="r"', accepted=basic("q"))) as server:
        access = RegistryAccess("r", username="u", password="q")
        await pull(server, lambda host: access)


@pytest.mark.parametrize(
    "token",
    [
        {"token": "t", "expires_in": "300"},
        {"token": "t", "expires_in": None},
        {"token": "t", "expires_in": "soon"},
        {"token": "t", "expires_in": -5, "issued_at": None},
        {"token": None, "access_token": "t"},
        {"token": "t", "access_token": None, "expires_in": 1e30},
    ],
)
async def test_token_answers_may_have_odd_members(token: dict[str, object]) -> None:
    with image_server(lets_in(BEARER, json.dumps(token).encode())) as server:
        await pull(server, lambda host: PASSWORD)


@pytest.mark.parametrize("status", [400, 401, 404, 405, 501])
async def test_a_token_server_without_post_is_asked_by_get(status: int) -> None:
    well = lets_in(BEARER)

    def answer(handler: RegistryHandler) -> bool:
        if handler.command == "POST":
            return handler.reply(status)
        if handler.path.startswith("/token"):
            return handler.reply(200, b'{"token": "t"}')
        return well(handler)

    with image_server(answer) as server:
        await pull(server, lambda host: IDENTITY)
        headers = [headers for _, path, headers in server.seen if path.startswith("/token?")]
        pair = base64.b64encode(b":identity").decode()
        assert headers[0]["Authorization"] == f"Basic {pair}"


async def test_credentials_that_have_expired_are_renewed_on_403() -> None:
    passwords = ["p"]

    def answer(handler: RegistryHandler) -> bool:
        given = handler.headers.get("Authorization")
        if given is None:
            return handler.reply(401, WWW_Authenticate='Basic realm="r"')
        if given != basic(passwords[-1]):
            return handler.reply(403, b"Your authorization token has expired.")
        return False

    def access(host: str) -> RegistryAccess:
        return RegistryAccess(host, username="u", password=passwords[-1])

    with image_server(answer) as server:
        async with RegistryClient(access) as client:
            await client.resolve(server.reference)
            passwords.append("p2")
            await client.resolve(server.reference)
        with pytest.raises(AccessDenied, match="403"):
            await pull(server, lambda host: RegistryAccess(host, username="u", password="p"))


@pytest.mark.parametrize("path", ["/token", "/manifests/", "/blobs/"])
@pytest.mark.parametrize("fault", ["429", "503", "reset"])
async def test_what_passes_is_waited_for(path: str, fault: str) -> None:
    well = lets_in(BEARER)
    faults: dict[str, int] = {}

    def answer(handler: RegistryHandler) -> bool:
        faults[handler.path] = faults.get(handler.path, 0) + 1
        if path not in handler.path or faults[handler.path] > 1:
            return well(handler)
        if fault == "reset":
            handler.close_connection = True
            return True
        return handler.reply(int(fault), Retry_After="0")

    with image_server(answer) as server:
        await pull(server, lambda host: PASSWORD)


async def test_retry_after_is_honoured_within_the_patience() -> None:
    times: list[float] = []

    def answer(handler: RegistryHandler) -> bool:
        times.append(time.monotonic())
        return handler.reply(429, Retry_After="1" if len(times) == 1 else "30")

    with image_server(answer) as server, pytest.raises(Unavailable, match="our rate") as caught:
        await pull(server, lambda host: None, patience_s=10.0)
    assert caught.value.retry_after_s == 30.0
    assert len(times) == 2
    assert times[1] - times[0] >= 1.0


@pytest.mark.parametrize("kind", ["501", "416", "405", "bare 206", "other 206"])
async def test_a_blob_is_read_without_ranges_where_they_are_refused(kind: str) -> None:
    def answer(handler: RegistryHandler) -> bool:
        if "/blobs/" not in handler.path or "Range" not in handler.headers:
            return False
        if kind == "bare 206":
            return handler.reply(206, handler.server.image.layers[0].content)
        if kind == "other 206":
            return handler.reply(206, b"abc", Content_Range="bytes 7-9/128512")
        return handler.reply(int(kind))

    with image_server(answer) as server:
        await pull(server, lambda host: None)


async def test_a_mirror_is_asked_first_and_passed_over_when_it_fails() -> None:
    with image_server() as mirror, image_server() as registry:

        def access(host: str) -> RegistryAccess:
            url = f"http://{mirror.host}"
            mirrors = (RegistryMirror(url, RegistryAccess(mirror.host, is_configured=True)),)
            return RegistryAccess(host, mirrors=mirrors)

        await pull(registry, access)
        assert registry.seen == []
        assert all(
            path.endswith(f"?ns=127.0.0.1%3A{registry.server_port}") for _, path, _ in mirror.seen
        )
        for fault in (404, 403, 500):
            mirror.answering = lambda handler, status=fault: handler.reply(status)  # type: ignore[misc]
            registry.seen.clear()
            await pull(registry, access)
            assert len(registry.seen) >= 3

        def without_blobs(handler: RegistryHandler) -> bool:
            return "/blobs/" in handler.path and handler.reply(404)

        mirror.answering = registry.answering = without_blobs
        with pytest.raises(NotFound):
            await pull(registry, access)


async def test_why_there_are_no_credentials_is_in_the_error() -> None:
    with image_server(lets_in(BEARER)) as server:
        access = RegistryAccess("r", problem="docker-credential-x is not on PATH")
        with pytest.raises(AccessDenied, match=r"there are none: docker-credential-x is not on"):
            await pull(server, lambda host: access)


def test_a_redirect_to_an_address_of_this_machine_is_refused() -> None:
    def answer(handler: RegistryHandler) -> bool:
        return handler.reply(302, Location=f"http://localhost:{handler.server.server_port}/x")

    with image_server(answer) as server:
        # Stands for a registry elsewhere: only this one address of it is allowed.
        route = Route.of("r.example", RegistryAccess("r.example", is_configured=True))
        with pytest.raises(AccessDenied, match="only this machine can reach"):
            request("GET", f"http://{server.host}/", {}, route=route, max_bytes=10)
        assert server.seen == []
        # The very address is configured; a redirect from there to another name is still refused.
        route = Route.of(server.host, RegistryAccess(server.host, is_configured=True))
        near = Route(route.host, route.access, type(route.reach)(route.reach.hosts, False))
        with pytest.raises(AccessDenied, match="localhost leads to"):
            request("GET", f"http://{server.host}/", {}, route=near, max_bytes=10)
        for address in ("169.254.169.254", "100.100.100.200"):
            server.answering = lambda handler, to=address: handler.reply(  # type: ignore[misc]
                307, Location=f"http://{to}/latest/meta-data"
            )
            with pytest.raises(AccessDenied, match=address):
                request("GET", f"http://{server.host}/", {}, route=route, max_bytes=10)


def test_a_password_never_goes_to_another_host_in_the_clear() -> None:
    access = RegistryAccess("r.example", True, username="u", password="p")
    for secret in (access, RegistryAccess("r.example", True, token="t")):
        authorizer = Authorizer("r.example:5000", lambda secret=secret: secret, "test")  # type: ignore[misc]
        with pytest.raises(AccessDenied, match="without encryption, to another host"):
            authorizer.answer("a", 'Bearer realm="http://198.18.0.1/token"', "Bearer old")


@pytest.mark.parametrize("part", ["status line", "headers"])
def test_a_head_that_drips_ends_after_its_time(part: str) -> None:
    def answer(handler: RegistryHandler) -> bool:
        handler.close_connection = True
        if part == "headers":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        try:
            while True:
                handler.wfile.write(b"X")
                time.sleep(0.01)
        except OSError:
            return True

    with image_server(answer) as server:
        began_s = time.monotonic()
        with pytest.raises(Unavailable, match="in time"):
            request(
                "GET",
                f"http://{server.host}/",
                {},
                route=Route.of(server.host, None),
                max_bytes=10,
                timeout_s=0.3,
            )
        assert time.monotonic() - began_s < 20


def test_a_blob_that_drips_is_given_up() -> None:
    def answer(handler: RegistryHandler) -> bool:
        handler.close_connection = True
        first, _, last = handler.headers["Range"].removeprefix("bytes=").partition("-")
        handler.wfile.write(
            f"HTTP/1.1 206 OK\r\nContent-Range: bytes {first}-{last}/128512\r\n"
            "Content-Length: 50000\r\n\r\n".encode()
        )
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(b"X")
                time.sleep(0.02)
        return True

    with image_server(answer) as server:
        source = BlobSource(
            url=f"http://{server.host}/v2/a/blobs/x",
            host=server.host,
            repository="a",
            digest="sha256:" + "0" * 64,
            size=128_512,
            access=None,
            authorization=None,
            user_agent="test",
        )
        reader = RangeReader(
            source,
            lambda one: Authorizer(one.host, lambda: None, "test"),
            pause=lambda seconds: False,
            on_open=lambda has_ranges: None,
            on_bytes=None,
            floor=RateFloor(bytes_per_s=5000.0, window_s=0.2),
        )
        with pytest.raises(Unavailable, match="too slow"):
            reader.fill(memoryview(bytearray(50_000)), 0)
        assert 2 <= len(server.seen) <= 8
