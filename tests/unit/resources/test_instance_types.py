"""The catalog of instance types."""

from __future__ import annotations

import botocore.session
import pytest

from zeropull.errors import InvalidInput
from zeropull.resources.instance_types import CATALOG, find_type, make_catalog
from zeropull.resources.settings import InstanceTypeSettings


def test_every_type_is_one_that_sagemaker_hosts_on() -> None:
    model = botocore.session.get_session().get_service_model("sagemaker")
    assert set(CATALOG) <= set(model.shape_for("ProductionVariantInstanceType").enum)


def test_facts_of_a_gpu_type() -> None:
    found = find_type(CATALOG, "ml.g5.12xlarge")
    assert (found.vcpus, found.memory_bytes, found.accelerators) == (48, 192 << 30, 4)
    assert found.accelerator_kind == "nvidia.com/gpu"
    assert found.network_bits_per_s == 40_000_000_000


def test_the_settings_add_types_and_reshape_known_ones() -> None:
    catalog = make_catalog(
        {
            "ml.own.large": InstanceTypeSettings(vcpus=3, memory_gib=1.5, accelerators=1),
            "ml.inf2.xlarge": InstanceTypeSettings(vcpus=2, memory_gib=2, accelerators=1),
        }
    )
    assert catalog["ml.own.large"].accelerator_kind == "nvidia.com/gpu"
    assert catalog["ml.own.large"].network_bits_per_s is None
    assert catalog["ml.inf2.xlarge"].accelerator_kind == "aws.amazon.com/neuron"


def test_an_unknown_type_says_how_to_add_it() -> None:
    with pytest.raises(InvalidInput, match="instance_types"):
        find_type(CATALOG, "ml.z9.large")
