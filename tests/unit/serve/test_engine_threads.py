"""Several threads compute batches from one queue."""

import asyncio
import time

import torch
from gated import Gated, busy, noise

from caption_ray.serve.batching import BatchOptions
from caption_ray.serve.engine import BatchRecord, Engine


def wait_until_idle(engine: Engine) -> None:
    deadline = time.monotonic() + 5
    while engine._load.computing:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_only_a_batch_that_leaves_the_others_nothing_is_shared_by_all(gated: Gated) -> None:
    """torch's setting holds for the calling thread alone, and is left as it was for all others."""
    found: list[int] = []
    before = torch.get_num_threads()
    engine = Engine(gated, BatchOptions(num_threads=3), lambda _: found.append(torch.get_num_threads()))
    wait_until_idle(engine)

    async def ask() -> None:
        async with busy(engine, gated):
            second = asyncio.create_task(engine.caption([noise(1)], 1))
            assert await asyncio.to_thread(lambda: gated.inside.acquire(timeout=30))  # the first's
            assert await asyncio.to_thread(lambda: gated.inside.acquire(timeout=30))
        await second

    asyncio.run(ask())
    engine.close()
    assert sorted(found) == [1, 3]
    assert torch.get_num_threads() == before


def drawn_together(engine: Engine, gated: Gated, records: list[BatchRecord], num_pictures: int) -> list[int]:
    """Return the sizes of the batches that pictures are shared into that all come at once, largest first."""
    wait_until_idle(engine)
    del records[:]
    gated.gate.clear()

    async def ask() -> None:
        asked = asyncio.create_task(engine.caption([noise(seed) for seed in range(num_pictures)], 1))
        await asyncio.sleep(0.01)
        while engine._waiting:  # until then no batch ends, whose thread would take part again
            await asyncio.sleep(0.01)
        gated.gate.set()
        await asked

    asyncio.run(ask())
    return sorted((len(record.answers) for record in records), reverse=True)


def test_idle_threads_share_what_waits(gated: Gated, records: list[BatchRecord]) -> None:
    engine = Engine(gated, BatchOptions(max_batch_size=8, num_threads=2), records.append)
    try:
        assert drawn_together(engine, gated, records, num_pictures=7) == [4, 3]
    finally:
        engine.close()


def test_threads_compute_at_the_same_time(gated: Gated, records: list[BatchRecord]) -> None:
    engine = Engine(gated, BatchOptions(max_batch_size=1, num_threads=2), records.append)

    async def ask() -> None:
        async with busy(engine, gated):
            assert await asyncio.to_thread(lambda: gated.inside.acquire(timeout=30))
            second = asyncio.create_task(engine.caption([noise(1)], None))
            # It gets as far as the gate, at which the first still is.
            assert await asyncio.to_thread(lambda: gated.inside.acquire(timeout=30))
        await second

    asyncio.run(ask())
    engine.close()
    assert [len(record.answers) for record in records] == [1, 1]


def test_number_of_threads_changes_while_it_runs(gated: Gated, records: list[BatchRecord]) -> None:
    engine = Engine(gated, BatchOptions(num_threads=1), records.append)
    try:
        for num_threads, sizes in ((2, [2, 2]), (1, [4]), (3, [2, 1, 1])):
            engine.options = BatchOptions(num_threads=num_threads)
            assert drawn_together(engine, gated, records, num_pictures=4) == sizes
    finally:
        engine.close()


def test_those_answered_together_are_computed_together_again(gated: Gated, records: list[BatchRecord]) -> None:
    """Not the first to ask again by itself, and the others together."""
    engine = Engine(gated, BatchOptions(num_threads=1, return_wait_s=0.4), records.append)

    async def client(delay_s: float) -> None:
        await engine.caption([noise(1)], None)
        await asyncio.sleep(delay_s)
        await engine.caption([noise(2)], None)

    async def ask() -> None:
        async with busy(engine, gated):
            clients = [asyncio.create_task(client(delay_s)) for delay_s in (0.01, 0.05, 0.1)]
            await asyncio.sleep(0.1)
        await asyncio.gather(*clients)

    asyncio.run(ask())
    engine.close()
    assert [len(record.answers) for record in records] == [1, 3, 3]
