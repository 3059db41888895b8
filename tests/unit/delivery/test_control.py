"""The node agent asks the receiver over a socket: every call, every kind of error, root only."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from zeropull.delivery.control import ReceiverClient, serve_control
from zeropull.delivery.receiver import GenerationState, Receiver, ReceiverState
from zeropull.delivery.suppliers import SupplierAddress
from zeropull.errors import DiskFull, IntegrityError, NotFound, Unavailable

SOURCE = SupplierAddress("198.18.0.1", 1, "0" * 64, "token", is_source=True)
STATE = ReceiverState(
    "fanotify", (GenerationState(3, "/v/3", 2, 1, 40, 30, True),), {"demand": 7}, 1, 0, 0.5, {}
)


class MemoryReceiver(Receiver):
    """Remembers what it was asked for; `error` is what attaching comes to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, SOURCE)
        self.asked: list[object] = []
        self.error: Exception | None = None

    def attach(self, generation: int, index_digest: str) -> Path:
        self.asked.append((generation, index_digest))
        if self.error is not None:
            raise self.error
        return Path("/volumes") / str(generation)

    def detach(self, generation: int) -> None:
        self.asked.append(generation)

    def bring_rest(self) -> None:
        self.asked.append("rest")

    def state(self) -> ReceiverState:
        return STATE


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[MemoryReceiver]:
    made = MemoryReceiver(tmp_path)
    with serve_control(tmp_path / "socket", made):
        yield made
    made.close()


@pytest.fixture
def client(receiver: MemoryReceiver, tmp_path: Path) -> ReceiverClient:
    return ReceiverClient(tmp_path / "socket")


def test_every_call_reaches_the_receiver(receiver: MemoryReceiver, client: ReceiverClient) -> None:
    assert client.attach(3, "sha256:ab") == Path("/volumes/3")
    client.detach(2)
    client.bring_rest()
    assert client.state() == STATE
    assert receiver.asked == [(3, "sha256:ab"), 2, "rest"]
    peer = SupplierAddress("198.18.0.2", 2, "1" * 64, "other")
    client.set_peers((peer,))
    assert [each.address for each in receiver.suppliers.everybody()] == [peer, SOURCE]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NotFound("nobody has it"), NotFound),
        (DiskFull("no room"), DiskFull),
        (OSError(28, "No space left on device"), DiskFull),
        (Unavailable("later"), Unavailable),
        (IntegrityError("wrong bytes"), Unavailable),
    ],
)
def test_an_error_has_the_same_meaning_on_the_other_side(
    receiver: MemoryReceiver, client: ReceiverClient, error: Exception, kind: type[Exception]
) -> None:
    receiver.error = error
    with pytest.raises(kind, match=str(error.args[-1])):
        client.attach(1, "sha256:ab")


def test_only_root_may_connect(receiver: MemoryReceiver, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == 0o600


def test_a_receiver_that_is_away_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="the receiver does not answer"):
        ReceiverClient(tmp_path / "nobody").state()
