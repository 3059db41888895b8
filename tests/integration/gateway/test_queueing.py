"""Late binding: one queue, the oldest first, and copies that come and go under load."""

from __future__ import annotations

import asyncio
import json
import socket

from .harness import (
    Client,
    Container,
    Received,
    Writer,
    answer,
    container,
    copy,
    gateway,
    routes,
    until,
)


class Gate:
    """A container's behaviour: holds every request until the test lets one go."""

    def __init__(self) -> None:
        self.open = asyncio.Semaphore(0)

    async def __call__(self, request: Received, writer: Writer) -> None:
        await self.open.acquire()
        await answer(writer, request.body)


async def arrived(model: Container) -> None:
    await asyncio.wait_for(model.arrived.acquire(), 5)


async def test_waiting_requests_start_in_the_order_in_which_they_came() -> None:
    gate = Gate()
    async with (
        container(gate) as model,
        gateway(routes(copy("1", model.port, max_concurrency=1))) as served,
    ):
        clients = [await Client.open(served) for _ in range(8)]
        group = next(iter(served.state.table.groups.values()))
        for number, client in enumerate(clients):
            client.send(str(number).encode())
            await until(lambda: len(group.waiting) >= number)  # noqa: B023 - awaited in its own turn
            if number == 0:
                await arrived(model)
        for _ in clients:
            gate.open.release()
        for number, client in enumerate(clients):
            assert (await client.receive()).body == str(number).encode()
        assert [r.body for r in model.received] == [str(n).encode() for n in range(8)]


async def test_a_full_queue_refuses_and_one_who_leaves_makes_room() -> None:
    gate = Gate()
    async with (
        container(gate) as model,
        gateway(routes(copy("1", model.port, max_concurrency=1), limit=1)) as served,
    ):
        first, second, third = [await Client.open(served) for _ in range(3)]
        group = next(iter(served.state.table.groups.values()))
        first.send(b"1")
        await arrived(model)
        second.send(b"2")
        await until(lambda: group.waiting)
        refused = await third.call(b"3")
        assert (refused.status, refused.headers["x-amzn-errortype"]) == (503, "ServiceUnavailable")
        second.close()
        await until(lambda: not group.waiting)
        third.send(b"3")
        gate.open.release()
        gate.open.release()
        assert (await first.receive()).body == b"1"
        assert (await third.receive()).body == b"3"
        assert [r.body for r in model.received] == [b"1", b"3"]


async def test_a_new_copy_takes_waiting_requests_at_once() -> None:
    gate = Gate()
    async with (
        container(gate) as busy,
        container() as fresh,
        gateway(routes(copy("1", busy.port, max_concurrency=1))) as served,
    ):
        first, second = await Client.open(served), await Client.open(served)
        first.send(b"1")
        await arrived(busy)
        second.send(b"2")
        group = next(iter(served.state.table.groups.values()))
        await until(lambda: group.waiting)
        served.apply(
            routes(
                copy("1", busy.port, max_concurrency=1),
                copy("2", fresh.port, max_concurrency=1),
                version=2,
            )
        )
        assert (await second.receive()).body == b"2"
        assert len(fresh.received) == 1
        gate.open.release()
        assert (await first.receive()).body == b"1"


async def test_requests_held_from_zero_are_all_answered_without_a_stampede() -> None:
    peak = now = 0

    async def behave(request: Received, writer: Writer) -> None:
        nonlocal peak, now
        now += 1
        peak = max(peak, now)
        await asyncio.sleep(0.01)
        now -= 1
        await answer(writer, request.body)

    async with container(behave) as model, gateway(routes(hold=True)) as served:
        clients = [await Client.open(served) for _ in range(60)]
        for number, client in enumerate(clients):
            client.send(str(number).encode())
        group = next(iter(served.state.table.groups.values()))
        await until(lambda: len(group.waiting) == 60)
        served.apply(routes(copy("1", model.port), hold=True, version=2))
        for number, client in enumerate(clients):
            found = await client.receive()
            assert found.body == str(number).encode()
            assert float(found.headers["x-zeropull-cold-start"]) >= 0
        assert peak <= 16
        assert "x-zeropull-cold-start" not in (await clients[0].call(b"x")).headers


async def test_a_request_held_too_long_is_told_to_come_again() -> None:
    async with gateway(routes(hold=True), hold_timeout_s=0.2) as served:
        found = await (await Client.open(served)).call(b"x")
        assert (found.status, found.headers["x-amzn-errortype"]) == (429, "ModelNotReadyException")
        readings = served.take_readings()
        assert not [r for r in readings if r.copy_id]


async def test_without_copies_and_without_holding_the_answer_comes_at_once() -> None:
    async with gateway(routes()) as served:
        found = await (await Client.open(served)).call(b"x")
        assert found.status == 503
        assert "no healthy copy" in json.loads(found.body)["Message"]


async def test_a_draining_copy_finishes_its_requests_and_gets_no_new_one() -> None:
    gate = Gate()
    async with (
        container(gate) as old,
        container() as new,
        gateway(routes(copy("1", old.port))) as served,
    ):
        first, second = await Client.open(served), await Client.open(served)
        first.send(b"1")
        await arrived(old)
        served.apply(routes(copy("1", old.port, draining=True), copy("2", new.port), version=2))
        for _ in range(20):
            assert (await second.call(b"2")).status == 200
        served.apply(routes(copy("2", new.port), version=3))
        gate.open.release()
        assert (await first.receive()).body == b"1"
        assert (len(old.received), len(new.received)) == (1, 20)
        served.take_readings()
        assert set(served.state.table.targets) == {"2"}


async def test_a_copy_that_refuses_connections_costs_no_request() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        dead = reserved.getsockname()[1]
        async with (
            container() as model,
            gateway(routes(copy("1", dead), copy("2", model.port))) as served,
        ):
            client = await Client.open(served)
            for _ in range(50):
                assert (await client.call(b"x")).status == 200
            assert len(model.received) == 50
            served.apply(routes(copy("1", dead), version=2))
            found = await client.call(b"x")
            assert found.status == 424
            assert json.loads(found.body)["OriginalStatusCode"] == 0


async def test_a_deleted_endpoints_waiting_requests_are_answered() -> None:
    async with gateway(routes(hold=True)) as served:
        client = await Client.open(served)
        client.send(b"x")
        group = next(iter(served.state.table.groups.values()))
        await until(lambda: group.waiting)
        served.apply(type(routes())(2))
        assert (await client.receive()).status == 400
