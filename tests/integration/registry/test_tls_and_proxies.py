"""Registries behind TLS of a private authority, client certificates and proxies."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.images_over_http import RegistryHandler, image_server
from tests.integration.imagecache.test_layer_exactness import private_containerd
from tests.integration.registry.test_registry_manners import pull
from zeropull.errors import AccessDenied, ConfigurationError, Unavailable
from zeropull.nodeagent.images.ctr_pull import pull_with_ctr
from zeropull.registry.connecting import Route, connect
from zeropull.registry.http import request
from zeropull.resources.sources import RegistryAccess

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem, and server and client certificates with their keys."""
    folder = tmp_path_factory.mktemp("tls")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]

    def openssl(*arguments: str) -> None:
        done = subprocess.run(
            ["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    openssl(
        "req",
        "-x509",
        *key,
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        "-subj",
        "/CN=test",
        "-days",
        "2",
    )
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("server", "client"):
        openssl(
            "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-days", "2", "-extfile", "san", "-out", f"{name}.pem",
        )  # fmt: skip
    return folder


def server_context(authority: Path, *, wants_client: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "server.pem", authority / "server.key")
    if wants_client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(authority / "ca.pem")
    return context


def trusting(authority: Path) -> RegistryAccess:
    return RegistryAccess("r", ca=(authority / "ca.pem").read_text(), is_configured=True)


async def test_a_private_authority_is_trusted_when_it_is_configured(authority: Path) -> None:
    with image_server(context=server_context(authority)) as server:
        await pull(server, lambda host: trusting(authority))
        no_authority = RegistryAccess("r", plain_http=False)
        with pytest.raises(AccessDenied, match=r"not trusted here: .* set ca_file"):
            await pull(server, lambda host: no_authority)
        unchecked = dataclasses.replace(no_authority, skip_verify=True)
        await pull(server, lambda host: unchecked)


async def test_a_client_certificate_is_shown(authority: Path) -> None:
    with image_server(context=server_context(authority, wants_client=True)) as server:
        access = dataclasses.replace(
            trusting(authority),
            client_cert=(authority / "client.pem").read_text(),
            client_key=(authority / "client.key").read_text(),
        )
        await pull(server, lambda host: access)
        with pytest.raises(Unavailable):
            await pull(server, lambda host: trusting(authority), patience_s=0.0)


@pytest.mark.parametrize("member", ["ca", "client_cert"])
def test_certificates_that_are_none_are_a_configuration_error(member: str) -> None:
    change: dict[str, Any] = {member: "nonsense"}
    access = dataclasses.replace(RegistryAccess("r", is_configured=True), **change)
    with image_server() as server, pytest.raises(ConfigurationError, match="ca_file, cert_file"):
        connect(f"https://{server.host}/", Route.of(server.host, access))


@contextlib.contextmanager
def tunnelling(target: tuple[str, int], seen: list[str]) -> Iterator[str]:
    """A proxy that leads every CONNECT to `target`, whatever name it is asked for."""

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=tunnel, args=(client,), daemon=True).start()

    def tunnel(client: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += client.recv(1)
        seen.append(head.decode())
        if b"refused.example" in head:
            client.sendall(b"HTTP/1.1 403 Not here\r\n\r\n")
            client.close()
            return
        upstream = socket.create_connection(target)
        client.sendall(b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n")
        back = threading.Thread(target=relay, args=(upstream, client), daemon=True)
        back.start()
        relay(client, upstream)

    def relay(source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(65536):
                to.sendall(part)
            to.shutdown(socket.SHUT_WR)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield f"http://user:pass%40word@127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def test_https_goes_through_a_tunnel(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    with (
        image_server(context=server_context(authority)) as server,
        tunnelling(("127.0.0.1", server.server_port), seen) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        access = dataclasses.replace(trusting(authority), skip_verify=True)
        route = Route.of("r.example", access)
        answer = request(
            "GET", "https://r.example/v2/a/b/manifests/1", {}, route=route, max_bytes=9999
        )
        assert answer.status == 200
        assert seen[0].startswith("CONNECT r.example:443 HTTP/1.1\r\n")
        assert "Proxy-Authorization: Basic dXNlcjpwYXNzQHdvcmQ=" in seen[0]
        with pytest.raises(Unavailable, match=r"does not connect to refused\.example:443: 403"):
            request("GET", "https://refused.example/", {}, route=route, max_bytes=10)
        assert "pass" not in str(server.seen)


def test_plain_http_tells_the_proxy_the_whole_url(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(handler: RegistryHandler) -> bool:
        return handler.reply(200, handler.path.encode())

    with image_server(answer) as proxy:
        monkeypatch.setenv("http_proxy", proxy.host)
        monkeypatch.setenv("NO_PROXY", "direct.example")
        route = Route.of("r.example", None)
        url = "http://r.example/v2/a?b=c"
        found = request("GET", url, {}, route=route, max_bytes=1000)
        assert found.body == url.encode()
        with pytest.raises(AccessDenied, match=r"169\.254\.169\.254"):
            request("GET", "http://169.254.169.254/latest", {}, route=route, max_bytes=10)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ctr"), reason="needs root and ctr")
async def test_containerds_own_pull_has_the_same_certificates(
    authority: Path, tmp_path: Path
) -> None:
    access = dataclasses.replace(
        trusting(authority),
        client_cert=(authority / "client.pem").read_text(),
        client_key=(authority / "client.key").read_text(),
    )
    folder = Path(tempfile.mkdtemp(prefix="zp-tls-"))  # short: sockets lie there
    try:
        with (
            private_containerd(folder) as socket_path,
            image_server(context=server_context(authority, wants_client=True)) as server,
        ):
            name = f"{server.host}/a/b@{server.image.digest}"
            await pull_with_ctr(
                name,
                socket=socket_path,
                namespace="default",
                platform="linux/amd64",
                access=dataclasses.replace(access, host=server.host),
                plain_http=False,
                scratch=tmp_path,
            )
            paths = [path for _, path, _ in server.seen]
            assert any("/blobs/" in path for path in paths)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert list(tmp_path.iterdir()) == []
