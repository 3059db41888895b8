"""USER is resolved against the image's own files."""

from __future__ import annotations

import pytest

from zeropull.errors import ImageError
from zeropull.nodeagent.containers.users import User, resolve_user

PASSWD = "root:x:0:0:root:/root:/bin/sh\nmodel:x:1000:1001::/home/model:/bin/sh\nbroken\n"
GROUP = "root:x:0:\nvideo:x:44:model,other\nrender:x:45:model\nstaff:x:50:\n"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", User(0, 0, (), "/root")),
        ("model", User(1000, 1001, (44, 45), "/home/model")),
        ("1000", User(1000, 1001, (44, 45), "/home/model")),
        ("4711", User(4711, 0, (), "/")),
        ("4711:50", User(4711, 50, (), "/")),
        ("model:staff", User(1000, 50, (), "/home/model")),
        ("1000:7", User(1000, 7, (), "/home/model")),
    ],
)
def test_every_form_of_user_is_understood(value: str, expected: User) -> None:
    assert resolve_user(value, PASSWD, GROUP) == expected


@pytest.mark.parametrize("value", ["nobody", "model:nogroup", "99999999999", "0:99999999999"])
def test_what_the_image_does_not_have_is_refused(value: str) -> None:
    with pytest.raises(ImageError):
        resolve_user(value, PASSWD, GROUP)


def test_an_image_without_files_runs_as_root_or_by_number() -> None:
    assert resolve_user("", "", "") == User(0, 0, (), "/")


@pytest.mark.parametrize("value", ["²", "1" * 5000, "0:³", "model:" + "9" * 5000])
def test_numbers_that_are_none_are_refused_by_name(value: str) -> None:
    with pytest.raises(ImageError) as caught:
        resolve_user(value, PASSWD, GROUP)
    assert len(str(caught.value)) < 400


def test_ids_that_runc_cannot_take_are_no_accounts() -> None:
    passwd = f"big:x:{2**32}:0::/:/bin/sh\nodd:x:²:0::/:/bin/sh\nlong:x:{'9' * 5000}:0::/:\n"
    for name in ("big", "odd", "long"):
        with pytest.raises(ImageError, match="not in its /etc/passwd"):
            resolve_user(name, passwd, "")
