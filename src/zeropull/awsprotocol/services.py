"""The service models that ship with botocore: shapes, constraints, names on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from botocore.loaders import Loader
from botocore.model import OperationModel, ServiceModel


@dataclass(frozen=True)
class Service:
    """One service. `name` is botocore's; `signing_name` stands in the credential scope."""

    name: str
    model: ServiceModel

    @property
    def signing_name(self) -> str:
        return str(self.model.signing_name)

    @property
    def target_prefix(self) -> str:
        return str(self.model.metadata.get("targetPrefix", ""))

    @property
    def api_version(self) -> str:
        return str(self.model.metadata["apiVersion"])

    @property
    def json_content_type(self) -> str:
        return f"application/x-amz-json-{self.model.metadata.get('jsonVersion', '1.1')}"

    @property
    def xml_namespace(self) -> str:
        return str(self.model.metadata.get("xmlNamespace", ""))

    @property
    def is_query_compatible(self) -> bool:
        return "awsQueryCompatible" in self.model.metadata

    def operation(self, name: str) -> OperationModel | None:
        if name not in self.model.operation_names:
            return None
        return self.model.operation_model(name)

    @property
    def speaks_cbor(self) -> bool:
        return "smithy-rpc-v2-cbor" in self.model.metadata.get("protocols", ())

    def error_members(self, shape_name: str) -> frozenset[str]:
        """The member names of an error of the model; empty for one that is in no model."""
        shape = next((s for s in self.model.error_shapes if s.name == shape_name), None)
        return frozenset(shape.members) if shape is not None else frozenset()

    def error(self, code: str) -> tuple[str, str, int | None]:
        """(shape name, query code, HTTP status or None) of an error given by either name."""
        return _errors(self).get(code, (code, code, None))


@cache
def load_service(name: str) -> Service:
    """The model of `name`, for example "sagemaker"; read from disk once per process."""
    # Only the models inside the package: a user's ~/.aws/models must not change what is served.
    loader = Loader(include_default_search_paths=False)
    loader.search_paths.append(Loader.BUILTIN_DATA_PATH)
    return Service(name, ServiceModel(loader.load_service_model(name, "service-2"), name))


@cache
def _errors(service: Service) -> Mapping[str, tuple[str, str, int | None]]:
    known: dict[str, tuple[str, str, int | None]] = {}
    for shape in service.model.error_shapes:
        error: Mapping[str, Any] = shape.metadata.get("error", {})
        query_code = str(error.get("code", shape.name))
        status = error.get("httpStatusCode")
        entry = (str(shape.name), query_code, int(status) if status else None)
        known[shape.name] = entry
        known.setdefault(query_code, entry)
    return known
