"""A small process that ends an engine's processes once the process which started them is gone, however it went.

vLLM's own children outlive a parent that was killed: they hold its GPU for ever.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

# Run without the site packages. Reads until the parent's end of the pipe is closed, which the kernel does for a
# parent that was killed too. An engine's process is known by the mark in its title, or before it has set one by the
# mark in its environment; a child that inherited the mark by chance is not of multiprocessing.
_SCRIPT = """
import os, sys, time
mark = sys.argv[1].encode()
def read(pid, name):
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""
def marked(pid):
    title = read(pid, "cmdline")
    return title.startswith(mark) or (b"multiprocessing" in title and mark in read(pid, "environ"))
sys.stdin.buffer.read()
for _ in range(5):  # one that is just being started shows up a moment later
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) != os.getpid() and marked(pid):
            try:
                os.kill(int(pid), 9)
            except OSError:
                pass
    time.sleep(0.2)
"""


@dataclass(frozen=True)
class Warden:
    """Watches over the processes that carry `mark`, see `environment`."""

    mark: str
    process: subprocess.Popen[bytes]

    @staticmethod
    def over(mark: str) -> Warden:
        """A warden for processes that are about to be started; where there is no /proc it does nothing."""
        # of its own session: what is sent to the terminal's group must not end it before its charges
        command = [sys.executable, "-I", "-S", "-c", _SCRIPT, mark]
        silent = subprocess.DEVNULL
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=silent, stderr=silent, env={}, start_new_session=True
        )
        return Warden(mark, process)

    @property
    def environment(self) -> dict[str, str]:
        """Variables that mark the processes started under them."""
        return {"TILTH_ENGINE": self.mark, "VLLM_PROCESS_NAME_PREFIX": self.mark}

    def dismiss(self) -> None:
        """End what is left of the engine; returns when it is gone."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()
