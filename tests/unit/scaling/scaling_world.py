"""The scaling controller over real stores with a clock of its own; the test plays the gateway, and
the reconciler that carries capacity out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zeropull.api.applicationautoscaling import autoscaling_table
from zeropull.api.cloudwatch import cloudwatch_table
from zeropull.api.operations import Call
from zeropull.autoscaler.readings import Decision
from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.messages import CopyReading, GatewayReport
from zeropull.metricstore.store import MetricStore
from zeropull.resources.endpoint_configs import VariantSpec
from zeropull.resources.endpoints import Deployment, Endpoint, EndpointStatus, Variant
from zeropull.resources.instances import CopyRecord, Instance, InstanceState
from zeropull.resources.scaling import ScalableTarget, ScalingActivity
from zeropull.resources.settings import ScalingSettings
from zeropull.scaling.controller import ScalingController
from zeropull.statestore import Store
from zeropull.statestore.cached_kind import CachedKind

ACCOUNT = "000000000000"
START_S = 1_790_000_040.0  # a whole minute
RESOURCE = {
    "ServiceNamespace": "sagemaker",
    "ResourceId": "endpoint/demo/variant/main",
    "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
}
KEY = f"{ACCOUNT}/demo"


@dataclass
class ScalingWorld:
    """Every second: the gateway reports `load` requests in flight, then the controller ticks."""

    folder: Path
    now_s: float = START_S
    load: float = 0.0
    invocations: int = 0
    queue_age_s: float = 0.0
    silent: bool = False  # the gateway reports nothing
    settles: bool = True  # capacity is there at once
    exchange: Exchange = field(default_factory=Exchange)

    def __post_init__(self) -> None:
        self.store = Store.open(self.folder / "state.db")
        self.metrics = MetricStore(self.folder / "metrics.db")
        self._copies = CachedKind(self.store, CopyRecord)
        self._endpoints = CachedKind(self.store, Endpoint)
        self.start()

    def start(self) -> None:
        """A control plane over the stores as they are."""
        self.controller = ScalingController(
            self.store, self.metrics, self.exchange, ScalingSettings(), lambda: self.now_s
        )

    def close(self) -> None:
        self.metrics.close()
        self.store.close()

    def call(self, operation: str, **members: Any) -> dict[str, Any]:
        """An operation of Application Auto Scaling or CloudWatch, without the protocol."""
        for table in (
            autoscaling_table(self.store),
            cloudwatch_table(self.store, self.metrics),
        ):
            found = table.operation(operation)
            if found is not None:
                call = Call(ACCOUNT, "us-east-1", operation, "r", self.now_s)
                if found.prepare is not None:
                    members = found.prepare(call, members)
                return dict(found.handler(call, members) or {})  # type: ignore[arg-type]
        raise AssertionError(operation)

    def endpoint_with(self, instances: int, **target: Any) -> ScalingWorld:
        """An endpoint in service with a scalable target from 1 to 10."""
        spec = VariantSpec("main", "ml.m5.large", initial_instances=instances, model_name="m")
        variant = Variant(spec, instances, 1.0, current_instances=instances, current_weight=1.0)
        self.store.put(
            Endpoint(
                account=ACCOUNT, name="demo",
                arn=f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:endpoint/demo", uid="u" * 32,
                status=EndpointStatus.IN_SERVICE, created_s=self.now_s, modified_s=self.now_s,
                current=Deployment("c", (variant,), self.now_s, deployment_id="d"),
            )
        )  # fmt: skip
        self._serve(instances)
        bounds = {"MinCapacity": 1, "MaxCapacity": 10}
        self.call("RegisterScalableTarget", **(RESOURCE | bounds | target))
        return self

    def track(self, target: float = 5.0, name: str = "track", **config: Any) -> None:
        kind = "SageMakerVariantConcurrentRequestsPerModelHighResolution"
        metric = {"PredefinedMetricSpecification": {"PredefinedMetricType": kind}}
        if "CustomizedMetricSpecification" in config or "PredefinedMetricSpecification" in config:
            metric = {}
        self.call(
            "PutScalingPolicy", **RESOURCE, PolicyName=name, PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration={"TargetValue": target, **metric, **config},
        )  # fmt: skip

    def seconds(self, count: int, load: float | None = None) -> ScalingWorld:
        """So many seconds go by."""
        if load is not None:
            self.load = load
        for _ in range(count):
            self._report()
            self.now_s += 1.0
            self.controller.tick()
            if self.settles:
                self.settle()
        return self

    def half_second(self, load: float) -> None:
        """The gateway has seen the first half of the next second; time stays where it is."""
        halves = tuple(
            CopyReading(
                account=ACCOUNT, endpoint="demo", variant="main", copy_id=copy.copy_id,
                instance_id=f"i-{copy.copy_id}", component=None, second=int(self.now_s),
                in_flight_max=round(load), in_flight_min=0, in_flight_integral=load,
            )
            for copy in self._copies.all()[:1]
        )  # fmt: skip
        report = GatewayReport("g", 1, self.now_s + 0.5, halves=halves)
        self.exchange.take_gateway_report(report, self.now_s + 0.5)
        self.controller.half_tick()

    def seconds_until(self, desired: int, limit: int = 2000) -> int:
        """How long until so many are desired."""
        for waited in range(limit):
            if self.desired == desired:
                return waited
            self.seconds(1)
        raise AssertionError(f"{self.desired}, not {desired}, after {limit} s: {self.decision}")

    def settle(self) -> None:
        """The reconciler has carried the capacity out."""
        endpoint = self.endpoint
        assert endpoint.current is not None
        if endpoint.status is not EndpointStatus.UPDATING or endpoint.pending is not None:
            return
        wanted = self.desired
        self._serve(wanted)
        self._write(wanted, wanted, EndpointStatus.IN_SERVICE, "")

    def give_up(self, current: int, reason: str) -> None:
        """The reconciler has rolled a change of capacity back."""
        self._write(current, current, EndpointStatus.IN_SERVICE, reason)

    def lack(self, reason: str) -> None:
        """An instance is wanted and cannot be had."""
        self.store.put(self._instance("i-lacking", InstanceState.WANTED, failure=reason))

    def set_status(self, status: EndpointStatus, pending: Deployment | None = None) -> None:
        self.store.update(
            Endpoint, KEY, lambda endpoint: replace(endpoint, status=status, pending=pending)
        )

    @property
    def endpoint(self) -> Endpoint:
        found = self._endpoints.get(KEY)
        assert found is not None
        return found

    @property
    def variant(self) -> Variant:
        assert self.endpoint.current is not None
        return self.endpoint.current.variants[0]

    @property
    def desired(self) -> int:
        return self.variant.desired_instances

    @property
    def target(self) -> ScalableTarget:
        return self.store.select(ScalableTarget)[0].document

    @property
    def decision(self) -> Decision | None:
        found = self.controller.decisions().get(self.target.key)
        return found[2] if found else None

    def activities(self) -> list[ScalingActivity]:
        """Oldest first."""
        found = [stored.document for stored in self.store.select(ScalingActivity)]
        return sorted(found, key=lambda activity: (activity.began_s, not activity.not_scaled))

    def alarm_states(self) -> dict[str, str]:
        """By High and Low."""
        alarms = self.call("DescribeAlarms")["MetricAlarms"]
        return {
            alarm["AlarmName"].split("-Alarm")[-1].split("-")[0]: alarm["StateValue"]
            for alarm in alarms
        }

    def _report(self) -> None:
        if self.silent:
            return
        copies = [copy.copy_id for copy in self._copies.all()]
        share = self.load / max(1, len(copies))
        readings = tuple(
            CopyReading(
                account=ACCOUNT, endpoint="demo", variant="main", copy_id=copy_id,
                instance_id=f"i-{copy_id}", component=None, second=int(self.now_s),
                in_flight_max=round(share), in_flight_min=0, in_flight_integral=share,
                invocations=self.invocations // max(1, len(copies)),
                queue_age_max_s=self.queue_age_s,
            )
            for copy_id in copies
        )  # fmt: skip
        report = GatewayReport("g", 1, self.now_s, readings=readings)
        self.exchange.take_gateway_report(report, self.now_s)

    def _serve(self, count: int) -> None:
        known = [s.document.copy_id for s in self.store.select(CopyRecord)]
        for copy_id in known[count:]:
            self.store.delete(CopyRecord, copy_id)
            self.store.delete(Instance, f"i-{copy_id}")
        for number in range(len(known), count):
            copy_id = f"c{number:03}"
            self.store.put(self._instance(f"i-{copy_id}", InstanceState.RUNNING))
            self.store.put(
                CopyRecord(
                    copy_id=copy_id, instance_id=f"i-{copy_id}", account=ACCOUNT,
                    endpoint_uid="u" * 32, endpoint="demo", variant="main", deployment_id="d",
                    created_s=self.now_s, state="healthy", routed_s=self.now_s,
                )
            )  # fmt: skip

    def _instance(self, instance_id: str, state: InstanceState, failure: str = "") -> Instance:
        return Instance(
            instance_id=instance_id, account=ACCOUNT, endpoint_uid="u" * 32, endpoint="demo",
            variant="main", instance_type="ml.m5.large", deployment_id="d", state=state,
            node_token="t", created_s=self.now_s, failure=failure,
        )  # fmt: skip

    def _write(self, desired: int, current: int, status: EndpointStatus, reason: str) -> None:
        def change(endpoint: Endpoint) -> Endpoint:
            assert endpoint.current is not None
            variant = replace(
                endpoint.current.variants[0],
                desired_instances=desired,
                current_instances=current,
            )
            return replace(
                endpoint,
                status=status,
                failure_reason=reason,
                current=replace(endpoint.current, variants=(variant,)),
            )

        self.store.update(Endpoint, KEY, change)
