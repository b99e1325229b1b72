import asyncio
import threading

from dlsr.serve.batching import Batcher


def batched(function, calls, **options):
    async def run():
        batcher = Batcher(function, **{"max_batch": 4, "max_wait": 0.02} | options)
        batcher.start()
        try:
            return await calls(batcher)
        finally:
            await batcher.stop()

    return asyncio.run(run())


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def test_callers_get_their_own_outputs_and_share_batches():
    sizes = []

    def double(items):
        sizes.append(len(items))
        return [2 * item for item in items]

    async def calls(batcher):
        return await asyncio.gather(*(batcher.submit([i, i + 100]) for i in range(10)))

    assert batched(double, calls) == [[2 * i, 2 * i + 200] for i in range(10)]
    assert sum(sizes) == 20
    assert max(sizes) == 4


def test_the_items_of_a_caller_stay_in_one_batch():
    batches = []

    def function(items):
        batches.append(list(items))
        return items

    async def calls(batcher):
        return await asyncio.gather(batcher.submit([1, 2, 3]), batcher.submit([4, 5]), batcher.submit(list(range(9))))

    batched(function, calls)
    assert sorted(batches) == [list(range(9)), [1, 2, 3], [4, 5]]


def test_a_failure_reaches_the_callers_in_the_batch_and_no_others():
    def function(items):
        if 13 in items:
            raise ValueError("unlucky")
        return items

    async def calls(batcher):
        return await asyncio.gather(*(batcher.submit([i]) for i in range(12, 16)), return_exceptions=True)

    found = batched(function, calls, max_batch=1)
    assert isinstance(found[1], ValueError)
    assert [found[i] for i in (0, 2, 3)] == [[12], [14], [15]]


def test_items_of_a_cancelled_caller_are_not_processed():
    go, started, finished = threading.Event(), [], []

    def function(items):
        started.extend(items)
        go.wait(60)
        finished.extend(items)
        return items

    async def calls(batcher):
        first = [asyncio.create_task(batcher.submit([i])) for i in (1, 2)]
        await until(lambda: len(started) == 2)
        cancelled, kept = asyncio.create_task(batcher.submit([3])), asyncio.create_task(batcher.submit([4]))
        await until(lambda: batcher.waiting == 2)
        cancelled.cancel()
        go.set()
        return [await task for task in (*first, kept)]

    assert batched(function, calls, max_batch=1) == [[1], [2], [4]]
    assert sorted(finished) == [1, 2, 4]


def test_stopping_cancels_the_queue():
    go = threading.Event()

    async def run():
        batcher = Batcher(lambda items: go.wait(60) and items, max_batch=1, max_wait=0)
        batcher.start()
        tasks = [asyncio.create_task(batcher.submit([i])) for i in range(4)]
        await until(lambda: batcher.waiting == 2)
        asyncio.get_running_loop().call_later(0.01, go.set)
        await batcher.stop()
        return await asyncio.gather(*tasks, return_exceptions=True)

    done = asyncio.run(run())
    assert done[:2] == [[0], [1]]
    assert all(isinstance(result, asyncio.CancelledError) for result in done[2:])
