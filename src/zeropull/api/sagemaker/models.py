"""CreateModel, DescribeModel, ListModels, DeleteModel."""

from __future__ import annotations

from zeropull.api.listing import page_by_creation_or_name
from zeropull.api.operations import Call, Members, Operation, Output
from zeropull.api.sagemaker.containers import container_of
from zeropull.api.tagging import set_initial_tags
from zeropull.awsprotocol.arns import sagemaker_arn
from zeropull.awsprotocol.members import MemberRules
from zeropull.errors import AlreadyExists, InvalidInput, NotFound
from zeropull.resources.models import Model, model_key
from zeropull.resources.tags import ResourceTags
from zeropull.statestore import Store

ROLE_IS_IGNORED = "roles mean something inside AWS only"
NO_ISOLATION = "EnableNetworkIsolation true is not supported here: containers have a network."

_CONTAINER_ACCEPTED = {
    "ImageConfig": "registries are reached as the configuration file says",
    "ContainerMetricsConfig": "containers' own metrics are not collected",
    "ModelDataSource.S3DataSource.ModelAccessConfig": "no licence is asked for here",
    "AdditionalModelDataSources.S3DataSource.ModelAccessConfig": "no licence is asked for here",
}
_CONTAINER_REFUSED = {
    "ModelPackageName": "there are no model packages",
    "InferenceSpecificationName": "there are no model packages",
    "MultiModelConfig": "multi-model containers are not served",
    **{
        f"{source}.S3DataSource.{name}": why
        for source in ("ModelDataSource", "AdditionalModelDataSources")
        for name, why in (
            ("HubAccessConfig", "there is no model hub"),
            ("ManifestS3Uri", "manifests are not read"),
            ("ManifestEtag", "manifests are not read"),
        )
    },
}
CREATE_RULES = MemberRules(
    accepted={
        "ExecutionRoleArn": ROLE_IS_IGNORED,
        "VpcConfig": "there are no VPCs",
        **{
            f"{where}.{name}": why
            for where in ("PrimaryContainer", "Containers")
            for name, why in _CONTAINER_ACCEPTED.items()
        },
    },
    refused={
        "InferenceExecutionConfig": "a model has one container",
        **{
            f"{where}.{name}": why
            for where in ("PrimaryContainer", "Containers")
            for name, why in _CONTAINER_REFUSED.items()
        },
    },
)


class ModelOperations:
    def __init__(self, store: Store) -> None:
        self._store = store

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation("CreateModel", self.create, CREATE_RULES),
            Operation("DescribeModel", self.describe),
            Operation("ListModels", self.list),
            Operation("DeleteModel", self.delete),
        )

    def create(self, call: Call, members: Members) -> Output:
        name = members["ModelName"]
        arn = sagemaker_arn(call.region, call.account, "model", name)
        primary, several = members.get("PrimaryContainer"), members.get("Containers")
        if primary is not None and several:
            raise InvalidInput("Give either PrimaryContainer or Containers, not both.")
        if several and len(several) > 1:
            raise InvalidInput(
                f"Containers has {len(several)} containers: a model has one container here."
            )
        if primary is not None:
            container = container_of(primary, "PrimaryContainer")
        elif several:
            container = container_of(several[0], "Containers.1")
        else:
            raise InvalidInput("A model needs a container: give PrimaryContainer or Containers.")
        if members.get("EnableNetworkIsolation"):
            raise InvalidInput(NO_ISOLATION)
        request = {key: value for key, value in members.items() if key != "Tags"}
        model = Model(call.account, name, arn, call.now_s, (container,), request)
        with self._store.transaction():
            if self._store.get(Model, model.key) is not None:
                raise AlreadyExists(f'Cannot create already existing model "{arn}".')
            self._store.put(model)
            set_initial_tags(self._store, arn, members.get("Tags", []))
        return {"ModelArn": arn}

    def describe(self, call: Call, members: Members) -> Output:
        model = self._required(call, members["ModelName"])
        return {
            "EnableNetworkIsolation": False,
            **model.request,
            "ModelArn": model.arn,
            "CreationTime": model.created_s,
        }

    def list(self, call: Call, members: Members) -> Output:
        found = [s.document for s in self._store.select(Model, prefix=f"{call.account}/")]
        models, token = page_by_creation_or_name(
            found, members, name=lambda m: m.name, created_s=lambda m: m.created_s
        )
        summaries = [
            {"ModelName": m.name, "ModelArn": m.arn, "CreationTime": m.created_s} for m in models
        ]
        return {"Models": summaries, "NextToken": token}

    def delete(self, call: Call, members: Members) -> Output:
        """Endpoints that run it have a snapshot: nothing else changes."""
        with self._store.transaction():
            model = self._required(call, members["ModelName"])
            self._store.delete(Model, model.key)
            self._store.delete(ResourceTags, model.arn)
        return None

    def _required(self, call: Call, name: str) -> Model:
        return require_model(self._store, call, name)


def require_model(store: Store, call: Call, name: str) -> Model:
    """Raises NotFound with SageMaker's text."""
    found = store.get(Model, model_key(call.account, name))
    if found is None:
        arn = sagemaker_arn(call.region, call.account, "model", name)
        raise NotFound(f'Could not find model "{arn}".')
    return found.document
