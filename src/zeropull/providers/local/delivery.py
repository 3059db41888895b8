"""Instances that get nothing of the host's disk: their image cache comes over their own link.

`[fleet] delivery = "network"`. Each instance has a receiver and the holder of its events, and a
grant that names it and its endpoint. The source is a process of the control plane's machine, which
nodes reach as they reach registries on the host's loopback.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from zeropull.delivery.certificates import ensure_certificate
from zeropull.delivery.control import ReceiverConfig
from zeropull.delivery.grants import Grant, Grants
from zeropull.delivery.suppliers import SupplierAddress
from zeropull.errors import Unavailable
from zeropull.linux.files import replace_file
from zeropull.providers.local.names import InstanceNames
from zeropull.resources.node import NodeConfig
from zeropull.resources.settings import Settings

ENDPOINT_LABEL = "endpoint_uid"


class NetworkDelivery:
    """What the local fleet needs of the source: where it listens, and credentials for it."""

    def __init__(self, settings: Settings) -> None:
        self._rung = settings.fleet.delivery_rung
        self._certificate = settings.source_certificate
        self._address_file = settings.source_address_file
        self.grants = Grants(settings.source_grants)

    def port(self) -> int:
        """Of the host's loopback.

        Raises:
            Unavailable: the source has not listened yet.
        """
        try:
            return int(self._address_file.read_text().rpartition(":")[2])
        except (OSError, ValueError) as error:
            raise Unavailable(f"the source does not listen yet: no {self._address_file}") from error

    def grant(self, instance_id: str, endpoint_uid: str) -> str:
        """A token for the instance."""
        return self.grants.make(Grant(endpoint_uid, instance_id))

    def write_config(self, names: InstanceNames, config: NodeConfig, token: str) -> None:
        """`receiver.json` of an instance.

        Raises:
            Unavailable: the source has not listened yet.
        """
        certificate = ensure_certificate(self._certificate, "zeropull source")
        receiver = ReceiverConfig(
            source=SupplierAddress("127.0.0.1", self.port(), certificate, token, is_source=True),
            volumes_dir=str(config.volumes_dir),
            socket=config.receiver_socket,
            holder_socket=str(config.holder_socket),
            journal=str(config.journal_file),
            fuse_dir=str(names.run_dir / "fuse"),
            rung=self._rung,
            log_level=config.log_level,
        )
        replace_file(config.receiver_file, msgspec.json.encode(receiver), is_durable=False)


def arriving_volumes(names: InstanceNames, generations: tuple[int, ...]) -> dict[int, str]:
    """Where the node's agent finds each generation, once its receiver has brought it."""
    return {number: str(names.volumes_dir / str(number)) for number in generations}


def volume_folder(names: InstanceNames, generation: int) -> Path:
    return names.volumes_dir / str(generation)
