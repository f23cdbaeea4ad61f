"""Renders Jinja templates in a process of its own, which ends rather than use more than it was given.

`tilth.generate.engines.confined` starts it as a script; it imports jinja2 and the standard library alone. Standard
input: a line with the limits and templates, then a line for each job. Standard output: `ready`, then a line for each
job, with the parts between "|||" or the fault. A template that cannot be stopped from within ends the process: the
job without an answer is the one to blame.

The form is that of promptsource (Bach et al. 2022, arXiv:2202.01279): the parts are stripped, "|||" within values
is no separator, `answer_choices` are rendered first, and there are `zip` and the filters `choice` and
`most_frequent`. Unlike there, a name that a row lacks is a fault, and random choices belong to the row.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jinja2 import StrictUndefined, TemplateError, UndefinedError, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

_BAR, _HIDDEN = "|||", "\ue000|\ue001|\ue000"


class _Late(Exception):  # noqa: N818 - ends a render from a signal handler, it leaves this script nowhere
    pass


class _TooLong(Exception):  # noqa: N818
    pass


def _late(*_: object) -> None:
    raise _Late


def _most_frequent(items: Sequence[Any]) -> list[Any] | None:
    """All items that are as frequent as the most frequent one."""
    counts = Counter(items).most_common()
    return [item for item, count in counts if count == counts[0][1]] or None


@pass_context  # else a choice among constants would be made once, when the template is compiled
def _choice(context: Context, items: Sequence[Any]) -> Any:
    return random.choice(items)


def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
    made.globals |= {"zip": zip, "enumerate": enumerate}
    made.filters |= {"choice": _choice, "most_frequent": _most_frequent}
    return made


class Renderer:
    """Renders jobs one after another within the limits of each."""

    def __init__(self, setting: dict[str, Any]) -> None:
        self.seconds, self.output = setting["seconds"], setting["characters"]
        self.sources: dict[str, dict[str, str | None]] = setting["templates"]
        self.environment = _environment()
        self.compiled: dict[str, Any] = {}

    def answer(self, job: dict[str, Any]) -> dict[str, Any]:
        """{parts, choices} of a job {template, values, seed}, or {fault}."""
        random.seed(job["seed"])
        signal.setitimer(signal.ITIMER_VIRTUAL, self.seconds)
        # nothing handles this one: it ends the process, also within a single endless operation
        signal.setitimer(signal.ITIMER_PROF, 2 * self.seconds + 1)
        try:
            return self._rendered(self.sources[job["template"]], _hidden(job["values"]))
        except _Late:
            return {"fault": f"runaway: not done after {self.seconds:g} s of CPU"}
        except _TooLong:
            return {"fault": f"runaway: more than {self.output:,} characters"}
        except MemoryError:
            return {"fault": "runaway: out of memory"}
        except RecursionError:
            return {"fault": "runaway: endless recursion"}
        except UndefinedError as error:
            return {"fault": f"missing: {error.message}"}
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            return {"fault": f"failed: {type(error).__name__}: {error}"}
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.setitimer(signal.ITIMER_PROF, 0)

    def _rendered(self, template: dict[str, str | None], values: dict[str, Any]) -> dict[str, Any]:
        given = template["answer_choices"]
        choices = self._parts(given, values) if given else values.get("answer_choices")
        parts = self._parts(template["jinja"] or "", {**values, "answer_choices": choices})
        return {"parts": parts, "choices": choices}

    def _parts(self, source: str, values: dict[str, Any]) -> list[str]:
        pieces, size = [], 0
        for piece in self._compiled(source).generate(values):
            size += len(piece)
            if size > self.output:
                raise _TooLong
            pieces.append(piece)
        return [part.replace(_HIDDEN, _BAR).strip() for part in "".join(pieces).split(_BAR)]

    def _compiled(self, source: str) -> Any:
        """Compiling computes what is constant, so it happens within the limits too."""
        if source not in self.compiled:
            self.compiled[source] = self.environment.from_string(source)
        return self.compiled[source]


def _hidden(value: Any) -> Any:
    """`value` with every separator in its texts written another way."""
    if isinstance(value, str):
        return value.replace(_BAR, _HIDDEN)
    if isinstance(value, dict):
        return {key: _hidden(item) for key, item in value.items()}
    return [_hidden(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    setting = json.loads(sys.stdin.buffer.readline())
    memory = setting["memory_mib"] << 20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.signal(signal.SIGVTALRM, _late)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who started it ends it, by closing its input
    renderer = Renderer(setting)
    sys.stdout.buffer.write(b"ready\n")
    sys.stdout.buffer.flush()
    for line in sys.stdin.buffer:
        answer = json.dumps(renderer.answer(json.loads(line)))
        sys.stdout.buffer.write(answer.encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
