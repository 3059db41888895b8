"""State that is lost, damaged, backed up and restored: real processes, real containers."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.registry import Registry
from tests.integration.serve.served import Served, wait_until


def cli(served: Served, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zeropull.cli.main", *arguments, "--config", str(served.config)],
        capture_output=True,
        text=True,
        timeout=100,
    )


def launches(served: Served) -> set[str]:
    """Instances of the one endpoint."""
    return {instance["instance_id"] for instance in status(served)["endpoints"][0]["instances"]}


def status(served: Served) -> dict[str, Any]:
    return dict(json.loads(served.cli("status", "--json")))


def detached(served: Served) -> Path:
    """Only the processes of the server have ended: instances go on. Returns its state directory."""
    served.end(signal.SIGTERM)
    return served.folder / "state"


def running_ids(state: Path) -> set[str]:
    return {entry.name for entry in (state / "instances").iterdir()}


@pytest.fixture
def deployed(served: Served, registry: Registry) -> Served:
    served.create("demo", f"{registry.address}/server:1", kind="ml.m5.large")
    served.wait_in_service("demo")
    return served


def flip_a_bit(database: Path, kind: str) -> None:
    """In the body of a document of this kind, in every one of them."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        (body,) = connection.execute(
            "SELECT body FROM documents WHERE kind = ?", (kind,)
        ).fetchone()
        flipped = body[:70] + bytes((body[70] ^ 4,)) + body[71:]
        connection.execute("UPDATE documents SET body = ? WHERE kind = ?", (flipped, kind))


def test_a_lost_state_ends_no_instance_and_comes_back_from_a_backup(deployed: Served) -> None:
    backup = deployed.folder / "backup"
    assert "documents" in deployed.cli("backup", str(backup))
    before = launches(deployed)
    refused = cli(deployed, "restore", str(backup))
    assert refused.returncode == 1
    assert "stop it first" in refused.stderr

    state = detached(deployed)
    for file in state.glob("zeropull.db*"):
        file.unlink()
    refused = cli(deployed, "serve")
    assert refused.returncode == 1
    (instance,) = before
    assert f"1 instance ({state}/instances: {instance})" in refused.stderr
    assert "zeropull restore FILE" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert running_ids(state) == before

    damaged = deployed.folder / "damaged"
    damaged.write_bytes(backup.read_bytes())
    flip_a_bit(damaged, "endpoint")
    refused = cli(deployed, "restore", str(damaged))
    assert refused.returncode == 1
    assert "is damaged" in refused.stderr
    assert "documents" in deployed.cli("restore", str(backup))
    deployed.start()
    deployed.wait_in_service("demo")
    assert launches(deployed) == before
    assert deployed.invoke("demo") == b"hello"


def test_the_operators_word_begins_anew(deployed: Served) -> None:
    state = detached(deployed)
    (state / "zeropull.db").write_bytes(b"")
    for name in ("zeropull.db-wal", "zeropull.db-shm"):
        (state / name).unlink(missing_ok=True)
    process = subprocess.Popen(
        [
            sys.executable, "-m", "zeropull.cli.main", "serve", "--fresh-state",
            "--config", str(deployed.config),
        ],
        stdout=(deployed.folder / "out").open("wb"),
        stderr=(deployed.folder / "log").open("ab"),
        start_new_session=True,
    )  # fmt: skip
    deployed.process = process
    deployed.connect()
    wait_until("the instance that nobody knows is ended", lambda: not running_ids(state))
    assert status(deployed)["endpoints"] == []


def test_damaged_files_cost_what_is_in_them_and_nothing_else(deployed: Served) -> None:
    """A flipped bit in a document of history, in the readings, in the token and the key's file."""
    before = launches(deployed)
    state = detached(deployed)
    database = state / "zeropull.db"
    flip_a_bit(database, "timeline")
    (state / "metrics.db").write_bytes(b"garbage " * 1000)
    for name in ("metrics.db-wal", "metrics.db-shm"):
        (state / name).unlink(missing_ok=True)
    (state / "gateway.token").write_bytes(b"\xff" * 64)
    (state / "credentials").write_bytes(b"\xff\xfe[default")
    deployed.start()
    deployed.wait_in_service("demo")
    assert deployed.invoke("demo") == b"hello"
    assert launches(deployed) == before
    (damaged,) = status(deployed)["damaged"]
    assert damaged["kind"] == "timeline"
    assert "damaged and set aside: timeline" in deployed.cli("status")
    assert (
        "damaged documents were set aside: timeline"
        in cli(deployed, "doctor").stdout.replace("\n", " ")
        or "timeline" in cli(deployed, "doctor", "--json").stdout
    )
    assert list(state.glob("metrics.db.damaged-*"))
    log = (deployed.folder / "log").read_text()
    assert "Traceback" not in log
    assert "readings are damaged" in log
