"""Which copy gets a request, over which connection, and what a slow client costs the others."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from zeropull.awsprotocol.event_stream import EventDecoder
from zeropull.controlapi.messages import EndpointRoute, Routes, VariantRoute

from .harness import KEY, Client, Received, Writer, answer, container, copy, gateway, routes, until

HEAD = b"POST /endpoints/e/invocations HTTP/1.1\r\nHost: h\r\n"


async def never(request: Received, writer: Writer) -> None:
    await asyncio.Event().wait()


async def test_the_copy_with_the_fewest_requests_in_flight_gets_the_next() -> None:
    async with AsyncExitStack() as stack:
        models = [await stack.enter_async_context(container(never)) for _ in range(3)]
        targets = [copy(str(number), model.port) for number, model in enumerate(models)]
        served = await stack.enter_async_context(gateway(routes(*targets)))
        for each in range(1, 5):
            for _ in models:
                client = await Client.open(served)
                client.send(b"x")
                await until(lambda: served.in_flight > sum(len(m.received) for m in models) - 1)
                stack.callback(client.close)
            await until(lambda: all(len(m.received) == each for m in models))  # noqa: B023


async def test_random_routing_uses_every_copy_whatever_it_has_in_flight() -> None:
    async with (
        container() as first,
        container() as second,
        gateway(routes(copy("1", first.port), copy("2", second.port), strategy="RANDOM")) as served,
    ):
        busy = served.state.table.targets["1"].meter
        for _ in range(50):
            busy.begin(served.state.clock())
        client = await Client.open(served)
        for _ in range(200):
            assert (await client.call(b"x")).status == 200
        assert min(len(first.received), len(second.received)) > 50
        for _ in range(50):
            busy.end(served.state.clock())


async def test_a_head_that_is_known_goes_where_the_routes_in_force_say() -> None:
    async with (
        container() as first,
        container() as second,
        gateway(routes(copy("1", first.port))) as served,
    ):
        client = await Client.open(served)
        for _ in range(3):
            assert (await client.call(b"x")).status == 200
        served.apply(routes(copy("2", second.port), version=2))
        assert (await client.call(b"x")).status == 200
        assert (len(first.received), len(second.received)) == (3, 1)
        served.apply(Routes(3))
        assert (await client.call(b"x")).headers["x-amzn-errortype"] == "ValidationError"
        served.apply(routes(version=4))
        assert (await client.call(b"x")).status == 503
        served.apply(routes(copy("1", first.port), version=5))
        assert (await client.call(b"x")).status == 200


async def test_a_head_that_is_known_is_shared_out_by_weight_each_time() -> None:
    async with container() as first, container() as second:
        variants = tuple(
            VariantRoute(name, weight=1.0, targets=(copy(name, model.port),))
            for name, model in (("a", first), ("b", second))
        )
        route = EndpointRoute("e", KEY.account, "InService", variants=variants)
        async with gateway(Routes(1, keys=(KEY,), endpoints=(route,))) as served:
            client = await Client.open(served)
            for _ in range(200):
                assert (await client.call(b"x")).status == 200
            assert min(len(first.received), len(second.received)) > 50
            named = "X-Amzn-SageMaker-Target-Variant: b\r\n"
            before = len(second.received)
            for _ in range(20):
                assert (await client.call(b"x", headers=named)).status == 200
            assert len(second.received) == before + 20


async def test_connections_are_kept_on_both_sides() -> None:
    async with container() as model, gateway(routes(copy("1", model.port))) as served:
        client = await Client.open(served)
        for number in range(100):
            assert (await client.call(str(number).encode())).status == 200
        assert model.connections == 1
        assert len(served.state.clients.open) == 1
        other = await Client.open(served)
        assert (await other.call(b"x")).status == 200  # takes over what the first has left
        assert model.connections == 1


async def test_nothing_is_waited_for_from_an_address_that_a_copy_has_left() -> None:
    """Its node got another network: what is sent to the address before is never answered."""

    async def slow(request: Received, writer: Writer) -> None:
        if request.body == b"slow":
            await asyncio.Event().wait()
        await answer(writer, b"old")

    async def plain(request: Received, writer: Writer) -> None:
        await answer(writer, b"new")

    async with (
        container(slow) as old,
        container(plain) as new,
        gateway(routes(copy("1", old.port))) as served,
    ):
        idle, busy = await Client.open(served), await Client.open(served)
        busy.send(b"slow")
        await asyncio.wait_for(old.arrived.acquire(), 5)
        assert (await idle.call(b"x")).body == b"old"
        served.apply(routes(copy("1", new.port), version=2))
        assert (await busy.receive()).headers["x-amzn-errortype"] == "ModelError"
        for client in (idle, busy):
            assert (await client.call(b"x")).body == b"new"
        assert (old.connections, new.connections) == (2, 1)


async def test_a_client_that_sends_slowly_takes_no_slot() -> None:
    async with (
        container() as model,
        gateway(routes(copy("1", model.port, max_concurrency=1))) as served,
    ):
        slow, quick = await Client.open(served), await Client.open(served)
        slow.writer.write(HEAD + b"Content-Length: 1000\r\n\r\n" + b"x" * 500)
        await until(lambda: served.state.bodies.used_bytes == 500)
        for _ in range(50):
            assert (await quick.call(b"x")).status == 200
        slow.writer.write(b"y" * 500)
        assert (await slow.receive()).body == b"x" * 500 + b"y" * 500
        assert len(model.received) == 51


async def test_a_client_that_leaves_a_stream_cancels_the_containers_work() -> None:
    async def behave(request: Received, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await asyncio.Event().wait()

    async with container(behave) as model, gateway(routes(copy("1", model.port))) as served:
        client = await Client.open(served)
        client.send(b"x", operation="invocations-response-stream")
        await client.reader.readuntil(b"a")
        client.close()
        await asyncio.wait_for(model.gone.wait(), 5)
        assert served.in_flight == 0
        assert served.state.table.targets["1"].meter.in_flight == 0


async def test_a_stream_of_a_draining_copy_goes_on_to_its_end() -> None:
    gate = asyncio.Event()

    async def behave(request: Received, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await gate.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

    async def plain(request: Received, writer: Writer) -> None:
        await answer(writer, b"new")

    async with (
        container(behave) as old,
        container(plain) as new,
        gateway(routes(copy("1", old.port))) as served,
    ):
        client = await Client.open(served)
        client.send(b"x", operation="invocations-response-stream")
        await asyncio.wait_for(old.arrived.acquire(), 5)
        served.apply(routes(copy("1", old.port, draining=True), copy("2", new.port), version=2))
        served.apply(routes(copy("2", new.port), version=3))
        assert (await (await Client.open(served)).call(b"y")).body == b"new"
        gate.set()
        events = EventDecoder().feed((await client.receive()).body)
        assert b"".join(event.payload for event in events) == b"onetwo"
