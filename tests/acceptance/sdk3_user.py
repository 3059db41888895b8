"""What a user of the SageMaker Python SDK 3 runs, in an environment of its own: the resource
classes of sagemaker-core, and ModelBuilder. Prints what it saw as one line of JSON.

Streams are left out: Endpoint.invoke_with_response_stream of 3.27 fails in the SDK itself, which
takes the stream for a dictionary.

`python sdk3_user.py NAME IMAGE MODEL_DATA`; region, key and endpoints come from the environment.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys

from sagemaker.core.resources import Endpoint, EndpointConfig, Model, Tag
from sagemaker.core.shapes import ContainerDefinition, ProductionVariant
from sagemaker.core.shapes import Tag as NewTag
from sagemaker.serve.model_builder import ModelBuilder

ROLE = "arn:aws:iam::000000000000:role/sdk"
POLL_S = 1


def main(name: str, image: str, model_data: str) -> None:
    seen = by_resources(name, image, model_data)
    seen["built"] = by_model_builder(f"{name}-built", image, model_data)
    seen["version"] = importlib.metadata.version("sagemaker")
    print(f"\n{json.dumps(seen)}")  # the SDK draws its progress without an end of line


def by_resources(name: str, image: str, model_data: str) -> dict[str, object]:
    model = Model.create(
        model_name=name,
        primary_container=ContainerDefinition(
            image=image, model_data_url=model_data, environment={"MARK": "sdk3"}
        ),
        execution_role_arn=ROLE,
        tags=[NewTag(key="team", value="sdk3")],
    )
    config = EndpointConfig.create(
        endpoint_config_name=name, production_variants=[variant(name, 1)]
    )
    endpoint = Endpoint.create(endpoint_name=name, endpoint_config_name=name)
    endpoint.wait_for_status("InService", poll=POLL_S, timeout=120)
    answer = endpoint.invoke(body=b"hello").body.read()

    larger = EndpointConfig.create(
        endpoint_config_name=f"{name}-2", production_variants=[variant(name, 2)]
    )
    endpoint.endpoint_config_name = f"{name}-2"
    endpoint.update()
    endpoint.wait_for_status("InService", poll=POLL_S, timeout=120)
    endpoint.refresh()
    seen = {
        "answer": answer.decode(),
        "instances": endpoint.production_variants[0].current_instance_count,
        "listed": [each.endpoint_name for each in Endpoint.get_all(name_contains=name)],
        "tags": [(tag.key, tag.value) for tag in Tag.get_all(resource_arn=model.model_arn)],
        "url": Model.get(model_name=name).primary_container.model_data_url,
    }
    endpoint.delete()
    endpoint.wait_for_delete(poll=POLL_S, timeout=120)
    for resource in (larger, config, model):
        resource.delete()
    return seen


def by_model_builder(name: str, image: str, model_data: str) -> str:
    """An image with its own server, and a model that is in the store already: nothing of what
    ModelBuilder does inside AWS only (buckets of its own, hubs, training jobs) takes part."""
    builder = ModelBuilder(
        image_uri=image,
        s3_model_data_url=model_data,
        role_arn=ROLE,
        instance_type="ml.m5.large",
        env_vars={"MARK": "built"},
    )
    model = builder.build(model_name=name)
    endpoint = builder.deploy(endpoint_name=name, initial_instance_count=1, wait=False)
    endpoint.wait_for_status("InService", poll=POLL_S, timeout=120)
    answer = endpoint.invoke(body=b"hello").body.read().decode()
    config = EndpointConfig.get(endpoint_config_name=endpoint.endpoint_config_name)
    endpoint.delete()
    endpoint.wait_for_delete(poll=POLL_S, timeout=120)
    config.delete()
    model.delete()
    return answer


def variant(model: str, count: int) -> ProductionVariant:
    return ProductionVariant(
        variant_name="main",
        model_name=model,
        instance_type="ml.m5.large",
        initial_instance_count=count,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
