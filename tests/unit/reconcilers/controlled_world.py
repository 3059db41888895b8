"""The real controller, store and private API's exchange; machines, nodes and gateway are plays."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.unit.reconcilers import component_world, endpoint_world
from tests.unit.reconcilers.component_world import version
from tests.unit.reconcilers.memory_world import shape_of
from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.messages import CopyReport, CopyState, GatewayReport, NodeReport
from zeropull.errors import NotFound
from zeropull.imagecache.generations import GenerationStore
from zeropull.oci.images import ResolvedImage
from zeropull.providers.protocol import LaunchRequest, MachineShape, ProvidedInstance
from zeropull.reconcilers.controller import Controller
from zeropull.reconcilers.imagecaches.controller import CacheController
from zeropull.reconcilers.node_engine import NodeEngine
from zeropull.resources.components import ComponentStatus, InferenceComponent
from zeropull.resources.endpoints import DeployedImage, Endpoint, EndpointStatus
from zeropull.resources.instances import Instance, InstanceState
from zeropull.resources.settings import EndpointSettings, Settings
from zeropull.statestore import Store

HOST = "198.18.0.10"
SETTINGS = EndpointSettings(idle_release_s=5.0, node_lost_s=8.0, retry_s=1.0, drain_s=3.0)


class Machines:
    """A provider whose instances are names."""

    def __init__(self) -> None:
        self.present: dict[str, ProvidedInstance] = {}

    async def launch(self, request: LaunchRequest) -> ProvidedInstance:
        made = ProvidedInstance(request.instance_id, True, HOST, labels=request.labels)
        self.present[request.instance_id] = made
        return made

    async def terminate(self, instance_id: str) -> None:
        self.present.pop(instance_id, None)

    async def list_instances(self) -> list[ProvidedInstance]:
        return list(self.present.values())

    async def heal(self, instance_id: str) -> bool:
        if instance_id not in self.present:
            raise NotFound(f"{instance_id} is not there")
        return False


class ControlledWorld:
    """`second` is one second of everything. Times are of one clock for all."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.now_s = store, 1000.0
        self.machines = Machines()
        self.exchange = Exchange(lambda: self.now_s)
        self.silent: set[str] = set()  # instances
        self.ill: dict[str, CopyState] = {}  # copies
        self.answered: dict[str, float] = {}  # first responses of copies
        self.gateway_up = True
        self._routed_s: dict[str, float] = {}
        provider: Any = self.machines
        caches = CacheController(
            store,
            self.exchange,
            provider,
            GenerationStore(folder),
            image=None,  # type: ignore[arg-type]  # without a cache nobody asks for it
            has_accelerators=lambda name: False,
            enabled=False,
            all_instance_types=False,
            clock=lambda: self.now_s,
        )
        settings = Settings(endpoints=SETTINGS)
        engine = NodeEngine(
            store,
            self.exchange,
            provider,
            caches,
            settings,
            shape=lambda name: MachineShape(name, 4, 8 << 30),
            registry_access=lambda image: None,
            open_ways=_open_ways,
        )
        self.control = Controller(
            store,
            self.exchange,
            engine,
            caches,
            settings,
            resolve=_resolve,
            shape_of=shape_of,
            clock=lambda: self.now_s,
            monotonic=lambda: self.now_s,
        )

    def add_plain(self, name: str, count: int = 2) -> Endpoint:
        """An endpoint with a model of its own."""
        made = endpoint_world.endpoint(endpoint_world.deployment(count, started_s=self.now_s))
        return self._put(made, name)

    def add_shared(self, name: str, components: int = 2, copies: int = 2) -> Endpoint:
        """An endpoint with inference components."""
        made = endpoint_world.endpoint(component_world.deployment(1, 4))
        endpoint = self._put(made, name)
        for number in range(components):
            self.add_component(endpoint, f"{name}-{number}", copies)
        return endpoint

    def add_component(self, endpoint: Endpoint, name: str, copies: int) -> None:
        first = replace(
            version(), image=DeployedImage("repo/a:1", "sha256:" + "b" * 64, self.now_s)
        )
        self.store.put(
            InferenceComponent(
                account=endpoint.account,
                name=name,
                arn=f"arn:aws:sagemaker:us-east-1:{endpoint.account}:inference-component/{name}",
                uid=name,
                endpoint_uid=endpoint.uid,
                endpoint=endpoint.name,
                endpoint_arn=endpoint.arn,
                variant="main",
                status=ComponentStatus.CREATING,
                created_s=self.now_s,
                modified_s=self.now_s,
                desired_copies=copies,
                current=first,
            )
        )

    def scale(self, name: str, copies: int) -> None:
        found = self.component(name)
        self.store.put(replace(found, status=ComponentStatus.UPDATING, desired_copies=copies))

    def component(self, name: str) -> InferenceComponent:
        [found] = [s.document for s in self.store.select(InferenceComponent, name=name)]
        return found

    def endpoint(self, name: str) -> Endpoint:
        [found] = [s.document for s in self.store.select(Endpoint, name=name)]
        return found

    def instances(self, name: str) -> list[Instance]:
        found = self.store.select(Instance, endpoint_uid=self.endpoint(name).uid)
        return [s.document for s in found if s.document.state is InstanceState.RUNNING]

    def targets(self, name: str) -> set[str]:
        routes = self.exchange.routes.message
        found = [each for each in routes.endpoints if each.name == name] if routes else []
        return {t.copy_id for each in found for v in each.variants for t in v.targets}

    async def second(self) -> None:
        self.now_s += 1.0
        self.control.reconcile()
        await self.control._effects.settle()
        self.report()

    async def settle(self, limit_s: int = 60) -> None:
        """Until every endpoint is at rest."""
        for _ in range(limit_s):
            await self.second()
            self.control._awake.gather(self.now_s)
            if not self.restless():
                return
        raise AssertionError(f"not at rest after {limit_s} s: {self.restless()}")

    def restless(self) -> set[str]:
        return {key for key in self.store.keys(Endpoint) if not self.control._awake.rests(key)}

    def report(self) -> None:
        """Every node and the gateway say what they see."""
        for instance_id in self.machines.present.keys() - self.silent:
            self.report_from(instance_id)
        if not self.gateway_up:
            return
        routes = self.exchange.routes.message
        for endpoint in routes.endpoints if routes else ():
            for target in (t for v in endpoint.variants for t in v.targets):
                self._routed_s.setdefault(target.copy_id, self.now_s)
        report = GatewayReport(
            "gateway",
            routes.version if routes else 0,
            self.now_s,
            routed_at_s=dict(self._routed_s),
            first_response_s=dict(self.answered),
        )
        self.exchange.take_gateway_report(report, self.now_s)

    def report_from(self, instance_id: str) -> None:
        topic = self.exchange.assignments.get(instance_id)
        told = topic.message if topic else None
        if told is None:
            return
        copies = tuple(
            CopyReport(
                copy.copy_id,
                self.ill.get(copy.copy_id, CopyState.HEALTHY)
                if copy.desired == "run"
                else CopyState.STOPPED,
                host=HOST,
                healthy_at_s=1000.0,
            )
            for copy in told.copies
        )
        report = NodeReport(instance_id, told.version, self.now_s, 1000.0, copies)
        self.exchange.take_node_report(report, self.now_s)

    def _put(self, made: Endpoint, name: str) -> Endpoint:
        endpoint = replace(
            made,
            name=name,
            arn=made.arn.replace("demo", name),
            uid=name * 4,
            created_s=self.now_s,
            modified_s=self.now_s,
            status=EndpointStatus.CREATING,
        )
        self.store.put(endpoint)
        return endpoint


async def random_event(world: ControlledWorld, chance: random.Random) -> str:
    """Something that may happen any day; returns what, for the message of a failure."""
    components = [s.document for s in world.store.select(InferenceComponent)]
    component = chance.choice(components) if components else None
    names = [e.document.name for e in world.store.select(Endpoint)]
    instances = [i for name in names for i in world.instances(name)]
    match chance.randrange(12):
        case 0 | 1 if component is not None:
            copies = chance.randrange(4)
            world.scale(component.name, copies)
            return f"{component.name} is to have {copies} copies"
        case 2 if component is not None:
            world.store.put(replace(component, status=ComponentStatus.DELETING))
            return f"{component.name} is deleted"
        case 3:
            shared = world.endpoint("shared")
            world.add_component(shared, f"new-{world.now_s:.0f}", chance.randrange(3))
            return "a component is created"
        case 4 if instances:
            world.silent.add(chance.choice(instances).instance_id)
            return "a node falls silent"
        case 5 if instances:
            world.machines.present.pop(chance.choice(instances).instance_id, None)
            await world.control._sweeper.sweep()
            return "an instance is gone"
        case 6 | 7 if copies_there := sorted(world.targets(chance.choice(names))):
            copy_id = chance.choice(copies_there)
            world.ill[copy_id] = chance.choice([CopyState.UNHEALTHY, CopyState.FAILED])
            return f"{copy_id} is {world.ill[copy_id]}"
        case 8:
            world.ill.clear()
            world.silent.clear()
            return "everybody is well again"
        case 9:
            plain = world.endpoint("plain")
            if plain.current is None or plain.status is not EndpointStatus.IN_SERVICE:
                return "nothing"
            count = chance.randrange(1, 4)
            variant = replace(plain.current.variants[0], desired_instances=count)
            world.store.put(
                replace(
                    plain,
                    status=EndpointStatus.UPDATING,
                    current=replace(plain.current, variants=(variant,)),
                )
            )
            return f"the plain endpoint is to have {count} instances"
        case 10 if copies_there := sorted(world.targets(chance.choice(names))):
            world.answered[chance.choice(copies_there)] = world.now_s
            return "a copy answers its first request"
        case 11:
            world.gateway_up = not world.gateway_up
            return "the gateway comes or goes"
        case _:
            return "nothing"


async def _open_ways(endpoint: Endpoint) -> None:
    pass


async def _resolve(reference: str) -> ResolvedImage:
    raise NotFound(reference)
