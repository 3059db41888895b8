"""Blobs read from servers that misbehave, as real ones do."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from zeropull.errors import AccessDenied, IntegrityError, Unavailable
from zeropull.registry import BlobSource, open_blob
from zeropull.registry.auth import Authorizer
from zeropull.registry.connecting import Route
from zeropull.registry.http import request
from zeropull.resources.sources import RegistryAccess

CONTENT = hashlib.shake_256(b"content").digest(1_000_000)
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()

HERE = Route.of("127.0.0.1", None)
Answering = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))
        self.server.answering(self)

    def wanted(self) -> tuple[int, int]:
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        return int(first), min(int(last), len(CONTENT) - 1)

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Length": str(len(body)), **names}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def partial(self, total: str = str(len(CONTENT))) -> None:
        first, last = self.wanted()
        body = CONTENT[first : last + 1]
        self.reply(206, body, Content_Range=f"bytes {first}-{last}/{total}")

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answering: Answering) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answering = answering
        self.seen: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def running(answering: Answering) -> Iterator[Server]:
    with Server(answering) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def source(
    server: Server, access: RegistryAccess | None = None, authorization: str | None = None
) -> BlobSource:
    host = server.url.removeprefix("http://")
    return BlobSource(
        url=f"{server.url}/v2/a/blobs/{DIGEST}",
        host=host,
        repository="a",
        digest=DIGEST,
        size=len(CONTENT),
        access=access,
        authorization=authorization,
        user_agent="test",
    )


def read(server: Server, **options: object) -> bytes:
    with open_blob(source(server, **options), part_bytes=100_000) as parts:  # type: ignore[arg-type]
        return b"".join(bytes(part) for part in parts)


def test_a_server_without_ranges_is_asked_once() -> None:
    with running(lambda handler: handler.reply(200, CONTENT)) as server:
        assert read(server) == CONTENT
        assert len(server.seen) == 1


def test_a_server_without_ranges_that_breaks_off_is_read_again() -> None:
    def answer(handler: Handler) -> None:
        first = len(handler.server.seen) == 1
        handler.reply(200, CONTENT[:450_000] if first else CONTENT, Content_Length="1000000")
        handler.close_connection = True

    with running(answer) as server:
        assert read(server) == CONTENT


def test_short_bodies_are_resumed_at_the_byte_where_they_ended() -> None:
    def answer(handler: Handler) -> None:
        first, last = handler.wanted()
        body = CONTENT[first : last + 1]
        handler.reply(
            206,
            body[: len(body) // 2 + 1],
            Content_Length=str(len(body)),
            Content_Range=f"bytes {first}-{last}/{len(CONTENT)}",
        )
        handler.close_connection = True

    with running(answer) as server:
        assert read(server) == CONTENT


def test_another_length_than_the_manifests_is_an_integrity_error() -> None:
    def too_long(handler: Handler) -> None:
        handler.partial(total="1000001")

    def too_short(handler: Handler) -> None:
        handler.reply(200, CONTENT[:-1])

    with running(too_long) as server, pytest.raises(IntegrityError, match="1,000,001 bytes"):
        read(server)
    with running(too_short) as server, pytest.raises(IntegrityError, match="999,999 bytes"):
        read(server)


def test_another_range_than_the_one_asked_for_is_an_integrity_error() -> None:
    def answer(handler: Handler) -> None:
        handler.reply(206, CONTENT[:10], Content_Range=f"bytes 5-14/{len(CONTENT)}")

    with running(answer) as server, pytest.raises(IntegrityError, match="another range"):
        read(server)


def test_credentials_do_not_follow_a_redirect_to_another_server() -> None:
    with running(lambda handler: handler.partial()) as store:

        def answer(handler: Handler) -> None:
            handler.reply(307, Location=f"{store.url}/signed?x=1")

        with running(answer) as server:
            assert read(server, authorization="Bearer secret") == CONTENT
        assert all("Authorization" not in headers for _, headers in store.seen)
        assert all(headers["Authorization"] == "Bearer secret" for _, headers in server.seen)


def test_a_signed_address_that_expires_is_asked_for_again() -> None:
    def store_answer(handler: Handler) -> None:
        expired = (
            urllib.parse.urlsplit(handler.path).query == "n=1" and len(handler.server.seen) > 2
        )
        handler.reply(403) if expired else handler.partial()

    with running(store_answer) as store:

        def answer(handler: Handler) -> None:
            number = len(handler.server.seen)
            handler.reply(307, Location=f"{store.url}/signed?n={min(number, 2)}")

        with running(answer) as server:
            assert read(server) == CONTENT
            assert len(server.seen) >= 2


def test_a_token_that_expires_midway_is_fetched_again() -> None:
    tokens: list[str] = []

    def answer(handler: Handler) -> None:
        if handler.path.startswith("/token"):
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(handler.path).query)
            assert query == {"scope": ["repository:a:pull"], "service": ["here"]}
            assert handler.headers["Authorization"].startswith("Basic ")
            tokens.append(f"t{len(tokens)}")
            handler.reply(200, json.dumps({"token": tokens[-1], "expires_in": 300}).encode())
            return
        blobs = sum("/blobs/" in path for path, _ in handler.server.seen)
        valid = tokens[-1:] if blobs < 6 else tokens[1:]
        if handler.headers.get("Authorization", "").removeprefix("Bearer ") in valid:
            handler.partial()
        else:
            realm = f'Bearer realm="{handler.server.url}/token",service="here"'
            handler.reply(401, WWW_Authenticate=realm + ',scope="repository:a:pull"')

    with running(answer) as server:
        access = RegistryAccess("registry", username="me", password="pw")
        assert read(server, access=access) == CONTENT
    assert len(tokens) == 2


def test_credentials_are_not_sent_to_a_token_server_without_encryption() -> None:
    def answer(handler: Handler) -> None:
        handler.reply(401, WWW_Authenticate='Bearer realm="http://198.18.0.1/token"')

    access = RegistryAccess("registry", username="me", password="pw")
    with running(answer) as server, pytest.raises(AccessDenied, match="https is needed"):
        read(server, access=access)


def test_a_busy_registry_is_asked_again() -> None:
    def answer(handler: Handler) -> None:
        if len(handler.server.seen) == 1:
            handler.reply(503)
        else:
            handler.partial()

    with running(answer) as server:
        assert read(server) == CONTENT


def test_a_circle_of_redirects_ends() -> None:
    def answer(handler: Handler) -> None:
        handler.reply(302, Location="/round")

    with running(answer) as server, pytest.raises(Unavailable, match="circle"):
        read(server)


def test_a_server_that_is_no_http_server_is_unavailable() -> None:
    def answer(handler: Handler) -> None:
        handler.wfile.write(b"220 mail.example.org\r\n")
        handler.close_connection = True

    with running(answer) as server, pytest.raises(Unavailable, match="does not speak HTTP"):
        read(server)


@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.1:99999/", "http://[::1/", "http://127.0.0.1:80a/", "/caf\xe9", "/a b"],
)
def test_a_redirect_to_nonsense_is_unavailable(location: str) -> None:
    def answer(handler: Handler) -> None:
        handler.reply(302, Location=location)

    with running(answer) as server, pytest.raises(Unavailable):
        request("GET", server.url, {}, route=HERE, max_bytes=1000)


def test_a_length_that_is_no_number_is_an_integrity_error() -> None:
    def answer(handler: Handler) -> None:
        handler.reply(200, Content_Length="lots")

    with running(answer) as server, pytest.raises(IntegrityError, match="lots bytes"):
        read(server)


def test_an_answer_that_drips_in_ends_after_its_time() -> None:
    ended = threading.Event()

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        with contextlib.suppress(OSError):
            while not ended.wait(0.02):
                handler.wfile.write(b"x")

    with running(answer) as server:
        try:
            with pytest.raises(Unavailable, match="in time"):
                request("GET", server.url, {}, route=HERE, max_bytes=1 << 20, timeout_s=0.05)
        finally:
            ended.set()


def test_an_answer_that_is_cut_off_is_unavailable() -> None:
    def answer(handler: Handler) -> None:
        handler.reply(200, b"short", Content_Length="100")
        handler.close_connection = True

    with running(answer) as server, pytest.raises(Unavailable, match="broke off"):
        request("GET", server.url, {}, route=HERE, max_bytes=1000)


def test_a_registry_elsewhere_cannot_send_us_to_our_own_loopback() -> None:
    def answer(handler: Handler) -> None:
        handler.reply(200, b'{"token": "t"}')

    with running(answer) as server:
        challenge = f'Bearer realm="{server.url}/token"'
        with pytest.raises(AccessDenied, match="https is needed"):
            Authorizer("registry.example.org", lambda: None, "test").answer("a", challenge, None)
        assert server.seen == []
        near = Authorizer("localhost:5000", lambda: None, "test")
        assert near.answer("a", challenge, None) == "Bearer t"
