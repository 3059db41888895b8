"""The demo's registry, and the registry's own count of what it served."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fixtures.relay import free_port
from tests.fixtures.servers import find_binary, running_server


@dataclass(frozen=True)
class CountedRegistry:
    """A CNCF distribution registry on loopback; `served` reads its access log."""

    address: str
    log: Path

    def served(self) -> tuple[int, int]:
        """Requests answered and bytes sent since the start, as the registry itself logged them."""
        requests = sent = 0
        with self.log.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if '"response completed"' not in line:
                    continue
                with contextlib.suppress(json.JSONDecodeError):
                    entry = json.loads(line)
                    requests += 1
                    sent += int(entry.get("http.response.written", 0))
        return requests, sent


@contextlib.contextmanager
def running_counted_registry(storage: Path, scratch: Path) -> Iterator[CountedRegistry]:
    """Entered once it answers; `storage` outlives it, so that a second demo pushes nothing."""
    storage.mkdir(parents=True, exist_ok=True)
    port = free_port()
    configuration = {
        "version": 0.1,
        "log": {"level": "info", "formatter": "json", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(storage)},
            "cache": {"blobdescriptor": "inmemory"},
        },
        "http": {"addr": f"127.0.0.1:{port}", "relativeurls": True, "secret": "of this demo"},
    }
    path, log = scratch / "registry.yml", scratch / "registry.log"
    path.write_text(json.dumps(configuration))  # JSON is YAML, which is what the registry reads
    log.touch()
    command = [find_binary("docker-registry"), "serve", str(path)]
    with running_server(command, ("127.0.0.1", port), log):
        yield CountedRegistry(f"127.0.0.1:{port}", log)
