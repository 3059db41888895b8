"""AddTags, ListTags, DeleteTags, and tags given at creation."""

from __future__ import annotations

from typing import Any

from zeropull.api.listing import page
from zeropull.api.operations import Call, Members, Operation, Output
from zeropull.awsprotocol.arns import parse_arn
from zeropull.errors import InvalidInput, NotFound
from zeropull.resources.components import InferenceComponent
from zeropull.resources.documents import Document
from zeropull.resources.endpoint_configs import EndpointConfig
from zeropull.resources.endpoints import Endpoint, endpoint_key
from zeropull.resources.models import Model
from zeropull.resources.tags import ResourceTags
from zeropull.statestore import Store

MAX_TAGS = 50
PAGE_SIZE = 50
_WORDS = {
    "model": "model",
    "endpoint-config": "endpoint configuration",
    "endpoint": "endpoint",
    "inference-component": "inference component",
}
_TYPES: dict[str, type[Document]] = {
    "model": Model,
    "endpoint-config": EndpointConfig,
    "endpoint": Endpoint,
    "inference-component": InferenceComponent,
}


def set_initial_tags(store: Store, arn: str, tags: list[dict[str, Any]]) -> None:
    """The tags of a new resource; those of an earlier one of the same name go."""
    store.delete(ResourceTags, arn)
    if tags:
        store.put(ResourceTags(arn, _merged({}, tags)))


class TagOperations:
    def __init__(self, store: Store) -> None:
        self._store = store

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation("AddTags", self.add),
            Operation("ListTags", self.list),
            Operation("DeleteTags", self.delete),
        )

    def add(self, call: Call, members: Members) -> Output:
        with self._store.transaction():
            arn = self._existing(call, members["ResourceArn"])
            tags = _merged(self._tags(arn), members["Tags"])
            self._store.put(ResourceTags(arn, tags))
        return {"Tags": _as_list(tags)}

    def list(self, call: Call, members: Members) -> Output:
        tags = _as_list(self._tags(self._existing(call, members["ResourceArn"])))
        chosen, token = page(
            tags, members, lambda tag: (tag["Key"], ""), descending=False, default_size=PAGE_SIZE
        )
        return {"Tags": chosen, "NextToken": token}

    def delete(self, call: Call, members: Members) -> Output:
        with self._store.transaction():
            arn = self._existing(call, members["ResourceArn"])
            gone = set(members["TagKeys"])
            left = {key: value for key, value in self._tags(arn).items() if key not in gone}
            if left:
                self._store.put(ResourceTags(arn, left))
            else:
                self._store.delete(ResourceTags, arn)
        return {}

    def _tags(self, arn: str) -> dict[str, str]:
        found = self._store.get(ResourceTags, arn)
        return dict(found.document.tags) if found else {}

    def _existing(self, call: Call, text: str) -> str:
        """The resource's own ARN, which keeps the case of its name."""
        arn = parse_arn(text)
        document_type = _TYPES.get(arn.resource_type)
        if arn.service != "sagemaker" or document_type is None or not arn.resource_name:
            known = ", ".join(sorted(_TYPES))
            raise InvalidInput(f'"{text}" is not the ARN of a resource with tags: {known}.')
        missing = NotFound(f'Could not find {_WORDS[arn.resource_type]} "{text}".')
        if arn.account != call.account or arn.region != call.region:
            raise missing
        key = f"{call.account}/{arn.resource_name}"
        if document_type is Endpoint:
            key = endpoint_key(call.account, arn.resource_name)
        found = self._store.get(document_type, key)
        if found is None:
            raise missing
        assert isinstance(found.document, Model | EndpointConfig | Endpoint | InferenceComponent)
        return found.document.arn


def _merged(tags: dict[str, str], given: list[dict[str, Any]]) -> dict[str, str]:
    keys = [tag["Key"] for tag in given]
    for key in keys:
        if key.lower().startswith("aws:"):
            raise InvalidInput(
                f"The tag key '{key}' is not allowed: keys that begin with aws: are reserved."
            )
        if keys.count(key) > 1:
            raise InvalidInput(f"Duplicate tag key '{key}' in the request.")
    merged = tags | {tag["Key"]: tag["Value"] for tag in given}
    if len(merged) > MAX_TAGS:
        raise InvalidInput(f"A resource has at most {MAX_TAGS} tags; this would be {len(merged)}.")
    return merged


def _as_list(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]
