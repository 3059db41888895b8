"""ARNs."""

from __future__ import annotations

import pytest

from zeropull.awsprotocol.arns import parse_arn, partition_of, sagemaker_arn
from zeropull.errors import InvalidInput


def test_arns_are_made_and_read() -> None:
    text = sagemaker_arn("cn-north-1", "000000000000", "endpoint", "e")
    assert text == "arn:aws-cn:sagemaker:cn-north-1:000000000000:endpoint/e"
    arn = parse_arn(text)
    assert (arn.resource_type, arn.resource_name, str(arn)) == ("endpoint", "e", text)
    assert partition_of("us-gov-west-1") == "aws-us-gov"
    for bad in ("", "arn:aws:x", "urn:aws:a:b:c:d"):
        with pytest.raises(InvalidInput):
            parse_arn(bad)
