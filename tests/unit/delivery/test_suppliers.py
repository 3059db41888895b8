"""Suppliers over real TLS connections: certificates, grants, and whom to ask next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fixtures.arriving import MadeUpLayer, made_up_layer
from zeropull.delivery.certificates import ensure_certificate
from zeropull.delivery.generation_shelf import GenerationShelf
from zeropull.delivery.grants import Grant, Grants
from zeropull.delivery.serving import BlockServer, EgressLimit
from zeropull.delivery.suppliers import Supplier, SupplierAddress, Suppliers, lied
from zeropull.delivery.wire import BlockRun
from zeropull.errors import AccessDenied, NotFound, Unavailable

ENDPOINT = "endpoint-a"


@pytest.fixture(scope="module")
def made() -> MadeUpLayer:
    return made_up_layer(4)


@pytest.fixture(scope="module")
def address(
    made: MadeUpLayer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SupplierAddress]:
    """A source that has the layer in generation 1 of the endpoint."""
    root = tmp_path_factory.mktemp("source")
    generation = root / "caches" / ENDPOINT / "generations" / "1"
    made.write(generation / "layers" / made.index.chain_id[7:])
    (generation / "generation.json").write_bytes(b"{}")
    grants = Grants(root / "grants")
    certificate = ensure_certificate(root / "certificate.pem", "a source")
    server = BlockServer(
        GenerationShelf(root / "caches"),
        grants.find,
        root / "certificate.pem",
        max_connections=4,
        egress=EgressLimit(None),
    )
    port = server.start("127.0.0.1")
    token = grants.make(Grant(ENDPOINT, "i-1"))
    yield SupplierAddress("127.0.0.1", port, certificate, token, is_source=True)
    server.close()


@pytest.fixture
def opened() -> Iterator[Callable[[SupplierAddress], Supplier]]:
    made: list[Supplier] = []

    def open_supplier(address: SupplierAddress) -> Supplier:
        made.append(Supplier(address))
        return made[-1]

    yield open_supplier
    for supplier in made:
        supplier.close()


Opened = Callable[[SupplierAddress], Supplier]


def test_blocks_come_in_the_order_of_the_runs(
    made: MadeUpLayer, address: SupplierAddress, opened: Opened
) -> None:
    supplier, chain_id = opened(address), made.index.chain_id
    runs = [BlockRun(chain_id, 2, 2), BlockRun(chain_id, 0, 1)]
    sizes = [len(made.contents[block]) for block in (2, 3, 0)]
    found = [bytes(each) for each in supplier.blocks(1, runs, sizes)]
    assert found == [made.contents[block] for block in (2, 3, 0)]
    assert supplier.bytes == sum(sizes)


def test_files_that_are_not_there_are_none(address: SupplierAddress, opened: Opened) -> None:
    names = ["generation.json", f"blobs/{'0' * 64}", "../../secret"]
    found = list(opened(address).files(1, names))
    assert found == list(zip(names, (b"{}", None, None), strict=True))


def test_without_a_grant_nothing_is_given(
    made: MadeUpLayer, address: SupplierAddress, opened: Opened
) -> None:
    stranger = opened(replace(address, token="x" * 43))
    with pytest.raises(AccessDenied, match="refuses this node"):
        list(stranger.blocks(1, [BlockRun(made.index.chain_id, 0, 1)], [1]))


def test_another_certificate_is_refused_before_the_token_is_sent(
    address: SupplierAddress, opened: Opened
) -> None:
    with pytest.raises(AccessDenied, match="expected 000"):
        list(opened(replace(address, certificate="0" * 64)).files(1, ["generation.json"]))


def test_a_layer_that_the_generation_does_not_have_is_not_found(
    address: SupplierAddress, opened: Opened
) -> None:
    with pytest.raises(NotFound):
        list(opened(address).blocks(1, [BlockRun(f"sha256:{'0' * 64}", 0, 1)], [1]))


def test_nobody_at_the_address_is_told(address: SupplierAddress, opened: Opened) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        list(opened(replace(address, port=1)).files(1, ["generation.json"]))


def test_a_supplier_that_failed_is_asked_last_and_trusted_again_later() -> None:
    source = SupplierAddress("198.18.0.1", 1, "0" * 64, "t", is_source=True)
    peers = [SupplierAddress(f"198.18.0.{number}", 1, "0" * 64, "t") for number in (2, 3)]
    suppliers = Suppliers(source)
    suppliers.set_peers(peers)
    bad = next(each for each in suppliers.everybody() if each.address == peers[0])
    assert "wrong bytes for block 1" in lied(bad, "block 1").reason
    order = [each.address for each in suppliers.everybody()]
    assert order == [peers[1], source, peers[0]]
    suppliers.set_peers(peers)
    assert suppliers.everybody()[-1] is bad, "what is known of a peer that stays is kept"
    assert bad.is_trusted(now_s=float("inf"))
    suppliers.set_peers([])
    assert [each.address for each in suppliers.everybody()] == [source]


def test_peers_take_turns_before_the_source() -> None:
    source = SupplierAddress("198.18.0.1", 1, "0" * 64, "t", is_source=True)
    suppliers = Suppliers(source)
    suppliers.set_peers(
        SupplierAddress(f"198.18.0.{number}", 1, "0" * 64, "t") for number in (2, 3, 4)
    )
    orders = [[each.address.host for each in suppliers.everybody()] for _ in range(3)]
    assert {order[0] for order in orders} == {"198.18.0.2", "198.18.0.3", "198.18.0.4"}
    assert {order[-1] for order in orders} == {"198.18.0.1"}


def test_files_come_from_the_first_that_has_all(address: SupplierAddress, tmp_path: Path) -> None:
    suppliers = Suppliers(address)
    suppliers.set_peers([replace(address, token="x" * 43, is_source=False)])
    assert suppliers.files(1, ["generation.json"]) == {"generation.json": b"{}"}
    with pytest.raises(NotFound, match=r"does not have blobs/0"):
        suppliers.files(1, ["generation.json", f"blobs/{'0' * 64}"])
    suppliers.close()
