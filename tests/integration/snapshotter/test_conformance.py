"""The behaviour of every containerd snapshotter, directly and through two containerds.

Named after the cases of containerd's own suite (core/snapshots/testsuite)."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from tests.integration.snapshotter.conftest import DIRECT, Layers
from zeropull.containerd.snapshots import SnapshotKind
from zeropull.errors import ZeropullError


def write(root: Path, name: str, text: str = "x", mode: int = 0o644) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def write_all(root: Path, *names: str) -> None:
    for name in names:
        write(root, name)


async def test_basic_prepare_commit_and_prepare_again(layers: Layers) -> None:
    def first(root: Path) -> None:
        write(root, "foo", "foo\n", 0o777)
        write(root, "a/b/c/deep", "deep")

    await layers.layer("one", "", first)
    info = await layers.client.stat(layers.key("one"))
    assert (info.parent, info.kind) == ("", SnapshotKind.COMMITTED)
    with pytest.raises(ZeropullError):
        await layers.client.stat(layers.key("one-active"))

    mounts = await layers.prepare("next", "one")
    with layers.mounted(mounts) as root:
        assert (root / "foo").read_text() == "foo\n"
        assert stat.S_IMODE((root / "foo").stat().st_mode) == 0o777
        write(root, "bar", "bar\n")
        shutil.rmtree(root / "a/b")
    info = await layers.client.stat(layers.key("next"))
    assert (info.parent, info.kind) == (layers.key("one"), SnapshotKind.ACTIVE)
    await layers.commit("two", "next")
    assert (await layers.client.stat(layers.key("two"))).parent == layers.key("one")

    view = await layers.view("look", "two")
    with layers.mounted(view) as root:
        assert sorted(p.name for p in root.iterdir()) == ["a", "bar", "foo"]
        assert list((root / "a").iterdir()) == []
    assert await layers.client.mounts(layers.key("look")) == view
    assert (await layers.client.stat(layers.key("look"))).kind is SnapshotKind.VIEW


async def test_stat_active_tells_kind_and_labels(layers: Layers) -> None:
    await layers.prepare("active")
    info = await layers.client.stat(layers.key("active"))
    assert (info.kind, info.parent) == (SnapshotKind.ACTIVE, "")
    assert 0 < info.created_ns <= info.updated_ns


async def test_stat_committed_tells_kind(layers: Layers) -> None:
    await layers.layer("base", "", lambda root: write(root, "f"))
    info = await layers.client.stat(layers.key("base"))
    assert info.kind is SnapshotKind.COMMITTED


async def test_transitivity_parents_are_kept_through_commits(layers: Layers) -> None:
    await layers.layer("one", "", lambda root: write(root, "f1"))
    await layers.layer("two", "one", lambda root: write(root, "f2"))
    await layers.layer("three", "two", lambda root: write(root, "f3"))
    chain = [
        (await layers.client.stat(layers.key(name))).parent for name in ("three", "two", "one")
    ]
    assert chain == [layers.key("two"), layers.key("one"), ""]


async def test_prepare_and_view_fail_without_a_committed_parent(layers: Layers) -> None:
    await layers.prepare("active")
    for make in (layers.prepare, layers.view):
        with pytest.raises(ZeropullError):
            await make("over-active", "active")
        with pytest.raises(ZeropullError):
            await make("over-nothing", "nothing")
    with pytest.raises(ZeropullError):
        await layers.prepare("active")
    await layers.view("seen")
    with pytest.raises(ZeropullError):
        await layers.view("seen")
    with pytest.raises(ZeropullError):
        await layers.commit("from-view", "seen")
    with pytest.raises(ZeropullError):
        await layers.client.mounts(layers.key("nothing"))


async def test_update_changes_labels_by_field_mask(layers: Layers) -> None:
    prefix = "containerd.io/snapshot/"
    await layers.client.prepare(layers.key("a"), "", {f"{prefix}one": "1", f"{prefix}two": "2"})
    await layers.commit("base", "a")
    name = layers.key("base")
    client = layers.client

    async def labels() -> dict[str, str]:
        found = dict((await client.stat(name)).labels)
        return {key.removeprefix(prefix): value for key, value in found.items()}

    await client.update_labels(name, {f"{prefix}one": "1", f"{prefix}two": "2"})
    assert await labels() == {"one": "1", "two": "2"}
    await client.update_labels(name, {f"{prefix}two": "new"}, [f"labels.{prefix}two"])
    assert await labels() == {"one": "1", "two": "new"}
    await client.update_labels(name, {}, [f"labels.{prefix}one"])
    assert await labels() == {"two": "new"}
    await client.update_labels(name, {f"{prefix}three": "3"}, ["labels"])
    assert await labels() == {"three": "3"}
    with pytest.raises(ZeropullError):
        await client.update_labels(name, {}, ["parent"])


async def test_remove_takes_leaves_only(layers: Layers) -> None:
    await layers.layer("one", "", lambda root: write(root, "f"))
    await layers.layer("two", "one", lambda root: write(root, "g"))
    await layers.prepare("container", "two")
    for name in ("one", "two"):
        with pytest.raises(ZeropullError):
            await layers.remove(name)
    for name in ("container", "two", "one"):
        await layers.remove(name)
        with pytest.raises(ZeropullError):
            await layers.client.stat(layers.key(name))


async def test_remove_intermediate_snapshot_fails_and_leaves_it_whole(layers: Layers) -> None:
    await layers.layer("base", "", lambda root: write(root, "f"))
    await layers.prepare("top", "base")
    with pytest.raises(ZeropullError):
        await layers.remove("base")
    with layers.mounted(await layers.client.mounts(layers.key("top"))) as root:
        assert (root / "f").exists()


async def test_walk_lists_every_snapshot_in_several_batches(layers: Layers) -> None:
    names = [f"many-{i}" for i in range(205)] if layers.stage.kind == DIRECT else ["a", "b", "c"]
    for name in names:
        await layers.prepare(name)
    found = {info.name: info for info in await layers.client.list()}
    assert {layers.key(name) for name in names} <= set(found)
    for name in names[:3]:
        assert found[layers.key(name)] == await layers.client.stat(layers.key(name))
        await layers.remove(name)


async def test_walk_filters_by_name_parent_kind_and_labels(layers: Layers) -> None:
    label = "containerd.io/snapshot/color"
    await layers.client.prepare(layers.key("base-a"), "")
    await layers.client.commit(layers.key("base"), layers.key("base-a"), {label: "red"})
    await layers.client.prepare(layers.key("run"), layers.key("base"), {label: "blue"})
    await layers.client.view(layers.key("see"), layers.key("base"))
    mine = {layers.key(name): name for name in ("base", "run", "see")}

    async def find(*filters: str) -> list[str]:
        return sorted(mine[i.name] for i in await layers.client.list(*filters) if i.name in mine)

    assert await find(f'name=="{layers.key("run")}"') == ["run"]
    assert await find(f'parent=="{layers.key("base")}"') == ["run", "see"]
    assert await find("kind==committed") == ["base"]
    assert await find("kind==active", "kind==view") == ["run", "see"]
    assert await find(f'labels."{label}"==red') == ["base"]
    assert await find(f'labels."{label}"') == ["base", "run"]
    assert await find(f'labels."{label}"~=/^b.*e$/,kind==active') == ["run"]
    assert await find(f'labels."{label}"!=red,kind!=view') == ["run"]


async def test_stat_in_walk_does_not_block(layers: Layers) -> None:
    await layers.layer("base", "", lambda root: write(root, "f"))
    # Of this test alone: garbage of an earlier one may be collected between the two calls.
    own = [i.name for i in await layers.client.list() if i.name.endswith(layers.stage.unique)]
    assert layers.key("base") in own
    for name in own:
        assert (await layers.client.stat(name)).name == name


async def test_layer_file_update_shows_the_newest_content(layers: Layers) -> None:
    await layers.layer("one", "", lambda root: write(root, "etc/hosts", "old"))
    await layers.layer("two", "one", lambda root: write(root, "etc/hosts", "new", 0o600))
    with layers.mounted(await layers.view("look", "two")) as root:
        assert (root / "etc/hosts").read_text() == "new"
        assert stat.S_IMODE((root / "etc/hosts").stat().st_mode) == 0o600


async def test_remove_directory_in_lower_layer_stays_removed(layers: Layers) -> None:
    def again(root: Path) -> None:
        shutil.rmtree(root / "dir")
        write(root, "dir/new")

    await layers.layer("one", "", lambda root: write(root, "dir/old"))
    await layers.layer("two", "one", again)
    await layers.layer("three", "two", lambda root: shutil.rmtree(root / "dir"))
    with layers.mounted(await layers.view("v2", "two")) as root:
        assert [p.name for p in (root / "dir").iterdir()] == ["new"]
    with layers.mounted(await layers.view("v3", "three")) as root:
        assert not (root / "dir").exists()


async def test_chown_in_an_upper_layer_is_kept(layers: Layers) -> None:
    await layers.layer("one", "", lambda root: write(root, "opt/a/f"))
    await layers.layer("two", "one", lambda root: os.chown(root / "opt/a", 1001, 1002))
    with layers.mounted(await layers.view("look", "two")) as root:
        status = (root / "opt/a").stat()
        assert (status.st_uid, status.st_gid) == (1001, 1002)
        assert (root / "opt/a/f").exists()


async def test_directory_permission_is_kept_on_commit(layers: Layers) -> None:
    def modes(root: Path) -> None:
        for name, mode in (("d1", 0o700), ("d2", 0o1777), ("d3", 0o2755)):
            (root / name).mkdir()
            (root / name).chmod(mode)

    await layers.layer("one", "", modes)
    await layers.layer("two", "one", lambda root: write(root, "d1/f"))
    with layers.mounted(await layers.view("look", "two")) as root:
        found = [stat.S_IMODE((root / name).stat().st_mode) for name in ("d1", "d2", "d3")]
    assert found == [0o700, 0o1777, 0o2755]


async def test_deleted_files_in_child_are_gone_there_only(layers: Layers) -> None:
    await layers.layer("one", "", lambda root: write_all(root, "foo", "bar"))
    await layers.layer("two", "one", lambda root: (root / "foo").unlink())
    with layers.mounted(await layers.view("v1", "one")) as root:
        assert sorted(p.name for p in root.iterdir()) == ["bar", "foo"]
    with layers.mounted(await layers.view("v2", "two")) as root:
        assert [p.name for p in root.iterdir()] == ["bar"]


async def test_move_file_from_lower(layers: Layers) -> None:
    await layers.layer("one", "", lambda root: write(root, "dir1/f1", "moved"))
    await layers.layer("two", "one", lambda root: (root / "dir1/f1").rename(root / "f1"))
    with layers.mounted(await layers.view("look", "two")) as root:
        assert (root / "f1").read_text() == "moved"
        assert not (root / "dir1/f1").exists()


async def test_rename_of_a_directory_from_lower(layers: Layers) -> None:
    def rename(root: Path) -> None:
        # rename(2) of a lower directory gives EXDEV; every tool then copies, as mv does.
        shutil.move(root / "dir1", root / "dir2")
        write(root, "dir2/g", "added")

    await layers.layer("one", "", lambda root: write(root, "dir1/f", "kept"))
    await layers.layer("two", "one", rename)
    with layers.mounted(await layers.view("look", "two")) as root:
        assert [p.name for p in root.iterdir()] == ["dir2"]
        assert sorted(p.name for p in (root / "dir2").iterdir()) == ["f", "g"]


async def test_views_are_read_only(layers: Layers) -> None:
    await layers.layer("one", "", lambda root: write(root, "f"))
    await layers.layer("two", "one", lambda root: write(root, "g"))
    for parent in ("", "one", "two"):
        view = await layers.view(f"v{parent}", parent)
        with layers.mounted(view) as root, pytest.raises(OSError):
            (root / "new").write_text("x")


async def test_root_permission_is_0755(layers: Layers) -> None:
    with layers.mounted(await layers.prepare("active")) as root:
        assert stat.S_IMODE(root.stat().st_mode) == 0o755


async def test_usage_counts_the_snapshot_without_its_parents(layers: Layers) -> None:
    await layers.layer("one", "", lambda root: (root / "f").write_bytes(bytes(64 << 10)))
    mounts = await layers.prepare("run", "one")
    assert (await layers.client.usage(layers.key("one"))).size_bytes >= 64 << 10
    before = await layers.client.usage(layers.key("run"))
    with layers.mounted(mounts) as root:
        (root / "g").write_bytes(bytes(128 << 10))
        os.link(root / "g", root / "h")
    after = await layers.client.usage(layers.key("run"))
    assert after.inodes == before.inodes + 1
    assert 128 << 10 <= after.size_bytes - before.size_bytes <= 140 << 10
    assert before.size_bytes < 64 << 10


async def test_128_layers_mount(layers: Layers) -> None:
    parent = ""
    for number in range(128):
        mounts = await layers.prepare(f"a{number}", parent)
        if parent == "":
            with layers.mounted(mounts) as root:
                write(root, "bottom")
        await layers.commit(f"c{number}", f"a{number}")
        parent = f"c{number}"
    mounts = await layers.prepare("top", parent)
    with layers.mounted(mounts) as root:
        write(root, "writable")
        assert sorted(p.name for p in root.iterdir()) == ["bottom", "writable"]


async def test_names_are_free_again_after_remove(layers: Layers) -> None:
    for _ in range(2):
        await layers.layer("one", "", lambda root: write(root, "f"))
        await layers.remove("one")
    if layers.stage.kind == DIRECT:  # containerd keeps Cleanup to itself
        await layers.client.cleanup()
