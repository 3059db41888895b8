"""From the catalog's instance types to what providers are asked for."""

from __future__ import annotations

from zeropull.providers.protocol import MachineShape
from zeropull.resources.instance_types import InstanceType


def shape_of(instance_type: InstanceType) -> MachineShape:
    """The shape of an instance of this type."""
    return MachineShape(
        name=instance_type.name,
        vcpus=instance_type.vcpus,
        memory_bytes=instance_type.memory_bytes,
        accelerators=instance_type.accelerators,
        accelerator_kind=instance_type.accelerator_kind,
        network_bits_per_s=instance_type.network_bits_per_s,
    )
