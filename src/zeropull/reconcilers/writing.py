"""Writes what a plan decided: all documents of one endpoint, in one transaction."""

from __future__ import annotations

from zeropull.reconcilers.endpoint_view import View
from zeropull.reconcilers.folding import ended
from zeropull.reconcilers.plan import Draft
from zeropull.resources.components import InferenceComponent
from zeropull.resources.documents import Document
from zeropull.resources.endpoints import Endpoint
from zeropull.resources.instances import CopyRecord
from zeropull.resources.tags import ResourceTags
from zeropull.statestore import Store
from zeropull.telemetry import get_logger

log = get_logger(__name__)


def write_draft(store: Store, view: View, draft: Draft) -> None:
    """Put what has changed since `view`, delete what is gone."""
    read: list[Document] = [*view.instances, *view.copies, *view.timelines, *view.components]
    before = {(d.kind, d.key): d for d in read}
    after: list[Document] = [*draft.instances.values(), *draft.copies.values()]
    after += [*draft.timelines.values(), *draft.components.values()]
    with store.transaction():
        for copy_id in draft.gone_copies:
            store.delete(CopyRecord, copy_id)
            if (timeline := draft.timelines.get(copy_id)) is not None:
                after.append(ended(timeline, draft.now_s))
        for component in view.components:
            if component.name not in draft.components:
                store.delete(ResourceTags, component.arn)
                store.delete(InferenceComponent, component.key)
        for document in after:
            if before.get((document.kind, document.key)) != document:
                store.put(document)
        if draft.is_gone:
            store.delete(ResourceTags, view.endpoint.arn)
            store.delete(Endpoint, view.endpoint.key)
            log.info("endpoint deleted", endpoint=view.endpoint.name)
        elif draft.endpoint != view.endpoint:
            store.put(draft.endpoint)
