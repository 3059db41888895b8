"""What the control plane keeps of gateways that come and go."""

from __future__ import annotations

from zeropull.controlapi.exchange import GATEWAY_REMEMBERED_S, Exchange
from zeropull.controlapi.messages import CopyReading, GatewayReport

READING = CopyReading("1", "e", "v", "c", "i", None, 5, 1, 0, 0.5)


def test_a_gateway_that_leaves_is_forgotten_and_its_last_readings_are_kept() -> None:
    exchange = Exchange()
    exchange.take_gateway_report(GatewayReport("old", 1, 1.0, in_flight={"c": 1}), 1.0)
    exchange.take_gateway_report(GatewayReport("new", 2, 1.0), 1.0)
    exchange.reported.clear()
    last = GatewayReport("old", 1, 2.0, readings=(READING,), leaving=True)
    exchange.take_gateway_report(last, 2.0)
    assert set(exchange.gateways) == {"new"}
    assert exchange.take_readings() == [READING]
    assert exchange.reported.is_set(), "an old version of routes holds nobody up any more"


def test_gateways_that_were_killed_do_not_add_up() -> None:
    exchange = Exchange()
    for number in range(3):
        exchange.take_gateway_report(GatewayReport(f"g{number}", 1, 1.0), number)
    exchange.take_gateway_report(GatewayReport("last", 1, 1.0), GATEWAY_REMEMBERED_S + 1.5)
    assert set(exchange.gateways) == {"g2", "last"}
