"""No request is lost when the server is upgraded, or its gateway is replaced or killed."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import threading
from collections.abc import Iterator

import pytest

from tests.acceptance.serving import Server, running_server, wait_until
from tests.fixtures.local_fleet import is_running
from tests.fixtures.registry import Registry

CLIENTS = 14  # with answers after 0.1 to 0.5 s: some 50 requests a second
STREAMS = 3
CHUNKS = 12


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("zp")) as server:
        server.deploy("kept", f"{registry.address}/server:1")
        server.wait_served("kept")
        yield server


class Traffic:
    """boto3 without retries: requests of 100 to 500 ms and streams, each client on one
    connection that is kept."""

    def __init__(self, server: Server) -> None:
        self.failures: list[str] = []
        self.answered = 0
        self._server = server
        self._over = threading.Event()
        self._numbers = itertools.count()

    def _ask(self, client: object) -> None:
        body = b"%d" % next(self._numbers)
        delay = f"delay={random.uniform(0.1, 0.5):.3f}"
        answer = client.invoke_endpoint(  # type: ignore[attr-defined]
            EndpointName="kept", Body=body, CustomAttributes=delay
        )
        assert answer["Body"].read() == body

    def _stream(self, client: object) -> None:
        answer = client.invoke_endpoint_with_response_stream(  # type: ignore[attr-defined]
            EndpointName="kept", Body=b"x", CustomAttributes=f"chunks={CHUNKS};chunk_delay=0.2"
        )
        parts = [event["PayloadPart"]["Bytes"] for event in answer["Body"]]
        assert b"".join(parts) == b"".join(b"%d:x\n" % number for number in range(CHUNKS))

    def _go_on(self, streams: bool) -> None:
        client = self._server.client("sagemaker-runtime")
        while not self._over.is_set():
            try:
                (self._stream if streams else self._ask)(client)
                self.answered += 1
            except Exception as error:
                self.failures.append(repr(error))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        threads = [
            threading.Thread(target=self._go_on, args=(number < STREAMS,), daemon=True)
            for number in range(STREAMS + CLIENTS)
        ]
        for thread in threads:
            thread.start()
        try:
            self.wait_for_more()
            yield
            self.wait_for_more()
        finally:
            self._over.set()
            for thread in threads:
                thread.join(70)

    def wait_for_more(self, count: int = 100) -> None:
        goal = self.answered + count
        wait_until(f"{count} more answers", lambda: self.answered >= goal)


def serves_beside(server: Server, pid: int) -> None:
    """Until a gateway other than that one serves, and one waits behind it."""

    def there() -> bool:
        return len(set(server.child_pids("gateway")) - {pid}) >= 2

    wait_until("another gateway serves, and one waits", there)


def test_an_upgrade_loses_no_request(server: Server) -> None:
    traffic = Traffic(server)
    with traffic.running():
        old = server.serving_gateway()
        server.end(signal.SIGTERM)
        traffic.wait_for_more()  # no supervisor and no control plane: the gateway serves on
        server.start()
        traffic.wait_for_more()
        wait_until("the old gateway has ended", lambda: not is_running(old))
    assert traffic.failures == []
    assert server.answers_api()


def test_a_gateway_that_is_restarted_loses_no_request(server: Server) -> None:
    traffic = Traffic(server)
    with traffic.running():
        old = server.serving_gateway()
        os.kill(old, signal.SIGTERM)
        wait_until("it has ended", lambda: not is_running(old))
        serves_beside(server, old)
    assert traffic.failures == []


def test_a_killed_gateway_loses_what_is_in_flight_and_nothing_more(server: Server) -> None:
    traffic = Traffic(server)
    with traffic.running():
        old = server.serving_gateway()
        server.kill(old)
        serves_beside(server, old)
    # One of each client at most: what came after it was answered.
    assert len(traffic.failures) <= CLIENTS + STREAMS


def test_a_killed_supervisor_takes_nobodys_port_away(server: Server) -> None:
    traffic = Traffic(server)
    with traffic.running():
        old = server.serving_gateway()
        assert server.process is not None
        server.process.kill()
        server.process.wait(10)
        traffic.wait_for_more()
        server.start()
        wait_until("the old gateway has ended", lambda: not is_running(old))
    assert traffic.failures == []


@pytest.mark.parametrize("way", ["zeropull stop", "zeropull stop without a supervisor", "ctrl-c"])
def test_a_stop_ends_every_gateway(server: Server, way: str) -> None:
    if way == "ctrl-c":
        server.end(signal.SIGINT)
    else:
        if "without" in way:
            server.end(signal.SIGTERM)
            assert server.answers("kept")
        server.cli("stop")
    assert server.process is not None
    server.process.wait(10)
    assert server.everything() == set()
    assert not server.names.run_dir.exists()
    server.start()
    wait_until("it answers again", lambda: server.answers("kept"))
