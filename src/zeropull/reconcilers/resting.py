"""Which endpoints a round looks at: those about which something has changed, or is due.

An endpoint is *at rest* when its last round wrote nothing, decided nothing and started nothing,
and nothing about it is under way. A round leaves it out until

- one of its documents changes,
- a node of it says something new, falls silent or goes,
- a gateway tells of the first response of one of its copies,
- a time comes at which a rule acts, which is known when it comes to rest.

Endpoints that are not at rest are looked at when one of these things happens, whenever the gateways
say something new, and every interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping
from dataclasses import dataclass

from zeropull.controlapi.messages import CopyState
from zeropull.reconcilers.endpoint_view import View
from zeropull.reconcilers.engine import Engine
from zeropull.reconcilers.plan import Draft
from zeropull.resources.components import ComponentStatus, InferenceComponent
from zeropull.resources.endpoints import Endpoint, EndpointStatus
from zeropull.resources.instances import CopyIntent, CopyRecord, Instance, InstanceState
from zeropull.resources.settings import EndpointSettings
from zeropull.statestore import Store

RECHECK_S = 60.0
"""An endpoint at rest is looked at again after this long, one in an interval of rounds: what wakes
it may have been missed. With 50 copies, a look takes some 4 ms."""
SILENCE_INTERVAL_S = 1.0  # between two looks at when nodes were heard of


@dataclass(frozen=True, slots=True)
class Rest:
    """`until_s`: when a rule acts though nothing changes, by the wall clock; None: never."""

    until_s: float | None = None


def rest_of(view: View, draft: Draft, settings: EndpointSettings) -> Rest | None:
    """None while something is under way. `view`: the endpoint with what `draft` decided."""
    if draft.actions or draft.decisions or draft.announces or draft.is_gone:
        return None
    endpoint = view.endpoint
    if endpoint.status is EndpointStatus.FAILED:
        return Rest() if not view.instances and not view.components else None
    if endpoint.status is not EndpointStatus.IN_SERVICE or endpoint.pending or endpoint.waiting:
        return None
    if view.lost or view.unhealthy_since_s:
        return None
    if not all(_instance_rests(each, view) for each in view.instances):
        return None
    if not all(_copy_rests(each) for each in view.copies):
        return None
    if not all(_component_rests(each) for each in view.components):
        return None
    due = (each for each in _due_s(view, settings) if each > draft.now_s)
    return Rest(min(due, default=None))


def _instance_rests(instance: Instance, view: View) -> bool:
    return (
        instance.state is InstanceState.RUNNING
        and not instance.leaving
        and view.is_heard(instance)
        and not any(volume.leaving for volume in instance.volumes)
    )


def _copy_rests(copy: CopyRecord) -> bool:
    """What is not in rotation counts as ready while no gateway is up, and no longer once one is."""
    return (
        copy.intent is CopyIntent.RUN
        and copy.state == CopyState.HEALTHY
        and (copy.routed_s is not None or copy.container != 0)
    )


def _component_rests(component: InferenceComponent) -> bool:
    return (
        component.status is ComponentStatus.IN_SERVICE
        and component.pending is None
        and not component.retired
        and not component.waiting
        and component.current.image is not None
        and component.current.attempts == 0
        and component.current_copies == component.desired_copies
    )


def _due_s(view: View, settings: EndpointSettings) -> Iterator[float]:
    """When idle instances are released, and when copies are moved together."""
    for instance in view.instances:
        if instance.idle_since_s is not None:
            yield instance.idle_since_s + settings.idle_release_s
    changed_s = [view.endpoint.modified_s]
    changed_s += [each.modified_s for each in view.components]
    changed_s += [each.created_s for each in view.instances]
    changed_s += [each.created_s for each in view.copies]
    deployment = view.endpoint.current
    for variant in deployment.variants if deployment else ():
        if variant.spec.managed_scaling is not None:
            yield max(changed_s) + variant.spec.managed_scaling.cooldown_s


@dataclass(frozen=True, slots=True)
class _Looked:
    """An endpoint as it was left. `looked_s` is of the monotonic clock."""

    uid: str
    looked_s: float
    rest: Rest | None
    instance_ids: frozenset[str]
    unanswered: frozenset[str]  # copies whose first response is not known


class Awake:
    """Endpoints, by key, that are to be looked at now: those that were woken first come first."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        settings: EndpointSettings,
        monotonic: Callable[[], float],
        recheck_s: float = RECHECK_S,
    ) -> None:
        self._store = store
        self._engine = engine
        self._interval_s = settings.interval_s
        self._doubt_s = settings.node_lost_s / 2
        self._monotonic = monotonic
        self._recheck_s = recheck_s
        self._revision = -1
        self._woken: dict[str, None] = {}
        self._looked: dict[str, _Looked] = {}
        self._by_uid: dict[str, str] = {}
        self._by_instance: dict[str, str] = {}
        self._by_unanswered: dict[str, str] = {}
        self._silence_s = self._rechecked_s = monotonic()

    def __len__(self) -> int:
        return len(self._woken)

    @property
    def all_looked_at(self) -> bool:
        """Whether every endpoint has been looked at since the start."""
        return self._revision >= 0 and self._woken.keys() <= self._looked.keys()

    @property
    def uids(self) -> KeysView[str]:
        """Of all endpoints that were looked at and are there."""
        return self._by_uid.keys()

    @property
    def instance_ids(self) -> KeysView[str]:
        """Of all these endpoints."""
        return self._by_instance.keys()

    def rests(self, key: str) -> bool:
        looked = self._looked.get(key)
        return looked is not None and looked.rest is not None and key not in self._woken

    def gather(self, now_s: float) -> None:
        """Wake every endpoint about which something has changed, or is due."""
        self._wake_changed()
        self.wake_instances(self._engine.take_changed())
        monotonic_s = self._monotonic()
        if monotonic_s - self._silence_s >= SILENCE_INTERVAL_S:
            self._silence_s = monotonic_s
            self.wake_instances([each for each in self._by_instance if self._is_silent(each)])
        for key, looked in self._looked.items():
            if looked.rest is None:
                if monotonic_s - looked.looked_s >= self._interval_s:
                    self._woken.setdefault(key)
            elif looked.rest.until_s is not None and now_s >= looked.rest.until_s:
                self._woken.setdefault(key)

    def pop(self) -> str | None:
        """The next endpoint to look at."""
        key = next(iter(self._woken), None)
        if key is not None:
            del self._woken[key]
        return key

    def overdue(self) -> str | None:
        """An endpoint at rest that has not been looked at for long."""
        monotonic_s = self._monotonic()
        if monotonic_s - self._rechecked_s < self._interval_s:
            return None
        self._rechecked_s = monotonic_s
        overdue = (
            (looked.looked_s, key)
            for key, looked in self._looked.items()
            if monotonic_s - looked.looked_s >= self._recheck_s and key not in self._woken
        )
        return min(overdue, default=(0.0, None))[1]

    def wake(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._woken.setdefault(key)

    def wake_all(self) -> None:
        self._revision = -1
        self._wake_changed()

    def wake_restless(self) -> None:
        """Those that are not at rest."""
        self.wake([key for key, looked in self._looked.items() if looked.rest is None])

    def wake_instances(self, instance_ids: Iterable[str]) -> None:
        """The endpoints of these instances."""
        self.wake(self._by_instance[each] for each in instance_ids if each in self._by_instance)

    def wake_answered(self, first_response_s: Mapping[str, float]) -> None:
        """The endpoints of copies whose first response is news."""
        answered = self._by_unanswered.keys() & first_response_s.keys()
        self.wake([self._by_unanswered[each] for each in answered])

    def note(self, view: View, rest: Rest | None) -> None:
        """The endpoint has been looked at; `rest`: what `rest_of` says of it."""
        key, uid = view.endpoint.key, view.endpoint.uid
        instance_ids = frozenset(each.instance_id for each in view.instances)
        if rest is not None and any(self._is_silent(each) for each in instance_ids):
            rest = None
        copies = {each.copy_id for each in view.copies}
        unanswered = frozenset(
            each.copy_id
            for each in view.timelines
            if each.first_response_s is None and each.ended_s is None and each.copy_id in copies
        )
        self.forget(key)
        self._looked[key] = _Looked(uid, self._monotonic(), rest, instance_ids, unanswered)
        self._by_uid[uid] = key
        self._by_instance.update(dict.fromkeys(instance_ids, key))
        self._by_unanswered.update(dict.fromkeys(unanswered, key))

    def forget(self, key: str) -> None:
        """The endpoint is gone."""
        looked = self._looked.pop(key, None)
        if looked is None:
            return
        self._by_uid.pop(looked.uid, None)
        for instance_id in looked.instance_ids:
            self._by_instance.pop(instance_id, None)
        for copy_id in looked.unanswered:
            self._by_unanswered.pop(copy_id, None)

    def _is_silent(self, instance_id: str) -> bool:
        heard_s = self._engine.heard_s(instance_id)
        return heard_s is None or self._monotonic() - heard_s >= self._doubt_s

    def _wake_changed(self) -> None:
        since, now = self._revision, self._store.revision
        if since == now:
            return
        keys = self._store.changed_since(Endpoint.kind, since) if since >= 0 else None
        owners = self._store.owners_changed_since(since) if since >= 0 else None
        if keys is None or owners is None:
            self.wake(self._store.keys(Endpoint))
            self.wake(self._looked)  # those that are gone are to be noticed
        else:
            self.wake(keys)
            self.wake(self._by_uid[uid] for uid in owners if uid in self._by_uid)
        self._revision = now
