"""The start profile's way: recorded at an image's first start, kept with the generation, read ahead
by the next instance."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.images import server_image_with
from tests.acceptance.serving import GPU, Server, running_server, wait_until
from tests.fixtures.images import push_image
from tests.fixtures.registry import Registry
from zeropull.imagecache.layout import generation_profile
from zeropull.startprofiles.profile import read_profile


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("zp")) as server:
        yield server


def test_the_next_instance_reads_ahead_what_the_first_start_read(
    server: Server, registry: Registry
) -> None:
    image = server_image_with("profiled")
    push_image(registry.address, "profiled", "1", image)
    server.deploy("profiled", f"{registry.address}/profiled:1", GPU)
    server.wait_served("profiled")
    path = generation_profile(server.wait_cached("profiled"), image.digest)
    wait_until("the start profile lies beside the generation", path.exists)
    profile = read_profile(path)
    assert profile.manifest_digest == image.digest
    assert profile.size_bytes > 1_000_000  # a Python interpreter at least

    server.scale_and_wait("profiled", 2)

    def read_ahead() -> bool:
        logs = server.folder.glob("state/instances/*/logs/*agent*.log")
        return any("start profile is warm" in log.read_text(errors="replace") for log in logs)

    wait_until("the second instance has read it ahead", read_ahead)
