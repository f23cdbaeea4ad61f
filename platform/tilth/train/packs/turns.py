"""Trials that take turns: each runs in a thread of its own, and only while the pack waits for it.

A Trainer's loop cannot be entered from outside. In a thread it can be held where it asks for the pass that all trials
share, and be let go on with the answer. One thread runs at a time, so nothing is concurrent; and of what a process
has only one, random numbers and Accelerate's state of gradients, every trial has its own.
"""

from __future__ import annotations

import ctypes
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

_STATES = (PartialState, AcceleratorState)
#: seconds in which a trial that is to end gets to where it can
GRACE = 5.0


class Turn:
    """One function that runs in turns. `resume` is the pack's side, `ask` the function's."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._asked: SimpleQueue[Any] = SimpleQueue()
        self._future: Future[Any] = Future()
        self._future.add_done_callback(self._asked.put)
        # a daemon: one that hangs is not waited for when this process ends
        self._thread = threading.Thread(target=self._perform, daemon=True, name="tilth-trial")

    def resume(self, answer: Any = None) -> Any:
        """Run on with `answer` until something is asked, which is returned; at the end a Future with the result."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._answers.put(answer)
        return self._asked.get()

    def ask(self, what: Any) -> Any:
        """Hold until the pack answers; an exception that it answers with is raised here."""
        kept = Streams.now()
        self._asked.put(what)
        answer = self._answers.get()
        kept.restore()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def halt(self, why: BaseException) -> None:
        """End it where it is held, and wait until it has; one that hangs is left alone, and ends once it goes on."""
        if self._thread.ident is None or self._future.done():
            return
        self._answers.put(why)
        if wait([self._future], GRACE).not_done:
            place, kind = ctypes.c_ulong(self._thread.ident), ctypes.py_object(type(why))
            ctypes.pythonapi.PyThreadState_SetAsyncExc(place, kind)
            wait([self._future], GRACE)

    def _perform(self) -> None:
        """Work; whatever ends it, an interrupt too, is raised by the Future, in the thread of who resumes it.

        Nothing may be let go by: the pack would wait for an answer for ever.
        """
        try:
            found = self._work()
        except BaseException as error:  # noqa: BLE001 - raised again where the Future is asked
            self._future.set_exception(error)
        else:
            self._future.set_result(found)


@dataclass(frozen=True)
class Streams:
    """Where the random numbers of this process are, and what Accelerate knows of it.

    The states of Accelerate are one for all Trainers of a process; the next Trainer that is made takes them down.
    """

    torch_state: torch.Tensor
    cuda_states: list[torch.Tensor]
    numpy_state: Any
    python_state: Any
    sync_gradients: bool
    shared: tuple[dict[str, Any], ...]

    @staticmethod
    def now() -> Streams:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        sync = GradientState().sync_gradients
        shared = tuple(dict(state._shared_state) for state in _STATES)
        return Streams(torch.get_rng_state(), cuda, np.random.get_state(), random.getstate(), sync, shared)

    def restore(self) -> None:
        torch.set_rng_state(self.torch_state)
        if self.cuda_states:
            torch.cuda.set_rng_state_all(self.cuda_states)
        np.random.set_state(self.numpy_state)
        random.setstate(self.python_state)
        for state, kept in zip(_STATES, self.shared, strict=True):
            state._shared_state.clear()
            state._shared_state.update(kept)
        GradientState()._set_sync_gradients(self.sync_gradients)
