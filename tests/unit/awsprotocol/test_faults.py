"""Errors by the names of AWS."""

from __future__ import annotations

from zeropull.awsprotocol.faults import fault_of
from zeropull.errors import Conflict, IntegrityError, NotFound


def test_errors_have_the_code_of_their_service() -> None:
    assert fault_of(NotFound("x"), "sagemaker").code == "ValidationException"
    assert fault_of(Conflict("x"), "sagemaker").code == "ValidationException"
    assert fault_of(NotFound("x"), "application-autoscaling").code == "ObjectNotFoundException"
    assert fault_of(NotFound("x"), "cloudwatch").status == 404
    hidden = fault_of(IntegrityError("the path /secret"), "sagemaker")
    assert (hidden.code, hidden.status) == ("InternalFailure", 500)
    assert "secret" not in hidden.message
