"""An event loop in a thread of its own, for engines that are asked from several threads at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Loop:
    """Runs coroutines for other threads until it is closed."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`; it is cancelled where whoever waits for it is interrupted."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self, last: Coroutine[Any, Any, Any] | None = None) -> None:
        """Cancel what still runs, do what is `last`, end the thread.

        The thread itself may drop the last reference to what owns the loop; it cannot wait for its own end.
        """
        if threading.current_thread() is self._thread:
            self._loop.create_task(self._end(last))
            return
        asyncio.run_coroutine_threadsafe(self._end(last), self._loop)
        self._thread.join()
        self._loop.close()

    async def _end(self, last: Coroutine[Any, Any, Any] | None) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if last is not None:
            await last
        self._loop.stop()
