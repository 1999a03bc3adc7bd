"""A `run` of a consumer in a task of its own, for tests."""

import asyncio

SOON = 40.0


class Running:
    """A `run` in a separate task; fails the test as soon as it fails."""

    def __init__(self, consumer, handler, **options):
        self.task = asyncio.create_task(consumer.run(handler, **options), name="run of the test")

    async def until(self, condition):
        async with asyncio.timeout(SOON):
            while not condition():
                if self.task.done():
                    self.task.result()
                    raise AssertionError("run() ended")
                await asyncio.sleep(0.01)
