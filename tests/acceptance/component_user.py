"""What a user of inference components does, and what the timeline tells of the copies."""

from __future__ import annotations

import io
import os
import tarfile
from typing import Any

from botocore.exceptions import ClientError

from tests.acceptance.serving import Load, Server, stage_of, wait_until
from tests.integration.serve.served import DEADLINE_S, ROLE

DUO = "ml.duo.large"  # two accelerators, 4 cores, 8 GiB
TYPES: dict[str, Any] = {
    f'instance_types."{DUO}"': {"vcpus": 4, "memory_gib": 8, "accelerators": 2}
}
MODEL_BYTES = 1 << 20


class ComponentUser:
    """Inference components of one server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._endpoints: list[str] = []
        self._alarms: list[str] = []

    @property
    def sagemaker(self) -> Any:
        """The server has another port after each start."""
        return self.server.sagemaker

    def clean_up(self) -> None:
        """Delete every endpoint and config made here that is still there: names are free again,
        even after a test that failed half-way."""
        for name in self._endpoints:
            wait_until(f"{name} can be deleted", lambda name=name: self._deleted(name))  # type: ignore[misc]
            self.server.wait_deleted(name)
            self.sagemaker.delete_endpoint_config(EndpointConfigName=name)
        self.server.client("cloudwatch").delete_alarms(AlarmNames=self._alarms)
        self._endpoints.clear()
        self._alarms.clear()

    def _deleted(self, name: str) -> bool:
        """Deletion is accepted or was; an endpoint in progress refuses it."""
        try:
            self.sagemaker.delete_endpoint(EndpointName=name)
        except ClientError as error:
            return "Could not find" in str(error) or self.server.status(name) == "Deleting"
        return True

    def make_endpoint(
        self, name: str, minimum: int = 1, maximum: int = 2, wait: bool = True, **variant: Any
    ) -> None:
        tags = [{"Key": key, "Value": value} for key, value in variant.pop("Tags", {}).items()]
        base: dict[str, Any] = {
            "VariantName": "main",
            "InstanceType": DUO,
            "InitialInstanceCount": 1,
            "ManagedInstanceScaling": {
                "Status": "ENABLED",
                "MinInstanceCount": minimum,
                "MaxInstanceCount": maximum,
            },
            "RoutingConfig": {"RoutingStrategy": "LEAST_OUTSTANDING_REQUESTS"},
        }
        self.sagemaker.create_endpoint_config(
            EndpointConfigName=name, ExecutionRoleArn=ROLE, ProductionVariants=[base | variant]
        )
        self._endpoints.append(name)
        self.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name, Tags=tags)
        if wait:
            self.server.wait_in_service(name)

    def put_alarm(self, name: str, **request: Any) -> None:
        self._alarms.append(name)
        self.server.client("cloudwatch").put_metric_alarm(AlarmName=name, **request)

    def make_model(self, name: str) -> str:
        """An artifact in the bucket; returns its URL."""
        with tarfile.open(self.server.bucket / f"{name}.tar.gz", "w:gz") as archive:
            info = tarfile.TarInfo(f"{name}.bin")
            info.size = MODEL_BYTES
            archive.addfile(info, io.BytesIO(os.urandom(MODEL_BYTES)))
        return f"s3://models/{name}.tar.gz"

    def specification(
        self,
        image: str,
        model: str | None = None,
        *,
        accelerators: int = 0,
        cores: float = 0.25,
        memory_mb: int = 256,
        environment: dict[str, str] | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        container: dict[str, Any] = {"Image": image, "Environment": environment or {}}
        if model is not None:
            container["ArtifactUrl"] = model
        needs: dict[str, Any] = {
            "NumberOfCpuCoresRequired": cores,
            "MinMemoryRequiredInMb": memory_mb,
        }
        if accelerators:
            needs["NumberOfAcceleratorDevicesRequired"] = accelerators
        return {"Container": container, "ComputeResourceRequirements": needs, **more}

    def create(
        self, endpoint: str, name: str, image: str, model: str | None = None, **more: Any
    ) -> None:
        copies = more.pop("copies", 1)
        self.sagemaker.create_inference_component(
            InferenceComponentName=name,
            EndpointName=endpoint,
            VariantName="main",
            Specification=self.specification(image, model, **more),
            RuntimeConfig={"CopyCount": copies},
        )

    def scale(self, name: str, copies: int) -> None:
        self.sagemaker.update_inference_component_runtime_config(
            InferenceComponentName=name, DesiredRuntimeConfig={"CopyCount": copies}
        )

    def describe(self, name: str) -> dict[str, Any]:
        return dict(self.sagemaker.describe_inference_component(InferenceComponentName=name))

    def wait_serves(self, name: str, copies: int = 1, limit_s: float = DEADLINE_S) -> None:
        """Until it is InService with that many copies."""

        def serves() -> bool:
            found = self.describe(name)
            assert found["InferenceComponentStatus"] != "Failed", found
            return (
                found["InferenceComponentStatus"] == "InService"
                and found["RuntimeConfig"]["CurrentCopyCount"] == copies
            )

        try:
            wait_until(f"{name} serves with {copies} copies", serves, limit_s)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.describe(name)}\n{self.server.log()}") from None

    def wait_failed(self, name: str, limit_s: float = DEADLINE_S) -> str:
        def failed() -> str | None:
            found = self.describe(name)
            is_failed = found["InferenceComponentStatus"] == "Failed"
            return str(found["FailureReason"]) if is_failed else None

        return str(wait_until(f"{name} has failed", failed, limit_s))

    def delete(self, name: str) -> None:
        """Returns once it is gone."""
        self.sagemaker.delete_inference_component(InferenceComponentName=name)
        wait_until(f"{name} is gone", lambda: not self.exists(name))

    def exists(self, name: str) -> bool:
        try:
            self.describe(name)
        except ClientError as error:
            assert "Could not find inference component" in str(error)
            return False
        return True

    def invoke(self, endpoint: str, name: str, body: bytes = b"hello", **more: Any) -> bytes:
        answer = self.server.runtime.invoke_endpoint(
            EndpointName=endpoint, InferenceComponentName=name, Body=body, **more
        )
        return bytes(answer["Body"].read())

    def launches(self, endpoint: str, name: str) -> list[dict[str, Any]]:
        """Of one component's copies, oldest first; those of one decision in no order."""
        found = self.server.admin(f"endpoints/{endpoint}/timeline")["launches"]
        return sorted((x for x in found if x["component"] == name), key=lambda x: x["began_s"])


class ComponentLoad(Load):
    """Requests to one component."""

    def __init__(self, server: Server, name: str, component: str) -> None:
        super().__init__(server, name, InferenceComponentName=component)


def fetched_bytes(launch: dict[str, Any]) -> int:
    """What came from a registry and a model store for this copy."""
    image = stage_of(launch, "image")["bytes_by_source"].get("registry", 0)
    return int(image + stage_of(launch, "model")["bytes_by_source"].get("model_store", 0))
