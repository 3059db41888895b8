"""ContainerDefinition -> ContainerSpec: the part of CreateModel's input that nodes need."""

from __future__ import annotations

from typing import Any

from zeropull.errors import InvalidInput
from zeropull.resources.models import ContainerSpec, ModelSource
from zeropull.telemetry.logs import get_logger

MODEL_DIRECTORY = "/opt/ml/model"
ADDITIONAL_DIRECTORY = "/opt/ml/additional-model-data-sources"
MAX_ENVIRONMENT_BYTES = 32 << 10

_log = get_logger(__name__)


def container_of(definition: dict[str, Any], where: str) -> ContainerSpec:
    """`where` names the container in texts: "PrimaryContainer".

    Raises:
        InvalidInput: rules that the model's constraints cannot express.
    """
    if not definition.get("Image"):
        raise InvalidInput(f"{where} must have an Image: model packages are not supported here.")
    if definition.get("Mode", "SingleModel") != "SingleModel":
        raise InvalidInput(f"{where}.Mode MultiModel is not supported here.")
    environment = definition.get("Environment", {})
    size = sum(len(key.encode()) + len(value.encode()) for key, value in environment.items())
    if size > MAX_ENVIRONMENT_BYTES:
        raise InvalidInput(
            f"{where}.Environment has {size} bytes; at most {MAX_ENVIRONMENT_BYTES} are allowed."
        )
    if any("\0" in value for value in environment.values()):
        raise InvalidInput(f"{where}.Environment has a value with a NUL character.")
    sources = [*_main_sources(definition, where)]
    channels = set()
    for number, channel in enumerate(definition.get("AdditionalModelDataSources", []), start=1):
        name = channel["ChannelName"]
        if name in channels:
            raise InvalidInput(
                f"{where}.AdditionalModelDataSources has ChannelName '{name}' twice."
            )
        channels.add(name)
        at = f"{where}.AdditionalModelDataSources.{number}"
        sources.append(_source(channel["S3DataSource"], at, f"{ADDITIONAL_DIRECTORY}/{name}"))
    hostname = definition.get("ContainerHostname")
    return ContainerSpec(
        image=definition["Image"],
        name=hostname or "primary",
        hostname=hostname,
        environment=dict(environment),
        sources=tuple(sources),
    )


def _main_sources(definition: dict[str, Any], where: str) -> list[ModelSource]:
    url = definition.get("ModelDataUrl")
    source = definition.get("ModelDataSource", {}).get("S3DataSource")
    if url and source:
        raise InvalidInput(f"{where} has both ModelDataUrl and ModelDataSource: give one of them.")
    if source:
        return [_source(source, f"{where}.ModelDataSource", MODEL_DIRECTORY)]
    if not url:
        return []
    if not url.endswith(".tar.gz"):
        # Documented: without this suffix SageMaker downloads nothing.
        _log.warning("model data is not downloaded: its URL does not end in .tar.gz", url=url)
        return []
    return [ModelSource(url)]


def _source(source: dict[str, Any], where: str, target: str) -> ModelSource:
    uri, is_prefix = source["S3Uri"], source["S3DataType"] == "S3Prefix"
    is_gzip = source["CompressionType"] == "Gzip"
    if is_prefix and is_gzip:
        raise InvalidInput(
            f"{where}: CompressionType Gzip goes with S3DataType S3Object only, not S3Prefix."
        )
    if is_prefix and not uri.startswith("s3://"):
        raise InvalidInput(f"{where}: S3DataType S3Prefix needs an s3:// URI, not '{uri}'.")
    if is_prefix and not uri.endswith("/"):
        raise InvalidInput(f"{where}: S3Uri of an S3Prefix must end with '/': '{uri}'.")
    if not is_prefix and uri.endswith("/"):
        raise InvalidInput(f"{where}: S3Uri of an S3Object must not end with '/': '{uri}'.")
    return ModelSource(
        url=uri,
        source_kind="prefix" if is_prefix else "object",
        compression="gzip" if is_gzip else "none",
        target=target,
        etag=source.get("ETag"),
    )
