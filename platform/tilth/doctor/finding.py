"""One thing that the doctor looked at."""

from __future__ import annotations

from dataclasses import dataclass, replace

OK, WARNING, FAULT = "ok", "warning", "fault"


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, and where it is not well the mend; `node` is empty for this machine."""

    about: str
    state: str
    what: str
    mend: str = ""
    node: str = ""

    def text(self) -> str:
        where = f"{self.node}: " if self.node else ""
        return f"{where}{self.about}: {self.what}" + (f"; {self.mend}" if self.mend else "")

    def on(self, node: str) -> Finding:
        return replace(self, node=node)
