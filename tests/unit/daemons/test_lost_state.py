"""A state that is missing beside instances and image caches is an accident."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from zeropull.daemons.lost_state import refuse_lost_state, remove_orphaned_caches
from zeropull.errors import ConfigurationError
from zeropull.imagecache.generations import GenerationStore
from zeropull.resources.image_caches import CacheState, ImageCacheRecord
from zeropull.resources.settings import ServeSettings, Settings
from zeropull.resources.tags import ResourceTags
from zeropull.statestore import Store


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """With two instances and one image cache."""
    for folder in ("instances/i-1", "instances/i-2", "caches/abc"):
        (tmp_path / folder).mkdir(parents=True)
    return Settings(ServeSettings(state_dir=str(tmp_path)))


def test_a_missing_state_is_refused_with_what_is_there(settings: Settings) -> None:
    with Store.open(settings.database) as store:
        with pytest.raises(ConfigurationError) as refused:
            refuse_lost_state(settings, store)
        folder = settings.state_dir
        assert f"2 instances ({folder}/instances: i-1, i-2)" in refused.value.reason
        assert f"1 image cache ({folder}/caches: abc)" in refused.value.reason
        assert "zeropull restore FILE" in refused.value.reason
        assert "zeropull serve --fresh-state" in refused.value.reason
        refuse_lost_state(replace(settings, fresh_state=True), store)


def test_an_emptied_state_is_refused_as_a_missing_one(settings: Settings) -> None:
    with Store.open(settings.database) as store:
        store.put(ResourceTags("arn", {}))
        refuse_lost_state(settings, store)
    settings.database.write_bytes(b"")
    with Store.open(settings.database) as store, pytest.raises(ConfigurationError):
        refuse_lost_state(settings, store)


def test_a_first_start_is_not_refused(tmp_path: Path) -> None:
    settings = Settings(ServeSettings(state_dir=str(tmp_path)))
    with Store.open(settings.database) as store:
        refuse_lost_state(settings, store)
        (tmp_path / "instances").mkdir()
        refuse_lost_state(settings, store)


def test_caches_that_no_document_knows_are_removed(settings: Settings) -> None:
    (settings.state_dir / "caches" / "known").mkdir()
    generations = GenerationStore(settings.state_dir / "caches")
    with Store.open(settings.database) as store:
        store.put(ImageCacheRecord("known", "0", "ep", CacheState.ACTIVE, 1.0))
        remove_orphaned_caches(store, generations)
    assert generations.endpoints() == ["known"]
