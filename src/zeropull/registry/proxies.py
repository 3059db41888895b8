"""Which proxy a URL is reached through: HTTPS_PROXY, HTTP_PROXY and NO_PROXY, as Go reads them.

Follows golang.org/x/net/http/httpproxy: lower-case names count as well, NO_PROXY holds names with
their subdomains, addresses, networks and `*`, each with or without a port, and this machine itself
is never reached through a proxy.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from zeropull.registry.addresses import is_loopback, origin_of


def proxy_of(url: str, environment: Mapping[str, str]) -> str | None:
    """The proxy's URL, None for a direct connection."""
    scheme, host, port = origin_of(url)
    proxy = _variable(environment, f"{scheme}_proxy")
    if not proxy or is_loopback(host) or _is_excluded(host, port, environment):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_excluded(host: str, port: int, environment: Mapping[str, str]) -> bool:
    for item in _variable(environment, "no_proxy").split(","):
        rule = item.strip().lower()
        if not rule:
            continue
        if rule == "*":
            return True
        if "/" in rule:
            if _is_inside(host, rule):
                return True
            continue
        name, wanted_port = _split(rule)
        if wanted_port is not None and wanted_port != port:
            continue
        if _is_named(host.lower(), name):
            return True
    return False


def _is_named(host: str, name: str) -> bool:
    """`example.com` names itself and what is below it, `.example.com` only what is below it."""
    name = name.removeprefix("*")
    if name.startswith("."):
        return host.endswith(name)
    return host == name or host.endswith(f".{name}")


def _is_inside(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def _split(rule: str) -> tuple[str, int | None]:
    try:
        parts = urlsplit(f"//{rule}")
        return parts.hostname or rule, parts.port
    except ValueError:
        return rule.strip("[]"), None


def _variable(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name.upper()) or environment.get(name) or ""
