"""The container contract, seen from inside a real container."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
from pathlib import Path

from tests.fixtures.images import Entry
from tests.fixtures.registry import Registry
from tests.integration.nodeagent.conftest import (
    DEVICE_KIND,
    Fleet,
    ask,
    assignment_of,
    copy_of,
    probe,
    push,
)
from zeropull.controlapi.messages import (
    CopyState,
    FailureKind,
    ImageAssignment,
    ModelArtifact,
    ResourceLimits,
    StoreAccess,
)
from zeropull.linux.processes import machine_pids
from zeropull.nodeagent.containers.log_writer import KEPT, MAX_BYTES
from zeropull.nodeagent.containers.oci_spec import CAPABILITIES
from zeropull.providers.local.processes import AGENT

# Bits of capability(7) that containerd grants by default.
_DEFAULT_CAPABILITIES = 0xA80425FB
_READ_ONLY = f"OSError:{errno.EROFS}"


async def test_root_sees_the_limits_and_no_more_than_the_defaults(
    fleet: Fleet, probe_image: ImageAssignment
) -> None:
    store = fleet.root / "store"
    store.mkdir()
    (store / "weights.bin").write_bytes(b"w" * 1000)
    node = await fleet.launch()
    copy = copy_of(
        probe_image,
        "limited",
        environment={"GIVEN": "1", "OF_THE_IMAGE": "overridden"},
        artifacts=(ModelArtifact("s3://m/weights.bin", access=StoreAccess(directory=str(store))),),
        limits=ResourceLimits(cpu_cores=0.5, memory_bytes=256 << 20, pids=64),
        shm_bytes=32 << 20,
    )
    node.assign(assignment_of(probe_image, copy))
    healthy = await node.until_copy("limited", CopyState.HEALTHY, CopyState.FAILED)
    assert healthy.state is CopyState.HEALTHY, healthy
    seen = await ask(healthy, do="look")

    assert seen["argv"] == ["serve"]
    assert seen["cwd"] == "/srv"
    environment = seen["environment"]
    assert (environment["GIVEN"], environment["OF_THE_IMAGE"]) == ("1", "overridden")
    assert environment["HOME"] == "/root"
    assert seen["ids"][:2] == [0, 0]
    status = seen["status"]
    assert len(CAPABILITIES) == _DEFAULT_CAPABILITIES.bit_count()
    assert {int(status[name], 16) for name in ("CapBnd", "CapEff", "CapPrm")} == {
        _DEFAULT_CAPABILITIES
    }
    assert int(status["CapInh"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("0", "2")
    assert seen["oom_score_adj"] >= 0
    assert seen["nofile"][0] == seen["nofile"][1]

    assert seen["shm_bytes"] == 32 << 20
    assert seen["memory_limit"] == str(256 << 20)
    assert seen["cpu_limit"] in ("50000", "50000 100000")
    assert seen["pids_limit"] == "64"
    assert 0 < await ask(healthy, do="fork") < 64

    assert seen["models"] == ["weights.bin"]
    refused = seen["refused"]
    assert (refused["model"], refused["sysctl"]) == (_READ_ONLY, _READ_ONLY)
    assert refused["vsock"] == f"PermissionError:{errno.EPERM}"
    assert refused["temporary"] == ""
    assert (seen["unshare_errno"], seen["mount_errno"]) == (errno.EPERM, errno.EPERM)
    assert (seen["kcore_bytes"], seen["firmware"]) == (0, [])
    assert seen["hosts"].endswith(f"{healthy.host}\tlimited\n")
    assert "nameserver" in seen["resolv_conf"]
    assert seen["devices"]["/dev/probe0"] is None


async def test_the_images_user_groups_directory_and_entrypoint_are_kept(
    fleet: Fleet, registry: Registry
) -> None:
    passwd = b"root:x:0:0:root:/root:/bin/sh\nmodel:x:1000:1001::/home/model:/bin/sh\n"
    group = b"root:x:0:\nmodel:x:1001:\nrender:x:109:other,model\nvideo:x:44:model\n"
    extra = (
        # As images of Nix have it: a link that is absolute in the image's root.
        Entry("nix/store/passwd", passwd),
        Entry("etc/passwd", kind="symlink", link="/nix/store/passwd"),
        Entry("etc/group", group),
        Entry("home", kind="dir", mode=0o755),
        Entry("home/model", kind="dir", mode=0o700, uid=1000, gid=1001),
    )
    config: dict[str, object] = {"User": "model", "WorkingDir": "/home/model", "Cmd": ["train"]}
    image = push(registry, "user", probe(config=config, extra=extra))
    node = await fleet.launch()
    node.assign(assignment_of(image, copy_of(image, "user")))
    healthy = await node.until_copy("user", CopyState.HEALTHY, CopyState.FAILED)
    assert healthy.state is CopyState.HEALTHY, healthy
    seen = await ask(healthy, do="look")
    assert seen["ids"] == [1000, 1001, [44, 109, 1001]] or seen["ids"] == [1000, 1001, [44, 109]]
    assert (seen["cwd"], seen["environment"]["HOME"]) == ("/home/model", "/home/model")
    assert seen["argv"] == ["serve"]
    assert int(seen["pids_limit"]) <= machine_pids() // 4, "less than the machine has"
    assert {int(seen["status"][name], 16) for name in ("CapEff", "CapPrm")} == {0}
    assert seen["refused"]["disk"] == f"PermissionError:{errno.EPERM}"


async def test_devices_of_a_cdi_specification_are_given_to_the_copy_that_has_them(
    fleet: Fleet, probe_image: ImageAssignment
) -> None:
    vendor = fleet.root / "vendor"
    vendor.mkdir()
    (vendor / "library").write_text("of the vendor")
    (fleet.root / "cdi").mkdir()
    devices = [
        {
            "name": str(number),
            "containerEdits": {
                "deviceNodes": [{"path": f"/dev/probe{number}", "hostPath": "/dev/null"}],
                "env": [f"PROBE_DEVICE_{number}=1"],
            },
        }
        for number in range(2)
    ]
    mount = {"hostPath": str(vendor), "containerPath": "/usr/lib/vendor"}
    (fleet.root / "cdi" / "tests.json").write_text(
        json.dumps(
            {
                "cdiVersion": "0.5.0",
                "kind": DEVICE_KIND,
                "devices": devices,
                "containerEdits": {"env": ["PROBE_VENDOR=tests"], "mounts": [mount]},
            }
        )
    )
    node = await fleet.launch(devices=2)
    given = copy_of(probe_image, "given", limits=ResourceLimits(accelerators=(f"{DEVICE_KIND}=0",)))
    unknown = copy_of(
        probe_image, "unknown", limits=ResourceLimits(accelerators=(f"{DEVICE_KIND}=7",))
    )
    node.assign(assignment_of(probe_image, given, unknown, copy_of(probe_image, "without")))
    seen = await ask(await node.until_copy("given", CopyState.HEALTHY), do="look")
    null = os.stat("/dev/null").st_rdev  # noqa: PTH116
    assert seen["devices"]["/dev/probe0"] == [os.major(null), os.minor(null), 1]
    assert seen["devices"]["/dev/probe1"] is None
    assert seen["written_to_device"] == ""
    assert seen["environment"]["PROBE_DEVICE_0"] == "1"
    assert seen["environment"]["PROBE_VENDOR"] == "tests"
    assert seen["vendor_file"] == "of the vendor"
    without = await ask(await node.until_copy("without", CopyState.HEALTHY), do="look")
    assert without["devices"]["/dev/probe0"] is None
    assert without["vendor_file"] is None
    failed = await node.until_copy("unknown", CopyState.FAILED)
    assert failed.failure is FailureKind.ACCELERATOR
    assert f"{DEVICE_KIND}=7" in failed.message


async def test_a_live_containers_log_is_rotated_without_losing_a_line(
    fleet: Fleet, probe_image: ImageAssignment
) -> None:
    node = await fleet.launch()
    node.assign(assignment_of(probe_image, copy_of(probe_image, "talker")))
    healthy = await node.until_copy("talker", CopyState.HEALTHY)
    folder = node.disk / "logs" / "talker"
    lines, batch = 0, 20_000
    while lines < 300_000 and not (folder / "current.log.1").exists():
        await ask(healthy, do="log", lines=batch, **{"from": lines})
        lines += batch
    await ask(healthy, do="log", lines=10, **{"from": lines})
    await node.until(lambda _: (folder / "current.log.1").exists())
    last = f"line {lines + 9:>9} ".encode()
    await node.until(lambda _: last in (folder / "current.log").read_bytes()[-2000:])
    written = (folder / "current.log.1").read_bytes() + (folder / "current.log").read_bytes()
    numbers = [int(row.split()[1]) for row in written.splitlines() if row.startswith(b"line ")]
    assert numbers == list(range(lines + 10))
    assert (folder / "current.log").stat().st_size < 10 << 20
    assert sorted(path.name for path in Path(folder).iterdir()) == ["current.log", "current.log.1"]


async def test_a_log_is_bounded_while_a_container_writes_as_fast_as_it_can_and_nobody_watches(
    fleet: Fleet, probe_image: ImageAssignment
) -> None:
    node = await fleet.launch()
    node.assign(assignment_of(probe_image, copy_of(probe_image, "flood")))
    healthy = await node.until_copy("flood", CopyState.HEALTHY)
    folder = node.disk / "logs" / "flood"
    await ask(healthy, do="flood", seconds=4)
    await node.kill(AGENT)
    largest = 0
    async with asyncio.timeout(60):
        while b"the flood is over" not in (folder / "current.log").read_bytes()[-100:]:
            sizes = []
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    sizes.append(path.stat().st_size)
            largest = max(largest, sum(sizes))
            await asyncio.sleep(0.02)
    assert 10 << 20 < largest <= KEPT * MAX_BYTES
    assert (await ask(healthy, do="look"))["argv"] == ["serve"]
    assert await node.provider.heal(node.instance_id)
    again = await node.until(lambda report: bool(report.copies))
    assert (again.copies[0].state, again.copies[0].restarts) == (CopyState.HEALTHY, 0)
    node.assign(assignment_of(probe_image))
    await node.until(lambda report: not report.copies)
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not any(str(folder).encode() in command for command in commands)
