"""Layers from the catalog: hits, misses, bad bytes, restarts at any moment, reboots."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.fixtures.mounting import mounted, mounts_under
from tests.fixtures.plugin import Plugin
from zeropull.containerd.connection import Connection, open_channel
from zeropull.containerd.snapshots import (
    PARENT_CHAIN_LABEL,
    TARGET_LABEL,
    Mount,
    SnapshotInfo,
    SnapshotKind,
    SnapshotsClient,
)
from zeropull.errors import (
    AccessDenied,
    AlreadyExists,
    Conflict,
    InvalidInput,
    NotFound,
    Unavailable,
)
from zeropull.layers.layout import META_FILE
from zeropull.oci.digests import chain_ids, digest_of, hex_of
from zeropull.resources.node import SNAPSHOTTER


@asynccontextmanager
async def direct(plugin: Plugin) -> AsyncIterator[SnapshotsClient]:
    channel = open_channel(plugin.socket)
    try:
        yield SnapshotsClient(Connection(channel, plugin.namespace), SNAPSHOTTER)
    finally:
        await channel.close(None)


def key(plugin: Plugin, chain_id: str) -> str:
    return f"{plugin.namespace}/1/extract-{secrets.token_hex(3)} {chain_id}"


def publish(plugin: Plugin, tmp_path: Path, count: int) -> list[str]:
    """`count` cached layers over each other, each with a file of its own and one in common."""
    chains = chain_ids([digest_of(secrets.token_bytes(8)) for _ in range(count)])
    for number, chain_id in enumerate(chains):
        tree = tmp_path / f"tree-{secrets.token_hex(4)}"
        tree.mkdir()
        (tree / f"file-{number}").write_text(f"content {number}")
        (tree / "top").write_text(str(number))
        plugin.publish(tree, chain_id, chains[number - 1] if number else "")
    return chains


async def look_up(client: SnapshotsClient, chain_id: str, parent: str) -> SnapshotInfo:
    """As containerd does after ALREADY_EXISTS."""
    found = await client.list(f'labels."{TARGET_LABEL}"=={chain_id},parent=="{parent}"')
    assert len(found) == 1
    assert found[0].kind is SnapshotKind.COMMITTED
    return found[0]


async def adopt(client: SnapshotsClient, plugin: Plugin, chains: list[str]) -> list[str]:
    """The names of the committed snapshots, bottom-up."""
    names: list[str] = []
    for chain_id in chains:
        parent = names[-1] if names else ""
        with pytest.raises(AlreadyExists):
            await client.prepare(key(plugin, chain_id), parent, {TARGET_LABEL: chain_id})
        names.append((await look_up(client, chain_id, parent)).name)
    return names


def files(mounts: list[Mount], target: Path) -> dict[str, str]:
    with mounted(mounts, target) as root:
        return {path.name: path.read_text() for path in root.iterdir()}


async def test_cached_layers_are_hits_and_show_their_files(plugin: Plugin, tmp_path: Path) -> None:
    chains = publish(plugin, tmp_path, 3)
    async with direct(plugin) as client:
        names = await adopt(client, plugin, chains)
        run = await client.prepare(f"{plugin.namespace}/9/run", names[-1])
        assert [mount.type for mount in run] == ["overlay"]
        expected = {f"file-{n}": f"content {n}" for n in range(3)} | {"top": "2"}
        assert files(run, tmp_path / "m") == expected
        bottom = await client.view(f"{plugin.namespace}/9/see", names[0])
        assert (bottom[0].type, "ro" in bottom[0].options) == ("bind", True)
        assert files(bottom, tmp_path / "m")["top"] == "0"
        usage = await client.usage(names[0])
        assert (usage.size_bytes > 0, usage.inodes) == (True, 3)
    counts = plugin.counters()
    assert (counts["hits"], counts["misses"], counts["mounts"]) == (3, 0, 3)


async def test_a_miss_gives_a_writable_mount_that_can_be_committed(plugin: Plugin) -> None:
    chain_id = digest_of(b"unknown")
    async with direct(plugin) as client:
        extract = key(plugin, chain_id)
        mounts = await client.prepare(extract, "", {TARGET_LABEL: chain_id})
        assert "ro" not in mounts[-1].options
        name = f"{plugin.namespace}/2/{chain_id}"
        await client.commit(name, extract, {TARGET_LABEL: chain_id})
        upper = await client.prepare(f"{plugin.namespace}/3/run", name, {TARGET_LABEL: chain_id})
        assert any(option.startswith("upperdir=") for option in upper[-1].options)
    assert plugin.counters()["misses_not_cached"] == 2


async def test_an_ordinary_layer_lies_over_a_cached_one(plugin: Plugin, tmp_path: Path) -> None:
    [chain_id] = publish(plugin, tmp_path, 1)
    async with direct(plugin) as client:
        [name] = await adopt(client, plugin, [chain_id])
        mounts = await client.prepare(f"{plugin.namespace}/2/a", name)
        with mounted(mounts, tmp_path / "m") as root:
            (root / "file-0").unlink()
            (root / "new").write_text("new")
        await client.commit(f"{plugin.namespace}/3/c", f"{plugin.namespace}/2/a")
        view = await client.view(f"{plugin.namespace}/4/v", f"{plugin.namespace}/3/c")
        assert files(view, tmp_path / "m") == {"new": "new", "top": "0"}


@pytest.mark.parametrize("damage", ["flip", "short", "index", "gone", "dangling", "other"])
async def test_a_bad_layer_is_a_miss(plugin: Plugin, tmp_path: Path, damage: str) -> None:
    [chain_id] = publish(plugin, tmp_path, 1)
    layer = plugin.layers / hex_of(chain_id)
    meta = layer / META_FILE
    content = bytearray(meta.read_bytes())
    match damage:
        case "flip":
            content[-1] ^= 1
            meta.write_bytes(content)
        case "short":
            meta.write_bytes(content[:-4096])
        case "index":
            (layer / "layer.json").write_text("{")
        case "gone":
            meta.unlink()
        case "dangling":
            layer.rename(tmp_path / "elsewhere")
        case "other":
            text = (layer / "layer.json").read_text()
            (layer / "layer.json").write_text(text.replace(chain_id, digest_of(b"other")))
    async with direct(plugin) as client:
        mounts = await client.prepare(key(plugin, chain_id), "", {TARGET_LABEL: chain_id})
        assert "ro" not in mounts[-1].options
    counts = plugin.counters()
    dropped = damage != "dangling"
    assert (counts["hits"], counts["misses"]) == (0, 1)
    assert counts["verification_failures"] == (1 if dropped else 0)
    assert (plugin.catalog / hex_of(chain_id)).is_symlink() is not dropped
    assert mounts_under(plugin.mounts) == []


async def test_a_parent_that_does_not_fit_is_a_miss_and_harms_no_good_layer(
    plugin: Plugin, tmp_path: Path
) -> None:
    chains, others = publish(plugin, tmp_path, 2), publish(plugin, tmp_path, 1)
    async with direct(plugin) as client:
        [base] = await adopt(client, plugin, chains[:1])
        [other] = await adopt(client, plugin, others)
        for asked, parent in ((chains[1], other), (chains[0], other)):
            extract = key(plugin, asked)
            assert await client.prepare(extract, parent, {TARGET_LABEL: asked})
            await client.remove(extract)
        assert plugin.counters()["misses_parent"] == 2
        assert plugin.counters()["verification_failures"] == 0
        with pytest.raises(AlreadyExists):
            await client.prepare(key(plugin, chains[1]), base, {TARGET_LABEL: chains[1]})


async def test_a_layer_that_is_asked_for_without_its_parent_comes_with_all_below_it(
    plugin: Plugin, tmp_path: Path
) -> None:
    chains = publish(plugin, tmp_path, 3)
    async with direct(plugin) as client:
        with pytest.raises(AlreadyExists):
            await client.prepare(key(plugin, chains[2]), "", {TARGET_LABEL: chains[2]})
        top = await look_up(client, chains[2], "")
        run = await client.prepare(f"{plugin.namespace}/9/run", top.name)
        expected = {f"file-{n}": f"content {n}" for n in range(3)} | {"top": "2"}
        assert files(run, tmp_path / "m") == expected


async def test_a_layer_that_is_unpacked_apart_finds_its_parent_at_commit(
    plugin: Plugin, tmp_path: Path
) -> None:
    [base] = publish(plugin, tmp_path, 1)
    apart, blind = digest_of(b"apart"), digest_of(b"blind")
    async with direct(plugin) as client:
        [parent] = await adopt(client, plugin, [base])
        extract = key(plugin, apart)
        labels = {TARGET_LABEL: apart, PARENT_CHAIN_LABEL: base}
        [mount] = await client.prepare(extract, "", labels)
        assert mount.type == "overlay", "containerd then writes whiteouts as overlayfs has them"
        with mounted([mount], tmp_path / "m") as root:
            (root / "above").write_text("above")
        name = f"{plugin.namespace}/2/{apart}"
        await client.commit(name, extract, labels, parent=parent)
        assert (await client.stat(name)).parent == parent
        run = await client.prepare(f"{plugin.namespace}/9/run", name)
        assert files(run, tmp_path / "m") == {
            "file-0": "content 0",
            "top": "0",
            "above": "above",
        }
        # Without the label, whiteouts have been lost: better no image than a wrong one.
        extract, name = key(plugin, blind), f"{plugin.namespace}/3/{blind}"
        await client.prepare(extract, "", {TARGET_LABEL: blind})
        with pytest.raises(InvalidInput, match="rebase"):
            await client.commit(name, extract, {}, parent=parent)


async def test_other_namespaces_are_refused(plugin: Plugin, tmp_path: Path) -> None:
    chains = publish(plugin, tmp_path, 1)
    async with direct(plugin) as client:
        [name] = await adopt(client, plugin, chains)
        with pytest.raises(AccessDenied):
            await client.prepare("other/1/x", "", {TARGET_LABEL: chains[0]})
        with pytest.raises(AccessDenied):
            await client.prepare("other/1/x", name)
        with pytest.raises(AccessDenied):
            await client.stat("other/1/x")
    assert plugin.counters()["refused_namespaces"] == 3


async def test_removing_unmounts_and_gives_the_directory_back(
    plugin: Plugin, tmp_path: Path
) -> None:
    chains = publish(plugin, tmp_path, 2)
    async with direct(plugin) as client:
        names = await adopt(client, plugin, chains)
        await client.prepare(f"{plugin.namespace}/9/run", names[-1])
        assert len(mounts_under(plugin.mounts)) == 2
        with pytest.raises(Conflict):
            await client.remove(names[0])
        await client.remove(f"{plugin.namespace}/9/run")
        for name in reversed(names):
            await client.remove(name)
        assert await client.list() == []
    assert mounts_under(plugin.mounts) == []
    assert list((plugin.state / "snapshots").iterdir()) == []


async def test_a_layer_that_was_pulled_again_replaces_a_forgotten_one(
    plugin: Plugin, tmp_path: Path
) -> None:
    [chain_id] = publish(plugin, tmp_path, 1)
    async with direct(plugin) as client:
        [name] = await adopt(client, plugin, [chain_id])
        old = plugin.layers / hex_of(chain_id)
        old.rename(tmp_path / "old")
        (plugin.catalog / hex_of(chain_id)).unlink()
        tree = tmp_path / "again"
        tree.mkdir()
        (tree / "again").write_text("again")
        new = plugin.publish(tree, chain_id)
        new.rename(tmp_path / "new")
        (plugin.catalog / hex_of(chain_id)).unlink()
        (plugin.catalog / hex_of(chain_id)).symlink_to(tmp_path / "new")
        assert await adopt(client, plugin, [chain_id]) == [name]
        view = await client.view(f"{plugin.namespace}/4/v", name)
        assert files(view, tmp_path / "m") == {"again": "again"}
    assert len(mounts_under(plugin.mounts)) == 1


async def test_snapshots_survive_kill_restart_and_reboot(plugin: Plugin, tmp_path: Path) -> None:
    chains = publish(plugin, tmp_path, 3)
    run = f"{plugin.namespace}/9/run"
    async with direct(plugin) as client:
        names = await adopt(client, plugin, chains)
        before = await client.prepare(run, names[-1])
    plugin.kill()
    plugin.start()
    async with direct(plugin) as client:
        assert await client.mounts(run) == before
        assert await adopt(client, plugin, chains) == names
        assert plugin.counters()["mounts"] == 0
    plugin.reboot()
    plugin.start()
    async with direct(plugin) as client:
        assert mounts_under(plugin.mounts) == []
        assert await client.mounts(run) == before
        assert files(before, tmp_path / "m")["file-0"] == "content 0"
        assert plugin.counters()["mounts"] == 3


async def test_a_layer_that_went_bad_before_a_reboot_is_not_mounted_again(
    plugin: Plugin, tmp_path: Path
) -> None:
    chains = publish(plugin, tmp_path, 1)
    async with direct(plugin) as client:
        [name] = await adopt(client, plugin, chains)
    plugin.reboot()
    meta = plugin.layers / hex_of(chains[0]) / META_FILE
    content = bytearray(meta.read_bytes())
    content[-1] ^= 1
    meta.write_bytes(content)
    plugin.start()
    async with direct(plugin) as client:
        with pytest.raises(Unavailable, match="went bad"):
            await client.prepare(f"{plugin.namespace}/9/run", name)
        await client.remove(name)
        assert await client.list() == []
    assert not (plugin.catalog / hex_of(chains[0])).is_symlink()


async def test_lost_state_leaves_no_mount_and_gives_the_same_names(
    plugin: Plugin, tmp_path: Path
) -> None:
    chains = publish(plugin, tmp_path, 2)
    async with direct(plugin) as client:
        names = await adopt(client, plugin, chains)
    plugin.kill()
    for file in plugin.state.glob("snapshots.db*"):
        file.unlink()
    plugin.start()
    assert mounts_under(plugin.mounts) == []
    async with direct(plugin) as client:
        with pytest.raises(NotFound):
            await client.stat(names[0])
        assert await adopt(client, plugin, chains) == names


async def test_a_kill_at_any_moment_leaves_rows_directories_and_mounts_in_step(
    plugin: Plugin, tmp_path: Path
) -> None:
    chains = publish(plugin, tmp_path, 12)

    async def work(client: SnapshotsClient, turn: int) -> None:
        names: list[str] = []
        for number, chain_id in enumerate(chains):
            names += await adopt(client, plugin, [chain_id]) if not names else []
            active = f"{plugin.namespace}/{turn}/{number}"
            await client.prepare(active, names[0])
            await client.commit(f"{active}-c", active)
            await client.remove(f"{active}-c")
            await client.prepare(active, names[0])

    for turn in range(6):
        async with direct(plugin) as client:
            task = asyncio.create_task(work(client, turn))
            # The pauses differ so that the kills fall into different calls.
            await asyncio.wait({task}, timeout=0.01 + 0.013 * turn)
            plugin.kill()
            await asyncio.wait({task}, timeout=10)
            task.cancel()
            assert isinstance(
                (await asyncio.gather(task, return_exceptions=True))[0], Exception | None
            )
        plugin.start()
        async with direct(plugin) as client:
            infos = await client.list()
            rows = {info.name for info in infos}
            assert all(info.parent == "" or info.parent in rows for info in infos)
            for info in infos:
                if info.kind is not SnapshotKind.COMMITTED:
                    with mounted(await client.mounts(info.name), tmp_path / "m") as root:
                        assert (root / "file-0").read_text() == "content 0"
            ordinary = sum(1 for info in infos if "/cache/" not in info.name)
            assert len(list((plugin.state / "snapshots").iterdir())) == ordinary
            assert len(mounts_under(plugin.mounts)) == len(infos) - ordinary


async def test_stopping_twice_and_starting_again_is_fine(plugin: Plugin) -> None:
    plugin.stop()
    plugin.stop()
    plugin.start()
    async with direct(plugin) as client:
        assert await client.list() == []


async def test_108_cached_layers_are_adopted_and_mounted(plugin: Plugin, tmp_path: Path) -> None:
    chains = publish(plugin, tmp_path, 108)
    async with direct(plugin) as client:
        names: list[str] = []
        began = time.perf_counter()
        for chain_id in chains:
            parent = names[-1] if names else ""
            with pytest.raises(AlreadyExists):
                await client.prepare(key(plugin, chain_id), parent, {TARGET_LABEL: chain_id})
            names.append(f"{plugin.namespace}/cache/{chain_id}")
        mounts = await client.prepare(f"{plugin.namespace}/9/run", names[-1])
        print(f"108 layers: {time.perf_counter() - began:.3f} s")
        assert len(files(mounts, tmp_path / "m")) == 109
