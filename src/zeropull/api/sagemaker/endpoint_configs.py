"""CreateEndpointConfig, DescribeEndpointConfig, ListEndpointConfigs, DeleteEndpointConfig."""

from __future__ import annotations

from zeropull.api.listing import page_by_creation_or_name
from zeropull.api.operations import Call, Members, Operation, Output
from zeropull.api.sagemaker.models import NO_ISOLATION, ROLE_IS_IGNORED, require_model
from zeropull.api.sagemaker.variants import variant_of
from zeropull.api.tagging import set_initial_tags
from zeropull.awsprotocol.arns import sagemaker_arn
from zeropull.awsprotocol.members import MemberRules
from zeropull.errors import AlreadyExists, InvalidInput, NotFound
from zeropull.resources.endpoint_configs import EndpointConfig, endpoint_config_key
from zeropull.resources.tags import ResourceTags
from zeropull.statestore import Store

CREATE_RULES = MemberRules(
    accepted={
        "ExecutionRoleArn": ROLE_IS_IGNORED,
        "VpcConfig": "there are no VPCs",
        "KmsKeyId": "disks are encrypted, or not, by the machine's owner",
        "MetricsConfig": "metrics are published at their standard frequencies",
        "ProductionVariants.AcceleratorType": "Elastic Inference has ended",
        "ProductionVariants.CapacityReservationConfig": "there are no capacity reservations",
        "ProductionVariants.CoreDumpConfig": "cores are dumped as the machine is set up",
        "ProductionVariants.EnableSSMAccess": "there is no Systems Manager",
        "ProductionVariants.InferenceAmiVersion": "instances run the machine's own system",
    },
    refused={
        "AsyncInferenceConfig": "asynchronous inference is not served",
        "CrossRegionTrafficConfig": "there is one region",
        "DataCaptureConfig": "requests are not recorded",
        "ExplainerConfig": "there are no explainers",
        "ShadowProductionVariants": "shadow traffic is not sent",
        "ProductionVariants.AcceleratorPartitionLayouts": "accelerators are given out whole",
        "ProductionVariants.InstancePools": "a variant has one instance type",
        "ProductionVariants.RoutingConfig.PrefixAwareRoutingConfig": "that strategy is not offered",
        "ProductionVariants.ServerlessConfig": "variants run on instances",
    },
)


class EndpointConfigOperations:
    def __init__(
        self, store: Store, instance_types: frozenset[str], *, with_components: bool
    ) -> None:
        self._store = store
        self._instance_types = instance_types
        self._with_components = with_components

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation("CreateEndpointConfig", self.create, CREATE_RULES),
            Operation("DescribeEndpointConfig", self.describe),
            Operation("ListEndpointConfigs", self.list),
            Operation("DeleteEndpointConfig", self.delete),
        )

    def create(self, call: Call, members: Members) -> Output:
        name = members["EndpointConfigName"]
        arn = sagemaker_arn(call.region, call.account, "endpoint-config", name)
        if members.get("EnableNetworkIsolation"):
            raise InvalidInput(NO_ISOLATION)
        variants = tuple(
            variant_of(given, self._instance_types) for given in members["ProductionVariants"]
        )
        request = {key: value for key, value in members.items() if key != "Tags"}
        config = EndpointConfig(call.account, name, arn, call.now_s, variants, request)
        self._check_variants(config)
        with self._store.transaction():
            if self._store.get(EndpointConfig, config.key) is not None:
                raise AlreadyExists(
                    f'Cannot create already existing endpoint configuration "{arn}".'
                )
            for variant in variants:
                if variant.model_name is not None:
                    require_model(self._store, call, variant.model_name)
            self._store.put(config)
            set_initial_tags(self._store, arn, members.get("Tags", []))
        return {"EndpointConfigArn": arn}

    def describe(self, call: Call, members: Members) -> Output:
        config = require_endpoint_config(self._store, call, members["EndpointConfigName"])
        return {
            **config.request,
            "EndpointConfigArn": config.arn,
            "CreationTime": config.created_s,
        }

    def list(self, call: Call, members: Members) -> Output:
        found = [s.document for s in self._store.select(EndpointConfig, prefix=f"{call.account}/")]
        configs, token = page_by_creation_or_name(
            found, members, name=lambda c: c.name, created_s=lambda c: c.created_s
        )
        summaries = [
            {
                "EndpointConfigName": c.name,
                "EndpointConfigArn": c.arn,
                "CreationTime": c.created_s,
            }
            for c in configs
        ]
        return {"EndpointConfigs": summaries, "NextToken": token}

    def delete(self, call: Call, members: Members) -> Output:
        """Allowed while in use: endpoints have a snapshot of it."""
        with self._store.transaction():
            config = require_endpoint_config(self._store, call, members["EndpointConfigName"])
            self._store.delete(EndpointConfig, config.key)
            self._store.delete(ResourceTags, config.arn)
        return None

    def _check_variants(self, config: EndpointConfig) -> None:
        names = [variant.name for variant in config.variants]
        for name in names:
            if names.count(name) > 1:
                raise InvalidInput(f'The production variant name "{name}" is not unique.')
        if not config.is_component_based:
            if not any(variant.initial_weight > 0 for variant in config.variants):
                raise InvalidInput("At least one production variant needs a weight above 0.")
            return
        if not self._with_components:
            raise InvalidInput(
                "Every production variant must have a ModelName: inference components are not "
                "supported here."
            )
        if len(config.variants) > 1:
            raise InvalidInput("An endpoint with inference components has one production variant.")
        if "ExecutionRoleArn" not in config.request:
            raise InvalidInput(
                "ExecutionRoleArn is required when a production variant has no ModelName."
            )


def require_endpoint_config(store: Store, call: Call, name: str) -> EndpointConfig:
    """Raises NotFound with SageMaker's text."""
    found = store.get(EndpointConfig, endpoint_config_key(call.account, name))
    if found is None:
        arn = sagemaker_arn(call.region, call.account, "endpoint-config", name)
        raise NotFound(f'Could not find endpoint configuration "{arn}".')
    return found.document
