"""CloudWatch's own errors, by the names that its query protocol has for them."""

from __future__ import annotations

from zeropull.awsprotocol.faults import ApiFault


def invalid_value(message: str) -> ApiFault:
    return ApiFault("InvalidParameterValueException", message)


def invalid_combination(message: str) -> ApiFault:
    return ApiFault("InvalidParameterCombinationException", message)


def missing(message: str) -> ApiFault:
    return ApiFault("MissingRequiredParameterException", message)
