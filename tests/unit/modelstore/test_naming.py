from __future__ import annotations

import pytest

from zeropull.errors import ArtifactError
from zeropull.modelstore.naming import object_name, relative_names


def test_the_prefix_is_stripped() -> None:
    assert relative_names("m/", ["m/a", "m/d/b"]) == {"m/a": "a", "m/d/b": "d/b"}


def test_a_single_object_is_named_by_its_last_part() -> None:
    assert object_name("models/v1/weights.bin") == "weights.bin"


@pytest.mark.parametrize(
    "keys",
    [
        ["m/a//b"],
        ["m/ /b"],
        ["m/../b"],
        ["m/./b"],
        ["m/" + "x" * 256],
        ["m/a\0b"],
        ["m/folder/"],
        ["m"],
        ["m/weights", "m/weights/part1"],
    ],
)
def test_keys_that_sagemaker_refuses_are_refused(keys: list[str]) -> None:
    with pytest.raises(ArtifactError):
        relative_names("m/", keys)
