"""A container with CAP_NET_RAW cannot speak with an address that is not its own."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess

from tests.integration.nodeagent.conftest import Fleet, Node, ask, assignment_of, copy_of
from zeropull.controlapi.messages import CopyReport, CopyState, ImageAssignment
from zeropull.linux.network_namespaces import in_netns
from zeropull.nodeagent.containers.address_guard import TABLE
from zeropull.nodeagent.containers.network import hardware_address
from zeropull.providers.local.network import BRIDGE

_EVERYBODY = b"\xff" * 6
_ARP, _IPV4, _IPV6 = 0x0806, 0x0800, 0x86DD


def mac(address: str) -> bytes:
    return bytes.fromhex(hardware_address(address).replace(":", ""))


def arp(source: bytes, sender: bytes, address: str, mark: bytes) -> bytes:
    """An answer to nobody's question, which fills the neighbours' tables."""
    ip = socket.inet_aton(address)
    body = struct.pack("!HHBBH", 1, _IPV4, 6, 4, 2) + sender + ip + _EVERYBODY + ip
    return _EVERYBODY + source + struct.pack("!H", _ARP) + body + mark


def ipv4(source: bytes, address: str, mark: bytes) -> bytes:
    ends = socket.inet_aton(address) + b"\xff" * 4
    fields = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(mark), 0, 0, 64, 253)
    total = sum(struct.unpack("!9H", fields + ends))  # bridges look at the checksum
    total = (total & 0xFFFF) + (total >> 16)
    checksum = struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF)
    return _EVERYBODY + source + struct.pack("!H", _IPV4) + fields + checksum + ends + mark


def ipv6(source: bytes, mark: bytes) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(mark), 59, 1)
    ends = b"\xfe\x80" + bytes(13) + b"\1" + b"\xff\x02" + bytes(13) + b"\1"
    return _EVERYBODY + source + struct.pack("!H", _IPV6) + head + ends + mark


async def arrived(node: Node, copy: CopyReport, frames: list[bytes]) -> list[bytes]:
    """The marks of the frames that pass the bridge; the last one's must be among them."""
    listening = in_netns(
        node.names.netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    )
    with listening:
        listening.bind((BRIDGE, 3))  # ETH_P_ALL
        listening.setblocking(False)
        await ask(copy, do="send", frames=[frame.hex() for frame in frames])
        marks: list[bytes] = []
        async with asyncio.timeout(20):
            while frames[-1][-6:] not in marks:
                frame = await asyncio.get_running_loop().sock_recv(listening, 2048)
                marks += [each[-6:] for each in frames if frame.startswith(each)]
        return marks


def guarded(node: Node) -> str:
    command = ["nft", "list", "table", "bridge", TABLE]
    return in_netns(
        node.names.netns,
        lambda: subprocess.run(command, capture_output=True, text=True, check=True).stdout,
    )


async def test_a_container_sends_from_no_address_but_its_own(
    fleet: Fleet, probe_image: ImageAssignment
) -> None:
    node = await fleet.launch()
    node.assign(assignment_of(probe_image, copy_of(probe_image, "one")))
    copy = await node.until_copy("one", CopyState.HEALTHY, CopyState.FAILED)
    assert copy.state is CopyState.HEALTHY, copy
    assert copy.host is not None
    own, gateway = copy.host, copy.host.rpartition(".")[0]
    the_nodes, anothers = f"{gateway}.2", f"{gateway}.200"
    frames = [
        arp(mac(own), mac(own), the_nodes, b"node's"),
        arp(mac(own), mac(own), anothers, b"copy's"),
        arp(mac(own), mac(anothers), own, b"sender"),
        ipv4(mac(own), the_nodes, b"as ip4"),
        ipv4(mac(anothers), own, b"as mac"),
        ipv6(mac(own), b"as ip6"),
        ipv4(mac(own), own, b"ours 4"),
        arp(mac(own), mac(own), own, b"ours A"),
    ]
    assert await arrived(node, copy, frames) == [b"ours 4", b"ours A"]

    in_netns(
        node.names.netns,
        lambda: subprocess.run(["nft", "delete", "table", "bridge", TABLE], check=True),
    )
    assert len(await arrived(node, copy, frames)) == len(frames), "what the rules are for"
    await node.kill("agent")
    assert await node.provider.heal(node.instance_id)
    async with asyncio.timeout(30):
        while own not in _quietly_guarded(node):  # noqa: ASYNC110 - rules have no event
            await asyncio.sleep(0.1)
    assert await arrived(node, copy, frames) == [b"ours 4", b"ours A"], "the agent restores them"

    node.assign(assignment_of(probe_image))
    async with asyncio.timeout(30):
        while own in guarded(node):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def _quietly_guarded(node: Node) -> str:
    try:
        return guarded(node)
    except subprocess.CalledProcessError:
        return ""
