from __future__ import annotations

import pytest

from zeropull.errors import AccessDenied
from zeropull.registry.addresses import Reach, is_plain
from zeropull.resources.sources import RegistryAccess

FORBIDDEN = [
    "127.0.0.1",
    "127.8.8.8",
    "::1",
    "169.254.169.254",
    "fe80::1%eth0",
    "0.0.0.0",
    "::",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "100.100.100.200",
    "168.63.129.16",
    "fd00:ec2::254",
    "224.0.0.1",
]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_a_registry_elsewhere_leads_to_no_address_of_this_machine(address: str) -> None:
    with pytest.raises(AccessDenied, match=r"refused\. If it is meant, name store\.example"):
        Reach.of("r.example", None).check("store.example", address)


@pytest.mark.parametrize("address", ["10.0.0.5", "192.168.1.1", "198.18.0.1", "2001:db8::1"])
def test_private_addresses_are_fine(address: str) -> None:
    Reach.of("r.example", None).check("store.example", address)


def test_a_registry_on_loopback_leads_to_loopback_and_not_to_metadata() -> None:
    reach = Reach.of("localhost:5000", None)
    reach.check("localhost", "127.0.0.1")
    with pytest.raises(AccessDenied):
        reach.check("store.example", "169.254.169.254")


@pytest.mark.parametrize("address", FORBIDDEN)
def test_a_configured_host_may_have_any_address(address: str) -> None:
    reach = Reach.of("r.example:5000", RegistryAccess("r.example:5000", is_configured=True))
    reach.check("r.example", address)
    with pytest.raises(AccessDenied):
        reach.check("store.example", address)


@pytest.mark.parametrize(
    ("host", "access", "plain"),
    [
        ("127.0.0.1:5000", None, True),
        ("127.0.0.1:5000", RegistryAccess("h", plain_http=False), False),
        ("127.0.0.1:5000", RegistryAccess("h", ca="PEM"), False),
        ("127.0.0.1:5000", RegistryAccess("h", username="u"), True),
        ("r.example", None, False),
        ("r.example", RegistryAccess("h", plain_http=True), True),
    ],
)
def test_plain_http_is_for_loopback_without_tls_settings(
    host: str, access: RegistryAccess | None, plain: bool
) -> None:
    assert is_plain(host, access) is plain
