"""vLLM's engine and its life: started quietly, shared by config, restarted when it dies, gone with its worker."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import multiprocessing.resource_tracker
import os
import secrets
import tempfile
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tilth import ui
from tilth.errors import ModelError, StageError, TilthError
from tilth.generate.engines.loop import Loop
from tilth.generate.engines.warden import Warden
from tilth.generate.engines.why import last_error, start_error

Arguments = dict[str, Any]
#: between two looks at whether an engine still lives
POLL_SECONDS = 1.0
# engines of this process by their arguments, for as long as someone uses them
_shared: weakref.WeakValueDictionary[str, Engine] = weakref.WeakValueDictionary()
_sharing = threading.Lock()


def import_quietly() -> None:
    """Import vLLM, which otherwise logs to standard output from then on. ModelError where there is none."""
    with _environment({"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}):
        # what it logs while it is being imported comes before its own settings
        logging.getLogger("vllm").setLevel(logging.ERROR)
        try:
            import vllm  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModelError("`kind: vllm` needs vLLM: install tilth[gpu] or tilth[cpu], or use `kind: hf`") from error


def shared_engine(arguments: Arguments, restarts: int) -> Engine:
    """The engine with these arguments of `vllm.AsyncEngineArgs`, started if this process has none."""
    key = json.dumps(arguments, sort_keys=True)
    with _sharing:
        engine = _shared.get(key)
        if engine is None:
            engine = Engine(arguments, restarts)
            _shared[key] = engine
        return engine


class Engine:
    """One engine, asked from several threads. ModelError where it cannot start."""

    def __init__(self, arguments: Arguments, restarts: int) -> None:
        self.arguments, self.restarts = arguments, restarts
        self.loop = Loop("tilth-vllm")
        self.life = Life()
        self._finalizer = weakref.finalize(self, _end, self.loop, self.life)
        self._numbers = itertools.count()
        self._restarting = asyncio.Lock()
        #: why no engine came after one that died: for all who ask from then on
        self._gone: TilthError | None = None
        self._adapters: dict[str, int] = {}
        self.loop.run(_started(self.life, arguments))

    def adapter(self, folder: Path | None) -> Any:
        """vLLM's request for an adapter, None for none."""
        if folder is None:
            return None
        from vllm.lora.request import LoRARequest

        number = self._adapters.setdefault(str(folder), len(self._adapters) + 1)
        return LoRARequest(f"adapter-{number}", number, str(folder))

    async def ask(self, ids: list[int], params: Any, adapter: Any) -> Any:
        """vLLM's final output for a prompt, asked again of a new engine should this one die.

        ValueError where vLLM refuses the prompt, StageError where engines keep dying, ModelError where a new one does
        not start: then all who ask are told the same.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        while True:
            if self._gone is not None:
                raise type(self._gone)(str(self._gone)) from self._gone.__cause__
            asked = self.life.engine
            try:
                return await self._once(asked, ids, params, adapter)
            except EngineDeadError:
                async with self._restarting:
                    if self._gone is None and self.life.engine is asked:
                        self._restart()

    async def told(self, call: Callable[[Any], Coroutine[Any, Any, None]]) -> bool:
        """Whether the engine did what is no prompt. A dead one does nothing: whoever asks next gets a new one."""
        from vllm.v1.engine.exceptions import EngineDeadError

        engine = self.life.engine
        if engine is None:
            return False
        doing = asyncio.create_task(call(engine))
        # vLLM never answers such a call that was under way when its engine died
        while not doing.done() and not engine.errored:
            await asyncio.wait({doing}, timeout=POLL_SECONDS)
        if not doing.done():
            doing.cancel()
            return False
        try:
            await doing
        except EngineDeadError:
            return False
        return True

    async def _once(self, engine: Any, ids: list[int], params: Any, adapter: Any) -> Any:
        number = str(next(self._numbers))
        outputs: AsyncGenerator[Any, None] = engine.generate(_prompt(ids), params, number, lora_request=adapter)
        final = None
        async for output in outputs:
            final = output
        return final

    def _restart(self) -> None:
        """A new engine in place of the dead one, or why there is none; nothing else runs in the loop meanwhile."""
        why = self.life.why_dead()
        self.life.end()
        if self.restarts == 0:
            self._gone = StageError(f"vLLM's engine died and may not be started again (engine.restarts): {why}")
            return
        ui.reporter().say(f"vLLM's engine died and is started again: {why}")
        self.restarts -= 1
        try:
            self.life.start(self.arguments)
        except TilthError as error:
            self._gone = error


@dataclass
class Life:
    """What lives from a start of vLLM to its end: its processes, their warden, what they say."""

    engine: Any = None
    warden: Warden | None = None
    folder: tempfile.TemporaryDirectory[str] | None = None
    _ended: bool = field(default=False)

    def start(self, arguments: Arguments) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="tilth-vllm-")
        self.warden = Warden.over(f"tilth-engine-{secrets.token_hex(8)}")
        # python's own helper process must not carry the mark: it lives as long as this process
        multiprocessing.resource_tracker.ensure_running()
        try:
            with _environment({**_quiet(Path(self.folder.name)), **self.warden.environment}):
                from vllm.engine.arg_utils import AsyncEngineArgs
                from vllm.usage.usage_lib import UsageContext
                from vllm.v1.engine.async_llm import AsyncLLM

                # as `vllm.LLM` does, for much at once: else 128 sequences are decoded at a time, whatever the GPU
                args, much = AsyncEngineArgs(**arguments), UsageContext.LLM_CLASS
                self.engine = AsyncLLM.from_engine_args(args, usage_context=much)
        except (RuntimeError, ValueError, OSError, AssertionError) as error:
            why = start_error(error, self.said(), arguments)
            self.end()
            raise ModelError(why) from error
        finally:
            # in this process vLLM repeats what its own processes say, to a file that goes with them
            logging.getLogger("vllm").handlers = [logging.NullHandler()]

    def said(self) -> str:
        """The errors that vLLM logged."""
        if self.folder is None:
            return ""
        file = Path(self.folder.name) / "errors.log"
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""

    def why_dead(self) -> str:
        return last_error(self.said()) or "it said nothing (killed, as for want of memory)"

    def end(self) -> None:
        if self.engine is not None:
            self.engine.shutdown(timeout=5)
            self.engine = None
        if self.warden is not None:
            self.warden.dismiss()
            self.warden = None
        if self.folder is not None:
            self.folder.cleanup()
            self.folder = None


def _end(loop: Loop, life: Life) -> None:
    loop.close(_ended(life))


async def _started(life: Life, arguments: Arguments) -> None:
    # vLLM keeps the frame that starts it: that must not hold the `Engine`, which ends when nobody uses it
    life.start(arguments)


async def _ended(life: Life) -> None:
    life.end()


def _prompt(ids: list[int]) -> Any:
    """Tokens in vLLM's own form: in any other it would look for something to tokenize, in a thread."""
    return {"type": "token", "prompt_token_ids": ids}


def _quiet(folder: Path) -> dict[str, str]:
    """Variables under which vLLM writes nothing but errors, and these to a file; it knows no argument for it."""
    from vllm.platforms import current_platform

    handler = {"class": "logging.FileHandler", "filename": str(folder / "errors.log"), "level": "ERROR", "delay": True}
    logger = {"handlers": ["file"], "level": "ERROR", "propagate": False}
    config = {
        "version": 1, "disable_existing_loggers": False, "handlers": {"file": handler}, "loggers": {"vllm": logger}
    }  # fmt: skip
    (folder / "logging.json").write_text(json.dumps(config), encoding="utf-8")
    quiet = {"VLLM_LOGGING_CONFIG_PATH": str(folder / "logging.json"), "VLLM_NO_USAGE_STATS": "1"}
    quiet |= {"PYTHONWARNINGS": "ignore", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    # a fork of a process with threads may hang, and its environment would not show the warden's mark
    quiet["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    if current_platform.is_cpu() and "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS" not in os.environ:
        # a step of long prompts on a busy CPU takes longer than the five minutes after which vLLM thinks itself dead
        quiet["VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"] = "3600"
    # by itself vLLM leaves out a core and binds threads to the others, to the same ones in every worker of a machine
    if current_platform.is_cpu() and "VLLM_CPU_OMP_THREADS_BIND" not in os.environ:
        cores = str(len(os.sched_getaffinity(0)))
        quiet |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", cores)}
    return quiet


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Within: these environment variables; vLLM changes more of them, which are put back too."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
