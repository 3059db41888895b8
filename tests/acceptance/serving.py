"""A `zeropull serve` of the acceptance tests, driven by boto3 and looked at from the machine."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from tests.fixtures.local_fleet import is_running, left_behind
from tests.integration.serve.served import DEADLINE_S, ROLE, Served, wait_until
from zeropull.providers.local.names import FleetNames
from zeropull.resources.settings import ServeSettings, Settings

GPU, CPU = "ml.g5.xlarge", "ml.m5.large"
REQUEST_PAUSE_S = 0.05  # a light load: the machine is to do other things at the same time


class Server(Served):
    """One `zeropull serve`, its user, and what an administrator of the machine can see and kill.

    `settings` are tables of the TOML file; they replace those of the same name.
    """

    def __init__(self, folder: Path, **settings: dict[str, Any]) -> None:
        super().__init__(folder)
        self.bucket = folder / "bucket"
        tables: dict[str, dict[str, Any]] = {
            "serve": {"state_dir": str(folder / "state"), "port": 0},
            "fleet": {"simulate_accelerators": True},
            "endpoints": {"retry_s": 0.5},
            'buckets."models"': {"directory": str(self.bucket)},
        }
        top = settings.pop("top", {})
        tables |= settings
        lines = [f"{key} = {json.dumps(value)}" for key, value in top.items()]
        for name, table in tables.items():
            lines += ["", f"[{name}]"]
            lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        self.config.write_text("\n".join(lines) + "\n")
        plain = Settings(serve=ServeSettings(state_dir=str(folder / "state")))
        self.names = FleetNames(plain.state_dir, plain.run_dir)

    def deploy(
        self,
        name: str,
        image: str,
        kind: str = CPU,
        *,
        model: str | None = None,
        environment: dict[str, str] | None = None,
        **variant: Any,
    ) -> None:
        """Make model, endpoint config and endpoint of that name."""
        self.make_config(name, image, kind, model=model, environment=environment, **variant)
        self.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)

    def make_config(
        self,
        name: str,
        image: str,
        kind: str = CPU,
        *,
        model: str | None = None,
        environment: dict[str, str] | None = None,
        **variant: Any,
    ) -> None:
        container: dict[str, Any] = {"Image": image, "Environment": environment or {}}
        if model is not None:
            container["ModelDataUrl"] = model
        self.sagemaker.create_model(
            ModelName=name, PrimaryContainer=container, ExecutionRoleArn=ROLE
        )
        base = {
            "VariantName": "main",
            "ModelName": name,
            "InstanceType": kind,
            "InitialInstanceCount": 1,
        }
        self.sagemaker.create_endpoint_config(
            EndpointConfigName=name, ProductionVariants=[base | variant]
        )

    def wait_failed(self, name: str, limit_s: float = DEADLINE_S) -> str:
        """FailureReason once the endpoint is Failed."""

        def failed() -> str | None:
            description = self.sagemaker.describe_endpoint(EndpointName=name)
            assert description["EndpointStatus"] != "InService"
            if description["EndpointStatus"] != "Failed":
                return None
            return str(description["FailureReason"])

        return str(wait_until(f"{name} has failed", failed, limit_s))

    def wait_served(self, name: str, count: int = 1, limit_s: float = DEADLINE_S) -> None:
        """Until it is InService with that many instances; the control plane may be away."""

        def served() -> bool:
            try:
                description = self.sagemaker.describe_endpoint(EndpointName=name)
            except Exception:
                return False
            variant = description.get("ProductionVariants", [{}])[0]
            return (
                description["EndpointStatus"] == "InService"
                and variant.get("CurrentInstanceCount") == count
            )

        try:
            wait_until(f"{name} serves with {count} instances", served, limit_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None

    def delete_endpoint(self, name: str) -> None:
        """Returns once it is gone."""
        self.sagemaker.delete_endpoint(EndpointName=name)
        self.wait_deleted(name)

    def delete_all(self, name: str) -> None:
        """The endpoint with its config and its model, so that the name is free again; whatever of
        them is not there is no error."""
        for delete in (
            lambda: self.delete_endpoint(name),
            lambda: self.sagemaker.delete_endpoint_config(EndpointConfigName=name),
            lambda: self.sagemaker.delete_model(ModelName=name),
        ):
            try:
                delete()
            except ClientError as error:
                if "Could not find" not in str(error):
                    raise

    def clear(self, *keep: str) -> None:
        """Nothing is left of what a test has made, wherever it stopped: its second try and the
        tests after it find every name free. `keep`: what all tests of a module share."""
        listings = (
            ("list_endpoints", "Endpoints", "EndpointName"),
            ("list_endpoint_configs", "EndpointConfigs", "EndpointConfigName"),
            ("list_models", "Models", "ModelName"),
        )
        found = {
            listed[name]
            for operation, key, name in listings
            for page in self.sagemaker.get_paginator(operation).paginate()
            for listed in page[key]
        }
        for name in sorted(found - set(keep)):
            self.delete_all(name)

    def wait_deleted(self, name: str) -> None:
        """The control plane may be away meanwhile."""

        def gone() -> bool:
            try:
                self.sagemaker.describe_endpoint(EndpointName=name)
            except ClientError as error:
                return "Could not find" in str(error)
            return False

        wait_until(f"{name} is gone", gone)

    def answers(self, name: str) -> bool:
        try:
            return self.invoke(name) == b"hello"
        except Exception:
            return False

    def answers_api(self) -> bool:
        try:
            self.sagemaker.list_endpoints()
        except Exception:
            return False
        return True

    def wanted(self, name: str) -> int:
        """Instances of the endpoint's variant."""
        described = self.sagemaker.describe_endpoint(EndpointName=name)
        return int(described["ProductionVariants"][0]["DesiredInstanceCount"])

    def show(self, name: str, what: str) -> Any:
        """What the tests' server tells about the container that it runs in."""
        answer = self.runtime.invoke_endpoint(
            EndpointName=name, Body=b"-", CustomAttributes=f"show={what}"
        )
        return json.loads(answer["Body"].read())

    def scale_and_wait(self, name: str, count: int) -> None:
        self.scale(name, count)
        self.wait_served(name, count)

    def admin(self, path: str) -> Any:
        """GET of the private API, on the socket that `zeropull status` uses too."""
        connection = http.client.HTTPConnection("control")
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(20)
        with contextlib.closing(connection):
            connection.sock.connect(str(self.names.run_dir / "admin.sock"))
            connection.request("GET", f"/v1/admin/{path}")
            return json.loads(connection.getresponse().read())

    def metrics(self) -> str:
        """What Prometheus would scrape."""
        with urllib.request.urlopen(f"{self._options['endpoint_url']}/metrics", timeout=20) as got:
            return str(got.read().decode())

    def endpoint(self, name: str) -> dict[str, Any]:
        return next(e for e in self.admin("status")["endpoints"] if e["name"] == name)

    def instances(self, name: str) -> list[str]:
        return sorted(i["instance_id"] for i in self.endpoint(name)["instances"])

    def newest_launch(self, name: str) -> dict[str, Any]:
        launches = self.admin(f"endpoints/{name}/timeline")["launches"]
        return dict(max(launches, key=lambda one: one["began_s"]))

    def image_stage(self, name: str) -> dict[str, Any]:
        """Of the newest launch."""
        stages = self.newest_launch(name)["stages"]
        return dict(next(s for s in stages if s["stage"] == "image"))

    def wait_cached(self, name: str, generation: int = 1) -> Path:
        """Until that generation (or a newer one) is published; its folder."""
        cache = wait_until(
            f"generation {generation} of {name}",
            lambda: (
                found
                if ((found := self.endpoint(name)["image_cache"])["generation"] or 0) >= generation
                else None
            ),
        )
        uid = self.admin(f"endpoints/{name}/timeline")["uid"]
        return self.folder / f"state/caches/{uid}/generations/{cache['generation']}"

    def daemon_pid(self, instance_id: str, role: str) -> int:
        """`role`: containerd, snapshotter or agent; 0 while none is started."""
        try:
            text = (self.names.run_dir / instance_id / f"{role}.pid").read_text()
        except FileNotFoundError:
            return 0
        return int(text.split()[0])

    def child_pid(self, daemon: str) -> int:
        """Of the supervisor: control_plane, or the gateway that serves."""
        return self.serving_gateway() if daemon == "gateway" else self.child_pids(daemon)[0]

    def child_pids(self, daemon: str) -> list[int]:
        """Of the supervisor; a gateway that waits to follow is one, too."""
        assert self.process is not None
        return [
            pid
            for pid, parent, command in processes()
            if parent == self.process.pid and f"zeropull.daemons.{daemon}" in command
        ]

    def serving_gateway(self) -> int:
        """The newest one that can be asked; one that waits cannot."""
        sockets = self.names.run_dir.glob("gateway-*.sock")
        newest = max(sockets, key=lambda path: path.stat().st_mtime)
        return int(newest.stem.removeprefix("gateway-"))

    def shims(self, instance_id: str) -> dict[int, list[int]]:
        """Process id of each shim of an instance, with those of its container's first process."""
        listed = processes()
        mark = f"-namespace\0zeropull-{instance_id}\0"
        found = [
            pid for pid, _, command in listed if "containerd-shim" in command and mark in command
        ]
        return {
            shim: [
                pid
                for pid, parent, command in listed
                if parent == shim and "runc" not in command and "log-writer" not in command
            ]
            for shim in found
        }

    def container_pids(self, name: str) -> set[int]:
        """Host process ids of the endpoint's containers."""
        return {
            pid
            for instance_id in self.instances(name)
            for pids in self.shims(instance_id).values()
            for pid in pids
        }

    def everything(self) -> set[int]:
        """Every process of this fleet: supervisor, daemons, shims, containers."""
        marks = (str(self.folder), str(self.names.run_dir))
        ours = {pid for pid, _, command in processes() if any(m in command for m in marks)}
        listed = processes()
        while more := {pid for pid, parent, _ in listed if parent in ours} - ours:
            ours |= more
        return ours

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        wait_until(f"process {pid} is gone", lambda: not is_running(pid))

    def left_behind(self) -> dict[str, list[str]]:
        """Of instances: everything that the host still has of any."""
        return left_behind(self.names)


class Load:
    """Requests to one endpoint from two clients, one after the other, and what went wrong."""

    def __init__(self, server: Server, name: str, **more: str) -> None:
        self.failures: tuple[list[str], ...] = ([], [])  # of each client
        self.answered = 0
        self._server = server
        self._asked = {"EndpointName": name, **more}
        self._over = threading.Event()

    @property
    def failed(self) -> list[str]:
        return [failure for of_one in self.failures for failure in of_one]

    def _ask(self, client: Any, failures: list[str]) -> None:
        while not self._over.is_set():
            at = time.strftime("%X")
            try:
                answer = client.invoke_endpoint(**self._asked, Body=b"hello")
                assert answer["Body"].read() == b"hello"
                self.answered += 1
            except Exception as error:
                failures.append(f"{at} {error!r}")
            self._over.wait(REQUEST_PAUSE_S)

    @contextlib.contextmanager
    def running(self) -> Iterator[Load]:
        clients = [self._server.client("sagemaker-runtime") for _ in self.failures]
        threads = [
            threading.Thread(target=self._ask, args=pair, daemon=True)
            for pair in zip(clients, self.failures, strict=True)
        ]
        for thread in threads:
            thread.start()
        try:
            before = self.answered
            wait_until("the load runs", lambda: self.answered + len(self.failed) > before)
            yield self
        finally:
            self._over.set()
            for thread in threads:
                thread.join(70)

    def wait_for_more(self, count: int = 10) -> None:
        """Until that many more requests have been answered."""
        goal = self.answered + count
        wait_until(f"{count} more answers", lambda: self.answered >= goal)


def processes() -> list[tuple[int, int, str]]:
    """(process id, parent, command line with NULs) of every process on the machine."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                found.append((int(entry.name), parent, (entry / "cmdline").read_text()))
    return found


def stage_of(launch: dict[str, Any], name: str) -> dict[str, Any]:
    return dict(next(s for s in launch["stages"] if s["stage"] == name))


@contextlib.contextmanager
def running_server(
    folder: Path, prepare: Callable[[Server], None] | None = None, **settings: dict[str, Any]
) -> Iterator[Server]:
    """Entered once it answers; left when nothing of it is left on the machine."""
    server = Server(folder, **settings)
    if prepare is not None:
        prepare(server)
    try:
        server.start()
        yield server
    finally:
        server.end(signal.SIGINT)
        if server.left_behind():
            server.cli("stop")
    assert server.left_behind() == {}
    assert server.everything() == set()
