"""SageMaker's instance types: vCPUs, memory, accelerators and network bandwidth, as facts.

Source: Amazon EC2's instance type specifications (https://docs.aws.amazon.com/ec2/latest/
instancetypes/), of which SageMaker's ml.* types are the same machines. A settings table adds types
and gives known ones another shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from zeropull.errors import InvalidInput
from zeropull.resources.settings import InstanceTypeSettings

GPU, NEURON = "nvidia.com/gpu", "aws.amazon.com/neuron"
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class InstanceType:
    """One type. `network_gbit_per_s` is sustained, not the "up to".

    `accelerator_kind` is a CDI kind, "" without accelerators.
    """

    name: str
    vcpus: int
    memory_gib: float
    accelerators: int = 0
    accelerator_kind: str = ""
    accelerator_model: str = ""
    network_gbit_per_s: float | None = None

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * _GIB)

    @property
    def network_bits_per_s(self) -> int | None:
        """The sustained rate: what an instance may count on while it downloads."""
        return None if self.network_gbit_per_s is None else int(self.network_gbit_per_s * 1e9)


# Family, accelerator kind and model; then size, vCPUs, memory in GiB, accelerators, sustained
# Gbit/s.
_Row = tuple[str, int, float, int, float]
_FAMILIES: dict[tuple[str, str, str], tuple[_Row, ...]] = {
    ("t2", "", ""): (
        ("medium", 2, 4, 0, 0.256),
        ("large", 2, 8, 0, 0.512),
        ("xlarge", 4, 16, 0, 0.75),
        ("2xlarge", 8, 32, 0, 1),
    ),
    ("m5", "", ""): (
        ("large", 2, 8, 0, 0.75),
        ("xlarge", 4, 16, 0, 1.25),
        ("2xlarge", 8, 32, 0, 2.5),
        ("4xlarge", 16, 64, 0, 5),
        ("12xlarge", 48, 192, 0, 12),
        ("24xlarge", 96, 384, 0, 25),
    ),
    ("m5d", "", ""): (
        ("large", 2, 8, 0, 0.75),
        ("xlarge", 4, 16, 0, 1.25),
        ("2xlarge", 8, 32, 0, 2.5),
        ("4xlarge", 16, 64, 0, 5),
        ("12xlarge", 48, 192, 0, 12),
        ("24xlarge", 96, 384, 0, 25),
    ),
    ("m6i", "", ""): (
        ("large", 2, 8, 0, 0.781),
        ("xlarge", 4, 16, 0, 1.562),
        ("2xlarge", 8, 32, 0, 3.125),
        ("4xlarge", 16, 64, 0, 6.25),
        ("8xlarge", 32, 128, 0, 12.5),
        ("12xlarge", 48, 192, 0, 18.75),
        ("16xlarge", 64, 256, 0, 25),
        ("24xlarge", 96, 384, 0, 37.5),
        ("32xlarge", 128, 512, 0, 50),
    ),
    ("c5", "", ""): (
        ("large", 2, 4, 0, 0.75),
        ("xlarge", 4, 8, 0, 1.25),
        ("2xlarge", 8, 16, 0, 2.5),
        ("4xlarge", 16, 32, 0, 5),
        ("9xlarge", 36, 72, 0, 12),
        ("18xlarge", 72, 144, 0, 25),
    ),
    ("c6i", "", ""): (
        ("large", 2, 4, 0, 0.781),
        ("xlarge", 4, 8, 0, 1.562),
        ("2xlarge", 8, 16, 0, 3.125),
        ("4xlarge", 16, 32, 0, 6.25),
        ("8xlarge", 32, 64, 0, 12.5),
        ("12xlarge", 48, 96, 0, 18.75),
        ("16xlarge", 64, 128, 0, 25),
        ("24xlarge", 96, 192, 0, 37.5),
        ("32xlarge", 128, 256, 0, 50),
    ),
    ("r5", "", ""): (
        ("large", 2, 16, 0, 0.75),
        ("xlarge", 4, 32, 0, 1.25),
        ("2xlarge", 8, 64, 0, 2.5),
        ("4xlarge", 16, 128, 0, 5),
        ("12xlarge", 48, 384, 0, 12),
        ("24xlarge", 96, 768, 0, 25),
    ),
    ("g4dn", GPU, "NVIDIA T4"): (
        ("xlarge", 4, 16, 1, 5),
        ("2xlarge", 8, 32, 1, 10),
        ("4xlarge", 16, 64, 1, 20),
        ("8xlarge", 32, 128, 1, 50),
        ("12xlarge", 48, 192, 4, 50),
        ("16xlarge", 64, 256, 1, 50),
    ),
    ("g5", GPU, "NVIDIA A10G"): (
        ("xlarge", 4, 16, 1, 2.5),
        ("2xlarge", 8, 32, 1, 5),
        ("4xlarge", 16, 64, 1, 10),
        ("8xlarge", 32, 128, 1, 25),
        ("12xlarge", 48, 192, 4, 40),
        ("16xlarge", 64, 256, 1, 25),
        ("24xlarge", 96, 384, 4, 50),
        ("48xlarge", 192, 768, 8, 100),
    ),
    ("g6", GPU, "NVIDIA L4"): (
        ("xlarge", 4, 16, 1, 2.5),
        ("2xlarge", 8, 32, 1, 5),
        ("4xlarge", 16, 64, 1, 10),
        ("8xlarge", 32, 128, 1, 25),
        ("12xlarge", 48, 192, 4, 40),
        ("16xlarge", 64, 256, 1, 25),
        ("24xlarge", 96, 384, 4, 50),
        ("48xlarge", 192, 768, 8, 100),
    ),
    ("g6e", GPU, "NVIDIA L40S"): (
        ("xlarge", 4, 32, 1, 2.5),
        ("2xlarge", 8, 64, 1, 5),
        ("4xlarge", 16, 128, 1, 20),
        ("8xlarge", 32, 256, 1, 25),
        ("12xlarge", 48, 384, 4, 100),
        ("16xlarge", 64, 512, 1, 35),
        ("24xlarge", 96, 768, 4, 200),
        ("48xlarge", 192, 1536, 8, 400),
    ),
    ("p3", GPU, "NVIDIA V100"): (
        ("2xlarge", 8, 61, 1, 2.5),
        ("8xlarge", 32, 244, 4, 10),
        ("16xlarge", 64, 488, 8, 25),
    ),
    ("p4d", GPU, "NVIDIA A100 40 GB"): (("24xlarge", 96, 1152, 8, 400),),
    ("p4de", GPU, "NVIDIA A100 80 GB"): (("24xlarge", 96, 1152, 8, 400),),
    ("p5", GPU, "NVIDIA H100"): (("48xlarge", 192, 2048, 8, 3200),),
    ("p5en", GPU, "NVIDIA H200"): (("48xlarge", 192, 2048, 8, 3200),),
    ("inf2", NEURON, "AWS Inferentia2"): (
        ("xlarge", 4, 16, 1, 2.083),
        ("8xlarge", 32, 128, 1, 25),
        ("24xlarge", 96, 384, 6, 50),
        ("48xlarge", 192, 768, 12, 100),
    ),
}

CATALOG: dict[str, InstanceType] = {
    f"ml.{family}.{size}": InstanceType(
        f"ml.{family}.{size}", vcpus, memory, accelerators, kind, model, sustained
    )
    for (family, kind, model), rows in _FAMILIES.items()
    for size, vcpus, memory, accelerators, sustained in rows
}


def make_catalog(extra: Mapping[str, InstanceTypeSettings]) -> dict[str, InstanceType]:
    """The catalog with the types of the settings, which win over known ones."""
    return CATALOG | {name: _from_settings(name, given) for name, given in extra.items()}


def find_type(catalog: Mapping[str, InstanceType], name: str) -> InstanceType:
    """Raises:
    InvalidInput: the catalog has no such type.
    """
    found = catalog.get(name)
    if found is None:
        raise InvalidInput(
            f"instance type {name} is not in the catalog of this fleet: add "
            f'[instance_types."{name}"] with vcpus and memory_gib to the configuration'
        )
    return found


def _from_settings(name: str, given: InstanceTypeSettings) -> InstanceType:
    known = CATALOG.get(name)
    kind = known.accelerator_kind if known and known.accelerator_kind else GPU
    return InstanceType(
        name=name,
        vcpus=given.vcpus,
        memory_gib=given.memory_gib,
        accelerators=given.accelerators,
        accelerator_kind=kind if given.accelerators else "",
        accelerator_model=known.accelerator_model if known and given.accelerators else "",
        network_gbit_per_s=given.network_gbit_per_s,
    )
