"""Launches that are refused are tried again for as long as it takes."""

from __future__ import annotations

from pathlib import Path

from tests.fixtures.memory_engine import MemoryEngine
from tests.unit.reconcilers.endpoint_world import deployment, endpoint
from zeropull.oci.images import ResolvedImage
from zeropull.reconcilers.effects import Effects
from zeropull.reconcilers.plan import Action, Effect
from zeropull.reconcilers.resolving import Resolver
from zeropull.resources.instances import Instance, InstanceState
from zeropull.resources.settings import EndpointSettings
from zeropull.statestore import Store

SETTINGS = EndpointSettings()


async def test_a_launch_that_was_refused_a_thousand_times_still_pauses(tmp_path: Path) -> None:
    owner = endpoint(deployment())
    assert owner.pending is not None
    instance = Instance(
        "i-" + "0" * 17, owner.account, owner.uid, owner.name, "main", "ml.g5.xlarge",
        owner.pending.deployment_id, InstanceState.WANTED, "token", 0.0,
    )  # fmt: skip
    with Store.open(tmp_path / "store.db") as store:
        store.put(owner)
        store.put(instance)
        engine = MemoryEngine(capacity=0)
        resolver = Resolver(store, no_image, SETTINGS, lambda: 0.0)
        effects = Effects(
            store,
            engine,
            resolver,
            settings=SETTINGS,
            clock=lambda: 0.0,
            monotonic=lambda: 0.0,
            on_done=lambda endpoint_key: None,
        )
        for _ in range(1100):
            effects.start(owner.key, Action(Effect.LAUNCH, instance.instance_id, "a test"))
            await effects.settle()
        found = store.require(Instance, instance.instance_id).document
        assert found.state is InstanceState.WANTED
        assert found.next_attempt_s == SETTINGS.retry_max_s
        assert len(engine.launches) == 1100


async def no_image(reference: str) -> ResolvedImage:
    raise AssertionError("nothing is resolved here")
