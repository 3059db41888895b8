"""ARNs: arn:<partition>:<service>:<region>:<account>:<resource>."""

from __future__ import annotations

from dataclasses import dataclass

from zeropull.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Arn:
    service: str
    region: str
    account: str
    resource: str  # "endpoint/my-endpoint"
    partition: str = "aws"

    def __str__(self) -> str:
        parts = ("arn", self.partition, self.service, self.region, self.account, self.resource)
        return ":".join(parts)

    @property
    def resource_type(self) -> str:
        return self.resource.partition("/")[0]

    @property
    def resource_name(self) -> str:
        return self.resource.partition("/")[2]


def parse_arn(text: str) -> Arn:
    """Raises InvalidInput when `text` has not six parts or does not begin with `arn:`."""
    parts = text.split(":", 5)
    if len(parts) != 6 or parts[0] != "arn" or not parts[1] or not parts[2] or not parts[5]:
        raise InvalidInput(f"{text!r} is not an ARN: expected arn:aws:service:region:account:name")
    return Arn(parts[2], parts[3], parts[4], parts[5], parts[1])


def partition_of(region: str) -> str:
    """The partition that stands in the ARNs of a region."""
    if region.startswith("cn-"):
        return "aws-cn"
    return "aws-us-gov" if region.startswith("us-gov-") else "aws"


def sagemaker_arn(region: str, account: str, resource_type: str, name: str) -> str:
    """`resource_type`: model, endpoint-config, endpoint, inference-component."""
    resource = f"{resource_type}/{name}"
    return str(Arn("sagemaker", region, account, resource, partition_of(region)))
