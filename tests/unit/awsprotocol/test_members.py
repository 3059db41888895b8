"""Three classes of members."""

from __future__ import annotations

import pytest

from zeropull.awsprotocol.faults import ApiFault
from zeropull.awsprotocol.members import MemberClass, MemberRules, member_rows
from zeropull.awsprotocol.services import load_service


def test_the_three_classes_of_members() -> None:
    model = load_service("sagemaker").operation("CreateEndpointConfig")
    assert model is not None
    rules = MemberRules(
        accepted={"KmsKeyId": "no KMS"}, refused={"ProductionVariants.ServerlessConfig": "none"}
    )
    rows = {row.path: row for row in member_rows(model, rules)}
    assert rows["KmsKeyId"].member_class is MemberClass.ACCEPTED
    assert rows["ProductionVariants.ServerlessConfig"].member_class is MemberClass.REFUSED
    assert rows["ProductionVariants.VariantName"].member_class is MemberClass.SUPPORTED
    assert "ProductionVariants.ServerlessConfig.MemorySizeInMB" not in rows
    assert rules.check("Op", {"KmsKeyId": "k"}) == [("KmsKeyId", "no KMS")]
    with pytest.raises(ApiFault, match=r"ProductionVariants\.ServerlessConfig of Op"):
        rules.check("Op", {"ProductionVariants": [{"ServerlessConfig": {}}]})
    with pytest.raises(ValueError, match="Nonsense"):
        member_rows(model, MemberRules(refused={"Nonsense": ""}))
