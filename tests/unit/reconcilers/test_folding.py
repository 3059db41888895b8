"""Reports of gateways become one view of them."""

from __future__ import annotations

from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.messages import GatewayReport, Routes
from zeropull.reconcilers.endpoint_view import Gateways
from zeropull.reconcilers.folding import fold_gateways

ONE, TWO = ("0", "one"), ("0", "two")
SILENT_S = 10.0


class Gates:
    """An exchange with routes of growing versions, on a clock of the test's."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.exchange = Exchange(lambda: self.now_s)
        self.versions = [
            self.exchange.publish_routes(Routes(0, region=f"r-{n}"), 1.0) for n in range(3)
        ]

    def report(self, name: str, version: int, epoch: str | None = None) -> None:
        given = self.exchange.epoch if epoch is None else epoch
        report = GatewayReport(name, version, 0.0, routes_epoch=given)
        self.exchange.take_gateway_report(report, self.now_s)

    def fold(self) -> Gateways:
        first, _, newest = self.versions
        since = {ONE: first, TWO: newest}
        return fold_gateways(self.exchange, since, self.now_s, SILENT_S)


def test_without_a_gateway_nothing_is_served() -> None:
    gateways = Gates().fold()
    assert not gateways.up
    assert gateways.serving == frozenset()


def test_an_endpoint_is_served_once_every_gateway_has_the_routes_that_say_so() -> None:
    gates = Gates()
    gates.report("a", gates.versions[2])
    assert gates.fold().serving == {ONE, TWO}
    gates.report("b", gates.versions[1])
    gateways = gates.fold()
    assert gateways.serving == {ONE}
    assert not gateways.acknowledged
    gates.now_s += SILENT_S + 1
    gates.report("a", gates.versions[2])
    assert gates.fold().serving == {ONE, TWO}, "the other one has not been heard of for too long"


def test_routes_of_an_earlier_control_plane_say_nothing() -> None:
    gates = Gates()
    gates.report("a", gates.versions[2] + 1000, epoch="another")
    gateways = gates.fold()
    assert gateways.up
    assert not gateways.acknowledged
    assert gateways.serving == frozenset()
