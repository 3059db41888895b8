from __future__ import annotations

import pytest

from zeropull.errors import InvalidInput
from zeropull.snapshotter.id_maps import GID_LABEL, UID_LABEL, mapped_root, mapping_options


def test_labels_become_mount_options_and_the_owner_of_the_root() -> None:
    labels = {UID_LABEL: "0:200000:65536", GID_LABEL: "5:7:1,0:300000:65536"}
    assert mapping_options(labels) == (
        "uidmap=0:200000:65536",
        "gidmap=5:7:1,0:300000:65536",
    )
    assert mapped_root(labels) == (200_000, 300_000)


def test_a_snapshot_without_labels_is_not_mapped() -> None:
    assert mapping_options({"other": "label"}) == ()
    assert mapped_root({}) is None


@pytest.mark.parametrize(
    "labels",
    [
        {UID_LABEL: "0:200000:65536"},
        {UID_LABEL: "0:200000", GID_LABEL: "0:200000:65536"},
        {UID_LABEL: "0:1:2,lowerdir=/etc", GID_LABEL: "0:1:2"},
    ],
    ids=["one alone", "two numbers", "an option in it"],
)
def test_labels_that_are_no_mapping_are_refused_by_name(labels: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="mapping"):
        mapping_options(labels)


def test_a_mapping_without_root_is_refused() -> None:
    labels = {UID_LABEL: "1:200000:65536", GID_LABEL: "0:200000:65536"}
    with pytest.raises(InvalidInput, match="maps no ID to 0"):
        mapped_root(labels)
