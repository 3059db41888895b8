"""Where connections may lead: hosts, origins, and addresses that only this machine can reach.

A registry is a stranger's server, and its redirects and token servers are addresses that it
chooses. Without a check they would lead to services of this machine and to the cloud's metadata.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from zeropull.errors import AccessDenied
from zeropull.resources.sources import RegistryAccess

# Metadata services that are not link-local: Alibaba Cloud's, Azure's wire server, AWS' over IPv6.
_METADATA = frozenset(
    ipaddress.ip_address(text) for text in ("100.100.100.200", "168.63.129.16", "fd00:ec2::254")
)


@dataclass(frozen=True, slots=True)
class Reach:
    """Which addresses one registry may lead to, besides public and private ones.

    `hosts`: names that the operator has configured, with any address. `loopback`: this machine's
    own, since the registry itself is there.
    """

    hosts: frozenset[str] = frozenset()
    loopback: bool = False

    @classmethod
    def of(cls, host: str, access: RegistryAccess | None) -> Reach:
        name = split_host(host)
        configured = {name} if access is not None and access.is_configured else set()
        return cls(frozenset(configured), is_loopback(name))

    def check(self, host: str, address: str) -> None:
        """Raises AccessDenied for an address of `host` that nobody has allowed."""
        if host in self.hosts:
            return
        ip = ipaddress.ip_address(address.partition("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip
        if ip.is_loopback and self.loopback:
            return
        if ip.is_loopback or ip.is_link_local or ip.is_unspecified or ip.is_multicast:
            what = "an address that only this machine can reach"
        elif ip in _METADATA:
            what = "a cloud's metadata service"
        else:
            return
        raise AccessDenied(
            f"{host} leads to {address}, {what}: refused. If it is meant, name {host} under "
            "[registries] in the configuration"
        )


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only be this machine."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_plain(host: str, access: RegistryAccess | None) -> bool:
    """Whether a registry's `host[:port]` is spoken to in plain HTTP."""
    if access is not None and access.plain_http is not None:
        return access.plain_http
    has_tls = access is not None and (access.ca or access.client_cert or access.skip_verify)
    return not has_tls and is_loopback(split_host(host))


def split_host(host: str) -> str:
    """The name or address of a `host[:port]`."""
    return urlsplit(f"//{host}").hostname or host


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: what decides whether credentials may be sent along."""
    parts = urlsplit(url)
    default = 443 if parts.scheme == "https" else 80
    return parts.scheme, parts.hostname or "", parts.port or default


def shown(url: str) -> str:
    """A URL for messages: queries may carry signatures, so they are left out."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("?")[0].rpartition("@")[2]
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
