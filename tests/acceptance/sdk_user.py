"""What a user of the SageMaker Python SDK 2 runs, in an environment of its own: model, endpoint,
prediction, one instance more, and everything deleted. Prints what it saw as one line of JSON.

`python sdk_user.py NAME IMAGE MODEL_DATA`; region, key and endpoints come from the environment.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

import sagemaker
from sagemaker.deserializers import BytesDeserializer
from sagemaker.model import Model
from sagemaker.predictor import Predictor
from sagemaker.serializers import IdentitySerializer

ROLE = "arn:aws:iam::000000000000:role/sdk"
POLL_S = 1  # the SDK's own is 30


def main(name: str, image: str, model_data: str) -> None:
    session = sagemaker.Session()
    model = Model(
        image_uri=image,
        model_data=model_data,
        role=ROLE,
        name=name,
        env={"MARK": "sdk"},
        predictor_cls=Predictor,
        sagemaker_session=session,
    )
    predictor = model.deploy(
        initial_instance_count=1,
        instance_type="ml.m5.large",
        endpoint_name=name,
        serializer=IdentitySerializer(),
        deserializer=BytesDeserializer(),
        container_startup_health_check_timeout=120,
        tags=[{"Key": "team", "Value": "sdk"}],
        wait=False,
    )
    session.wait_for_endpoint(name, poll=POLL_S)
    answer = predictor.predict(b"hello")
    streamed = b"".join(predictor.predict_stream(b"hello", iterator=ByteIterator))

    predictor.update_endpoint(
        initial_instance_count=2, instance_type="ml.m5.large", model_name=name, wait=False
    )
    described = session.wait_for_endpoint(name, poll=POLL_S)
    again = predictor.predict(b"hello")
    tags = session.list_tags(described["EndpointArn"])
    predictor.delete_endpoint(delete_endpoint_config=True)
    session.delete_endpoint_config(name)  # the first one, which update_endpoint leaves
    predictor.delete_model()
    seen = {
        "version": sagemaker.__version__,
        "answer": answer.decode(),
        "streamed": streamed.decode(),
        "again": again.decode(),
        "instances": described["ProductionVariants"][0]["CurrentInstanceCount"],
        "tags": tags,
    }
    print(f"\n{json.dumps(seen)}")  # the SDK draws its progress without an end of line


class ByteIterator:
    """The parts of a streamed answer."""

    def __init__(self, stream: Iterable[Any]) -> None:
        self._events = iter(stream)

    def __iter__(self) -> ByteIterator:
        return self

    def __next__(self) -> bytes:
        return next(self._events)["PayloadPart"]["Bytes"]


if __name__ == "__main__":
    main(*sys.argv[1:])
