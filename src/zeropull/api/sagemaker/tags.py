"""AddTags, ListTags, DeleteTags."""

from __future__ import annotations

from zeropull.api.listing import page
from zeropull.api.operations import Call, Members, Operation, Output
from zeropull.api.tagging import as_list, merged_tags, set_tags, tags_of
from zeropull.awsprotocol.arns import parse_arn
from zeropull.errors import InvalidInput, NotFound
from zeropull.resources.components import InferenceComponent
from zeropull.resources.documents import Document
from zeropull.resources.endpoint_configs import EndpointConfig
from zeropull.resources.endpoints import Endpoint, endpoint_key
from zeropull.resources.models import Model
from zeropull.statestore import Store

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
            tags = merged_tags(tags_of(self._store, arn), members["Tags"])
            set_tags(self._store, arn, tags)
        return {"Tags": as_list(tags)}

    def list(self, call: Call, members: Members) -> Output:
        tags = as_list(tags_of(self._store, self._existing(call, members["ResourceArn"])))
        chosen, token = page(
            tags, members, lambda tag: (tag["Key"], ""), descending=False, default_size=PAGE_SIZE
        )
        return {"Tags": chosen, "NextToken": token}

    def delete(self, call: Call, members: Members) -> Output:
        with self._store.transaction():
            arn = self._existing(call, members["ResourceArn"])
            gone = set(members["TagKeys"])
            tags = tags_of(self._store, arn)
            left = {key: value for key, value in tags.items() if key not in gone}
            set_tags(self._store, arn, left)
        return {}

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
