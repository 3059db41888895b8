"""One snapshot for all layers of an image: shared mounts, restarts, damage, layers over it."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.fixtures.mounting import mounts_under
from tests.fixtures.plugin import Plugin
from tests.integration.snapshotter.test_cache import (
    adopt,
    direct,
    files,
    key,
    look_up,
    publish,
)
from zeropull.containerd.snapshots import (
    TARGET_LABEL,
    WHOLE_IMAGE_LABEL,
    SnapshotsClient,
    chain_digest,
)
from zeropull.errors import AlreadyExists, Conflict, NotFound, Unavailable
from zeropull.layers.layout import META_FILE
from zeropull.oci.digests import digest_of, hex_of


async def adopt_whole(client: SnapshotsClient, plugin: Plugin, chains: list[str]) -> str:
    """The name of the one snapshot."""
    labels = {TARGET_LABEL: chains[-1], WHOLE_IMAGE_LABEL: chain_digest(chains)}
    with pytest.raises(AlreadyExists):
        await client.prepare(key(plugin, chains[-1]), "", labels)
    return (await look_up(client, chains[-1], "")).name


def publish_over(plugin: Plugin, tmp_path: Path, base: list[str], name: str) -> list[str]:
    """An image of the layers `base` and one more, which has the file `name` and its own `top`."""
    chain_id = digest_of(secrets.token_bytes(8))
    tree = tmp_path / f"tree-{secrets.token_hex(4)}"
    tree.mkdir()
    (tree / name).write_text(name)
    (tree / "top").write_text(name)
    plugin.publish(tree, chain_id, base[-1])
    return [*base, chain_id]


async def test_one_snapshot_shows_all_layers_in_order(plugin: Plugin, tmp_path: Path) -> None:
    chains = publish(plugin, tmp_path, 3)
    async with direct(plugin) as client:
        name = await adopt_whole(client, plugin, chains)
        assert await adopt_whole(client, plugin, chains) == name
        assert [info.name for info in await client.list()] == [name]
        expected = {f"file-{n}": f"content {n}" for n in range(3)} | {"top": "2"}
        run = await client.prepare(f"{plugin.namespace}/9/run", name)
        assert files(run, tmp_path / "m") == expected
        view = await client.view(f"{plugin.namespace}/9/view", name)
        assert files(view, tmp_path / "m") == expected
        lowers = view[0].options[-1].removeprefix("lowerdir=").split(":")
        assert [Path(lower, "top").read_text() for lower in lowers] == ["2", "1", "0"]
        assert (await client.usage(name)).inodes == 9
    counts = plugin.counters()
    assert (counts["mounts"], counts["misses"]) == (3, 0)


async def test_images_share_mounts_which_go_with_the_last(plugin: Plugin, tmp_path: Path) -> None:
    base = publish(plugin, tmp_path, 2)
    one = publish_over(plugin, tmp_path, base, "one")
    two = publish_over(plugin, tmp_path, base, "two")
    run = f"{plugin.namespace}/9/run"
    async with direct(plugin) as client:
        first = await adopt_whole(client, plugin, one)
        second = await adopt_whole(client, plugin, two)
        assert len(mounts_under(plugin.mounts)) == 4
        before = await client.prepare(run, second)
    plugin.kill()
    plugin.start()
    async with direct(plugin) as client:
        assert len(mounts_under(plugin.mounts)) == 4
        await client.remove(first)
        assert len(mounts_under(plugin.mounts)) == 3
        assert await client.mounts(run) == before
        shown = {"file-0": "content 0", "file-1": "content 1", "two": "two", "top": "two"}
        assert files(before, tmp_path / "m") == shown
        with pytest.raises(Conflict):
            await client.remove(second)
        await client.remove(run)
        await client.remove(second)
        assert mounts_under(plugin.mounts) == []
        assert await adopt_whole(client, plugin, one) == first  # and all of it once more
        assert len(mounts_under(plugin.mounts)) == 3


async def test_a_reboot_takes_no_image_away(plugin: Plugin, tmp_path: Path) -> None:
    chains = publish(plugin, tmp_path, 3)
    run = f"{plugin.namespace}/9/run"
    async with direct(plugin) as client:
        name = await adopt_whole(client, plugin, chains)
        before = await client.prepare(run, name)
    plugin.reboot()
    plugin.start()
    async with direct(plugin) as client:
        assert mounts_under(plugin.mounts) == []
        assert await client.mounts(run) == before
        assert files(before, tmp_path / "m")["file-0"] == "content 0"
    plugin.reboot()
    meta = plugin.layers / hex_of(chains[1]) / META_FILE
    content = bytearray(meta.read_bytes())
    content[-1] ^= 1
    meta.write_bytes(content)
    plugin.start()
    async with direct(plugin) as client:
        with pytest.raises(Unavailable, match=f"{chains[1]} went bad"):
            await client.mounts(run)


@pytest.mark.parametrize("damage", ["flip", "missing", "others"])
async def test_an_image_is_whole_or_not_served(plugin: Plugin, tmp_path: Path, damage: str) -> None:
    chains = publish(plugin, tmp_path, 3)
    entry = plugin.catalog / hex_of(chains[1])
    asked = list(chains)
    match damage:
        case "flip":
            meta = plugin.layers / hex_of(chains[1]) / META_FILE
            content = bytearray(meta.read_bytes())
            content[-1] ^= 1
            meta.write_bytes(content)
        case "missing":
            entry.unlink()
        case "others":
            asked[0] = digest_of(b"another base image")
    labels = {TARGET_LABEL: chains[-1], WHOLE_IMAGE_LABEL: chain_digest(asked)}
    async with direct(plugin) as client:
        with pytest.raises(NotFound):
            await client.prepare(key(plugin, chains[-1]), "", labels)
        assert await client.list() == []
    assert mounts_under(plugin.mounts) == []
    assert entry.is_symlink() is (damage == "others")
    assert (plugin.catalog / hex_of(chains[0])).is_symlink()
    assert plugin.counters()["verification_failures"] == (1 if damage == "flip" else 0)


async def test_a_layer_pulled_again_in_its_place_is_mounted_anew(
    plugin: Plugin, tmp_path: Path
) -> None:
    base = publish(plugin, tmp_path, 1)
    one = publish_over(plugin, tmp_path, base, "one")
    two = publish_over(plugin, tmp_path, base, "two")
    async with direct(plugin) as client:
        await adopt_whole(client, plugin, one)
        (plugin.layers / hex_of(base[0])).rename(tmp_path / "old")
        (plugin.catalog / hex_of(base[0])).unlink()
        tree = tmp_path / "again"
        tree.mkdir()
        (tree / "again").write_text("again")
        plugin.publish(tree, base[0])
        second = await adopt_whole(client, plugin, two)
        view = await client.view(f"{plugin.namespace}/4/v", second)
        assert files(view, tmp_path / "m") == {"again": "again", "two": "two", "top": "two"}
    assert len(mounts_under(plugin.mounts)) == 4


async def test_single_layers_lie_over_a_whole_image(plugin: Plugin, tmp_path: Path) -> None:
    """As in an ordinary pull of an image whose base was adopted."""
    base = publish(plugin, tmp_path, 2)
    upper = publish_over(plugin, tmp_path, base, "upper")[-1]
    async with direct(plugin) as client:
        whole = await adopt_whole(client, plugin, base)
        singles = await adopt(client, plugin, base)  # the base itself, layer by layer
        assert whole not in singles
        with pytest.raises(AlreadyExists):
            await client.prepare(key(plugin, upper), whole, {TARGET_LABEL: upper})
        over = (await look_up(client, upper, whole)).name
        active = await client.prepare(f"{plugin.namespace}/5/a", over)
        assert files(active, tmp_path / "m") == {
            "file-0": "content 0", "file-1": "content 1", "upper": "upper", "top": "upper",
        }  # fmt: skip
        await client.commit(f"{plugin.namespace}/6/c", f"{plugin.namespace}/5/a")
        with pytest.raises(Conflict):
            await client.remove(whole)
        for name in (f"{plugin.namespace}/6/c", over, whole, *reversed(singles)):
            await client.remove(name)
        assert await client.list() == []
    assert mounts_under(plugin.mounts) == []


async def test_an_image_of_108_layers_is_adopted_at_once(plugin: Plugin, tmp_path: Path) -> None:
    chains = publish(plugin, tmp_path, 108)
    async with direct(plugin) as client:
        name = await adopt_whole(client, plugin, chains)
        mounts = await client.prepare(f"{plugin.namespace}/9/run", name)
        assert len(files(mounts, tmp_path / "m")) == 109
