"""A small HTTP endpoint on a Unix socket: GET /status (JSON) and GET /metrics (Prometheus)."""

from __future__ import annotations

import json
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

from zeropull.snapshotter.counters import Counters


class StatusServer(ThreadingMixIn, UnixStreamServer):
    """Serves one process's counters from a thread of its own."""

    daemon_threads = True

    def __init__(self, socket: Path, counters: Counters) -> None:
        socket.unlink(missing_ok=True)  # of a process that was killed
        self.counters = counters
        super().__init__(str(socket), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, name="status", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: StatusServer

    def do_GET(self) -> None:
        counts = self.server.counters.snapshot()
        match self.path:
            case "/status":
                self._answer("application/json", json.dumps(counts))
            case "/metrics":
                self._answer("text/plain; version=0.0.4", render_metrics(counts))
            case _:
                self.send_error(HTTPStatus.NOT_FOUND)

    def address_string(self) -> str:
        return "unix"  # a peer on a Unix socket has no address to print

    def log_message(self, *_: Any) -> None:
        """Reading a counter is not an event."""

    def _answer(self, content_type: str, text: str) -> None:
        body = text.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def render_metrics(counts: dict[str, int]) -> str:
    """Counters in Prometheus' exposition format."""
    lines: list[str] = []
    for name, value in counts.items():
        metric = f"zeropull_snapshotter_{name}_total"
        lines += [f"# TYPE {metric} counter", f"{metric} {value}"]
    return "\n".join(lines) + "\n"
