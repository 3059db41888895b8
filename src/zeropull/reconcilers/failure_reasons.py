"""FailureReason: the sentence that SageMaker uses, then what happened here and what to do."""

from __future__ import annotations

from zeropull.controlapi.messages import FailureKind
from zeropull.resources.instances import CopyRecord

MAX_REASON_CHARS = 1024

_PING = (
    "The primary container for production variant {variant} did not pass the ping health check. "
    "Please check CloudWatch logs for this endpoint."
)
_START = (
    "CannotStartContainerError. Please ensure the model container for variant {variant} starts "
    "correctly when invoked with 'docker run <image> serve'."
)
_IMAGE = (
    "The image for the production variant {variant} cannot be pulled. Please make sure all images "
    "included in the model for the production variant {variant} exist, and that the execution role "
    "used to create the model has permissions to access them."
)
_MODEL = (
    "Failed to download model data for the production variant {variant}. Please make sure the "
    "object exists and that its store is reachable with the configured credentials."
)
_CAPACITY = "Unable to provision requested ML compute capacity for production variant {variant}."
_INTERNAL = "Request to service failed for production variant {variant}."

_UNFORESEEN = "Request to service failed, by an error that nobody foresaw:"

_TEXTS = {
    FailureKind.IMAGE_NOT_FOUND: _IMAGE,
    FailureKind.REGISTRY_UNREACHABLE: _IMAGE,
    FailureKind.REGISTRY_DENIED: _IMAGE,
    FailureKind.IMAGE_INTEGRITY: _IMAGE,
    FailureKind.IMAGE_PLATFORM: _IMAGE,
    FailureKind.IMAGE_INVALID: _IMAGE,
    FailureKind.MODEL_NOT_FOUND: _MODEL,
    FailureKind.MODEL_INVALID: _MODEL,
    FailureKind.MODEL_UNREACHABLE: _MODEL,
    FailureKind.MODEL_TIMEOUT: _MODEL,
    FailureKind.DISK_FULL: _CAPACITY,
    FailureKind.CONTAINER_START: _START,
    FailureKind.CONTAINER_EXITED: _PING,
    FailureKind.HEALTH_TIMEOUT: _PING,
    FailureKind.ACCELERATOR: _CAPACITY,
    FailureKind.INTERNAL: _INTERNAL,
}

RETRIED_KINDS = frozenset({FailureKind.INTERNAL})  # another instance may well succeed


def copy_failure(copy: CopyRecord) -> str:
    """The reason when this copy has failed."""
    kind = FailureKind(copy.failure) if copy.failure else FailureKind.INTERNAL
    return _joined(_TEXTS[kind].format(variant=copy.variant), copy.message)


def image_failure(variant: str, message: str) -> str:
    """The reason when a reference could not be resolved."""
    return _joined(_IMAGE.format(variant=variant), message)


def capacity_failure(variant: str, message: str) -> str:
    """The reason when instances could not be had in time."""
    return _joined(_CAPACITY.format(variant=variant), message)


def instance_failure(variant: str, message: str) -> str:
    """The reason when instances died again and again."""
    return _joined(_INTERNAL.format(variant=variant), message)


def unforeseen_failure(message: str) -> str:
    """The reason when an error came that nobody foresaw."""
    return _joined(_UNFORESEEN, message)


def is_worth_retrying(copy: CopyRecord) -> bool:
    """Whether the failure says nothing about image, model or container."""
    return copy.failure is None or FailureKind(copy.failure) in RETRIED_KINDS


def _joined(text: str, message: str) -> str:
    whole = f"{text} {message}".strip()
    return whole if len(whole) <= MAX_REASON_CHARS else whole[: MAX_REASON_CHARS - 1] + "…"
