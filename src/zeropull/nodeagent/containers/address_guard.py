"""A copy sends from its own address only: nftables rules of the node's bridge.

Containers have CAP_NET_RAW, as containerd gives it, and with it could claim the address of the node
or of another copy. Every frame that enters the bridge from a copy's link must therefore come from
that copy's hardware address, and from its IPv4 address or be an ARP message that speaks for it; all
else is dropped, other protocols too. The one table is rendered anew for every change, so that it
heals whatever has happened to it; it lives in the node's network namespace and goes with it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from zeropull.errors import Unavailable
from zeropull.linux.nftables import load_rules
from zeropull.nodeagent.containers.network import hardware_address
from zeropull.telemetry import get_logger

TABLE = "zeropull_copies"

log = get_logger(__name__)


class AddressGuard:
    """`load` first; then `allow` and `forget`, from several threads. All block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._addresses: dict[str, str] = {}
        self._works = False

    def load(self, addresses: Mapping[str, str]) -> None:
        """Begin with the copies that are there: address by link. A machine without the rules of
        bridges does without, after one warning."""
        with self._lock:
            self._addresses = dict(addresses)
            try:
                load_rules(render_table(self._addresses))
                self._works = True
            except Unavailable as error:
                self._works = False
                log.warning(
                    "containers can claim each other's addresses on this node: it has no nftables "
                    "rules for bridges (CONFIG_NF_TABLES_BRIDGE)",
                    reason=error.reason,
                )

    def allow(self, link: str, address: str) -> None:
        """Before the link sends. Raises Unavailable when the rules cannot be changed."""
        self._change(link, address)

    def forget(self, link: str) -> None:
        """Idempotent."""
        self._change(link, None)

    def _change(self, link: str, address: str | None) -> None:
        with self._lock:
            changed = {k: v for k, v in self._addresses.items() if k != link}
            if address is not None:
                changed[link] = address
            if self._works and changed != self._addresses:
                load_rules(render_table(changed))
            self._addresses = changed


def render_table(addresses: Mapping[str, str]) -> str:
    """The whole table, which replaces the one before in one transaction."""
    elements = ", ".join(
        f'"{link}" . {hardware_address(address)} . {address}'
        for link, address in sorted(addresses.items())
    )
    return f"""
table bridge {TABLE} {{}}
delete table bridge {TABLE}
table bridge {TABLE} {{
    set senders {{
        type ifname . ether_addr . ipv4_addr
        {f"elements = {{ {elements} }}" if elements else ""}
    }}
    chain from_copies {{
        type filter hook prerouting priority -300; policy accept;
        iifname != "zp*" accept
        ether type ip iifname . ether saddr . ip saddr @senders accept
        ether type arp iifname . arp saddr ether . arp saddr ip @senders \\
            iifname . ether saddr . arp saddr ip @senders accept
        drop
    }}
}}
"""
