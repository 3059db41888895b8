"""The result of a plan: new documents, documents to delete, and slow effects, each with a reason.

Documents are written in one transaction before any effect begins, so that after a crash the next
plan finds what was about to happen and asks for it again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from zeropull.reconcilers.copy_index import CopyIndex
from zeropull.reconcilers.endpoint_view import LIVE_STATES, View, live_instances
from zeropull.resources.components import InferenceComponent
from zeropull.resources.documents import new_copy_id, new_instance_id, new_uid
from zeropull.resources.endpoints import Deployment, Endpoint, EndpointStatus, Variant
from zeropull.resources.instances import (
    CopyIntent,
    CopyRecord,
    Instance,
    InstanceState,
    TimelineRecord,
)
from zeropull.resources.stages import Stage, StageRecord


class Effect(StrEnum):
    """Slow, idempotent, one at a time per target."""

    RESOLVE = "resolve"  # target: ID of a deployment or of a component's version
    LAUNCH = "launch"  # target: instance ID
    TERMINATE = "terminate"  # target: instance ID


@dataclass(frozen=True, slots=True)
class Action:
    effect: Effect
    target: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """One line of the log: a constant message, its subject and the reason."""

    message: str
    subject: str
    reason: str


@dataclass(slots=True)
class Draft:
    """Starts as the view and collects changes; later rules of a plan see what earlier ones did."""

    view: View
    now_s: float
    endpoint: Endpoint = field(init=False)
    instances: dict[str, Instance] = field(init=False)
    copies: CopyIndex = field(init=False)
    timelines: dict[str, TimelineRecord] = field(init=False)
    actions: list[Action] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    is_gone: bool = False  # the endpoint's record goes
    announces: bool = False  # it is ready: the gateways are to serve it, then it is in service
    components: dict[str, InferenceComponent] = field(init=False)  # by name
    gone_copies: set[str] = field(default_factory=set)  # their records go, their instance stays

    def __post_init__(self) -> None:
        self.components = {c.name: c for c in self.view.components}
        self.endpoint = self.view.endpoint
        self.instances = {i.instance_id: i for i in self.view.instances}
        self.copies = CopyIndex(self.view.copies)
        self.timelines = {t.copy_id: t for t in self.view.timelines}

    def decide(self, message: str, subject: str, reason: str) -> None:
        self.decisions.append(Decision(message, subject, reason))

    def act(self, effect: Effect, target: str, reason: str) -> None:
        self.actions.append(Action(effect, target, reason))

    def set_endpoint(self, endpoint: Endpoint) -> None:
        """Replace the endpoint; a new status also moves its modification time."""
        if endpoint.status is not self.endpoint.status:
            self.decide(
                "endpoint status changed",
                endpoint.name,
                f"{self.endpoint.status} -> {endpoint.status}"
                + (f": {endpoint.failure_reason}" if endpoint.failure_reason else ""),
            )
            endpoint = replace(endpoint, modified_s=self.now_s)
        self.endpoint = endpoint

    def enter_service(self, deployment: Deployment, failure_reason: str = "") -> None:
        """The deployment serves from now on: what was wanted is what is."""
        variants = tuple(
            replace(
                v,
                current_instances=v.desired_instances,
                current_weight=v.desired_weight,
                shifted_instances=0,
                statuses=(),
            )
            for v in deployment.variants
        )
        self.set_endpoint(
            replace(
                self.endpoint,
                status=EndpointStatus.IN_SERVICE,
                current=replace(deployment, variants=variants, shifted_s=None),
                pending=None,
                failure_reason=failure_reason,
            )
        )

    def set_variant(self, deployment: Deployment, variant: Variant) -> Deployment:
        """Replace one variant in the endpoint's deployment of that ID; returns the deployment."""
        new = replace(
            deployment,
            variants=tuple(variant if v.name == variant.name else v for v in deployment.variants),
        )
        return self.set_deployment(new)

    def set_deployment(self, deployment: Deployment) -> Deployment:
        current, pending = self.endpoint.current, self.endpoint.pending
        if current is not None and current.deployment_id == deployment.deployment_id:
            self.endpoint = replace(self.endpoint, current=deployment)
        if pending is not None and pending.deployment_id == deployment.deployment_id:
            self.endpoint = replace(self.endpoint, pending=deployment)
        return deployment

    def want_instance(
        self,
        deployment: Deployment,
        variant: Variant,
        *,
        reason: str,
        cause_s: float,
        attempts: int = 0,
        not_before_s: float | None = None,
    ) -> Instance:
        """One more instance with its copies and their timelines, all to be written together."""
        instance = Instance(
            instance_id=new_instance_id(),
            account=self.endpoint.account,
            endpoint_uid=self.endpoint.uid,
            endpoint=self.endpoint.name,
            variant=variant.name,
            instance_type=variant.spec.instance_type,
            deployment_id=deployment.deployment_id,
            state=InstanceState.WANTED,
            node_token=new_uid(),
            created_s=self.now_s,
            reason=reason,
            attempts=attempts,
            next_attempt_s=not_before_s,
        )
        self.instances[instance.instance_id] = instance
        digests = {i.reference: i.manifest_digest for i in variant.images}
        for index, container in enumerate(variant.containers):
            self.add_copy(
                instance,
                CopyRecord(
                    copy_id=new_copy_id(),
                    instance_id=instance.instance_id,
                    account=instance.account,
                    endpoint_uid=instance.endpoint_uid,
                    endpoint=instance.endpoint,
                    variant=variant.name,
                    deployment_id=deployment.deployment_id,
                    created_s=self.now_s,
                    manifest_digest=digests.get(container.image, ""),
                    container=index,
                ),
                reason=reason,
                cause_s=cause_s,
            )
        self.decide("instance wanted", instance.instance_id, reason)
        return instance

    def add_copy(
        self,
        instance: Instance,
        copy: CopyRecord,
        *,
        reason: str,
        cause_s: float,
        where: str = "",
    ) -> None:
        """One more copy on the instance, and its timeline. `where` tells people of the place."""
        self.copies[copy.copy_id] = copy
        self.timelines[copy.copy_id] = TimelineRecord(
            copy_id=copy.copy_id,
            instance_id=copy.instance_id,
            account=copy.account,
            endpoint_uid=copy.endpoint_uid,
            endpoint=copy.endpoint,
            variant=copy.variant,
            deployment_id=copy.deployment_id,
            instance_type=instance.instance_type,
            began_s=cause_s,
            component=copy.component,
            new_instance=instance.state is not InstanceState.RUNNING,
            reason=reason,
            stages=(StageRecord(Stage.DETECT, cause_s, self.now_s, detail=reason + where),),
        )

    def drain(self, instance: Instance, reason: str) -> None:
        """No new requests for it; what runs may finish. Idempotent."""
        if instance.state not in LIVE_STATES:
            return
        self.instances[instance.instance_id] = replace(
            instance, state=InstanceState.DRAINING, draining_s=self.now_s, failure=reason
        )
        for copy in self.copies_on(instance):
            self._intend(copy, CopyIntent.DRAIN)
        self.decide("instance draining", instance.instance_id, reason)

    def stop(self, instance: Instance, reason: str) -> None:
        """Its containers are to end now, requests or not. Idempotent."""
        if instance.state is InstanceState.TERMINATING:
            return
        self.instances[instance.instance_id] = replace(
            instance,
            state=InstanceState.TERMINATING,
            terminating_s=self.now_s,
            draining_s=instance.draining_s or self.now_s,
        )
        for copy in self.copies_on(instance):
            self._intend(copy, CopyIntent.STOP)
        self.decide("instance stopping", instance.instance_id, reason)

    def drain_copy(self, copy: CopyRecord, reason: str) -> None:
        """The same for one copy of a component, whose instance stays. Idempotent."""
        if copy.intent is CopyIntent.RUN:
            self._intend(copy, CopyIntent.DRAIN)
            self.decide("copy draining", copy.copy_id, reason)

    def stop_copy(self, copy: CopyRecord, reason: str) -> None:
        """The same for one copy of a component, whose instance stays. Idempotent."""
        if copy.intent is not CopyIntent.STOP:
            self._intend(copy, CopyIntent.STOP)
            self.decide("copy stopping", copy.copy_id, reason)

    def drop_copy(self, copy: CopyRecord, reason: str) -> None:
        """Its record goes, its instance stays."""
        del self.copies[copy.copy_id]
        self.gone_copies.add(copy.copy_id)
        self.decide("copy gone", copy.copy_id, reason)

    def fleet(self, deployment: Deployment, variant: Variant) -> list[Instance]:
        """Instances that count for the variant's capacity by now, oldest first."""
        return live_instances(self.instances.values(), deployment, variant)

    def ready_count(self, deployment: Deployment, variant: Variant) -> int:
        return sum(self.view.is_ready(i) for i in self.fleet(deployment, variant))

    def copies_on(self, instance: Instance) -> list[CopyRecord]:
        return self.copies.on_instance(instance.instance_id)

    def _intend(self, copy: CopyRecord, intent: CopyIntent) -> None:
        self.copies[copy.copy_id] = replace(
            copy, intent=intent, draining_s=copy.draining_s or self.now_s
        )
