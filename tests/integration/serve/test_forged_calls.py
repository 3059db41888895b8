"""Forged calls to a real `zeropull serve`, through its client port: no fault, no insides."""

from __future__ import annotations

from pathlib import Path

from tests.fixtures.forged_calls import Forger, Sender, wrong_answers
from tests.integration.serve.served import running_serve

CALLS = 1500
# What these start would ask registries that the calls name.
STARTING = ("CreateEndpoint", "UpdateEndpoint")


def test_forged_calls_to_the_client_port_are_refused_or_answered(tmp_path: Path) -> None:
    with running_serve(tmp_path) as served:
        credentials = served.sagemaker._request_signer._credentials  # of unmodified boto3
        sender = Sender(
            served.variables["AWS_ENDPOINT_URL_SAGEMAKER"],
            credentials.access_key,
            credentials.secret_key,
            served.variables["AWS_DEFAULT_REGION"],
        )
        try:
            assert wrong_answers(Forger(7, without=STARTING), sender, CALLS) == []
        finally:
            sender.close()
        assert served.is_alive()
        assert served.sagemaker.list_endpoints()["Endpoints"] == []
        assert "Traceback" not in served.log()
