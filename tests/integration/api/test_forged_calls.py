"""Thousands of forged calls over all protocols: none is a server's fault or shows its insides."""

from __future__ import annotations

import pytest

from tests.fixtures.aws_api import REGION
from tests.fixtures.forged_calls import Forger, Sender, wrong_answers
from tests.integration.api.scaling_clients import Clients

CALLS = 1000  # of each seed: some five seconds


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_forged_calls_are_refused_or_answered(clients: Clients, seed: int) -> None:
    """There is an endpoint in service, with a scalable target and a policy to get at."""
    clients.register()
    clients.put_policy()
    key = clients.served.key
    sender = Sender(clients.served.url, key.access_key_id, key.secret_access_key, REGION)
    try:
        assert wrong_answers(Forger(seed), sender, CALLS) == []
    finally:
        sender.close()
    assert clients.sagemaker.list_models() is not None
