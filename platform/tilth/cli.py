"""The command line: check, plan, run, show, annotate; submit, jobs, doctor. A file and dotted overrides say the rest.

Exit codes: 0 done, 1 failed, 2 bad recipe, 124 a job's time limit, 130 a job stopped or left running.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tilth import ui
from tilth.errors import RecipeError, StageError, TilthError

#: of a traceback, the last so many calls
FRAMES = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parsed(argv)
    if "" not in sys.path:
        sys.path.insert(0, "")  # components of the user's own, as "my_module:MyAugmenter", lie where they work
    ui.use(ui.Reporter("json" if options.json and options.command in ("run", "submit", "jobs") else "auto"))
    try:
        code = _answer(options)
        sys.stdout.flush()
    except BrokenPipeError:  # `tilth show RUN | head`: who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _answer(options: argparse.Namespace) -> int:
    try:
        result = _COMMANDS[options.command](options)
    except RecipeError as error:
        _fail(options, {"problems": [vars(problem) for problem in error.problems]}, str(error))
        return error.exit_code
    except TilthError as error:
        text = f"{type(error).__name__}: {error}{_cause(error)}"
        _fail(options, {"error": str(error), "type": type(error).__name__}, text)
        return error.exit_code
    except BrokenPipeError:
        raise
    except OSError as error:  # a file, disk or network that fails is no fault of the code
        _fail(options, {"error": str(error), "type": type(error).__name__}, f"{type(error).__name__}: {error}")
        return 1
    except (KeyboardInterrupt, SystemExit):  # Ray Train answers Ctrl-C with exit(0), as if all were done
        ui.reporter().say("stopped; what is finished stays, the same command goes on from there")
        return 1
    except Exception as error:
        if options.json:
            print(json.dumps({"error": str(error), "type": type(error).__name__}))
        raise
    if isinstance(result, int):  # the command has said what there is to say, and this is how it ended
        return result
    if options.json:
        print(json.dumps(result, indent=None if options.command in ("run", "submit") else 1, default=str))
    return 0


def _cause(error: TilthError) -> str:
    """Where a stage's error came from, for the author of the component that raised it."""
    if not isinstance(error, StageError) or error.__cause__ is None:
        return ""
    return "\n" + "".join(traceback.format_exception(error.__cause__, limit=-FRAMES, chain=False)).rstrip()


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options, with overrides anywhere on the line: argparse alone takes them only right behind the recipe."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(options, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if hasattr(options, "overrides"):
        subject = "spec" if options.command == "submit" else "recipe"
        file = getattr(options, subject)
        words = [file, *options.overrides, *rest]
        if not Path(file).exists():  # an override may stand before the file
            file = next((word for word in words if "=" not in word), words[0])
        words.remove(file)
        setattr(options, subject, file)
        options.overrides = words
    return options


def _fail(options: argparse.Namespace, data: dict[str, Any], text: str) -> None:
    if options.json:
        print(json.dumps(data))
    else:
        ui.reporter().say(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tilth", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, about: str, subject: str, where: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.add_argument(subject.lower(), metavar=subject, help=where)
        sub.add_argument("--json", action="store_true", help="answer in JSON on stdout")
        return sub

    recipe = "a recipe file (YAML)"
    for name, about in (
        ("check", "Find every fault of a recipe in milliseconds; starts nothing."),
        ("plan", "Show what a run would do: stages, rows, estimated cost, what is reused and why."),
        ("run", "Run a recipe; finished stages are reused, an interrupted one resumes."),
    ):
        sub = command(name, about, "RECIPE", recipe)
        sub.add_argument("overrides", nargs="*", metavar="a.b.c=value", help="set one field of the recipe")
        if name == "plan":
            sub.add_argument("--probe", action="store_true", help="try stages on a few rows first, to know their cost")
        if name != "check":
            sub.add_argument("--out", required=name == "run", metavar="URI", help="run directory: a path or s3://…")
    sub = command("show", "Show a run: stages, metrics, the lineage of a row.", "RUN", "a run directory")
    sub.add_argument("--row", metavar="ID", help="where this row came from, what became of it, and its children")
    about = "Ask people to judge a run's answers, in the browser."
    sub = command("annotate", about, "SOURCE", "a run directory, or a file of items (.jsonl)")
    sub.add_argument("file", nargs="?", metavar="ANNOTATION", help="what is asked, of whom and where (YAML)")
    sub.add_argument("--port", type=int, help="where to listen on this machine")
    _add_cluster(commands)
    return parser


def _add_cluster(commands: Any) -> None:
    """The commands that speak to a cluster."""
    about = "Send a job to a cluster and follow it: the same job twice at once is one, Ctrl-C leaves it running."
    submit = commands.add_parser("submit", help=about, description=about)
    submit.add_argument("spec", metavar="SPEC", help="a job's spec (YAML), see jobs/")
    submit.add_argument("overrides", nargs="*", metavar="a.b.c=value", help="set one field of the spec")
    submit.add_argument("--detach", action="store_true", help="submit it and do not follow")
    about = "List a cluster's jobs, follow one (logs), stop it, or run again what is over (resume)."
    jobs = commands.add_parser("jobs", help=about, description=about)
    jobs.add_argument("action", nargs="?", default="list", choices=("list", "logs", "stop", "resume"))
    jobs.add_argument("id", nargs="?", metavar="ID", help="a job's id")
    about = "Find what is wrong with this machine, a cluster or storage, and how to mend it."
    doctor = commands.add_parser("doctor", help=about, description=about)
    doctor.add_argument("store", nargs="?", metavar="URI", help="storage to try: a path or s3://…")
    for sub in (submit, jobs, doctor):
        sub.add_argument("--address", metavar="URL", help="a cluster's job server, http://HOST:8265")
        sub.add_argument("--json", action="store_true", help="answer in JSON on stdout")


def _check(options: argparse.Namespace) -> dict[str, Any]:
    # to look through every installed package for pydantic's plugins takes a sixth of the whole command
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    gc.disable()  # what is built on the way stays: to look through it for garbage takes a twentieth
    try:
        from tilth.recipe import load

        recipe = load(options.recipe, options.overrides)
    finally:
        gc.enable()
    if not options.json:
        ui.reporter().say(f"{options.recipe}: {len(recipe.stages)} stages hold: {', '.join(recipe.order())}")
    return {"stages": recipe.order(), "problems": []}


def _plan(options: argparse.Namespace) -> list[dict[str, Any]]:
    from tilth.planning import plan, plan_table
    from tilth.recipe import load

    if options.probe and options.out is None:
        raise RecipeError("--probe needs --out, the run whose finished stages it starts from")
    rows = plan(load(options.recipe, options.overrides), options.out, options.probe)
    if not options.json:
        ui.answer(plan_table(rows))
    return rows


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from tilth.jobs.inside import conditions
    from tilth.recipe import load
    from tilth.report import write_report
    from tilth.runs import Run

    run = Run(options.out)
    with conditions():
        artifacts = run.execute(load(options.recipe, options.overrides))
    report = write_report(run)
    ui.reporter().say(f"report: {report}", event="report", url=report)
    return {"event": "end", "report": report, "metrics": {name: item.metrics for name, item in artifacts.items()}}


def _show(options: argparse.Namespace) -> dict[str, Any]:
    from tilth.planning import run_table, show
    from tilth.runs import Run

    if options.row:
        from tilth.data.lineage import lineage, lineage_tree

        found = lineage(Run(options.run), options.row)
        if not options.json:
            ui.answer(lineage_tree(found))
        return found
    summary = show(Run(options.run))
    if not options.json:
        ui.answer(run_table(summary))
    return summary


def _annotate(options: argparse.Namespace) -> dict[str, Any]:
    from tilth.annotate.serve import annotate

    found = annotate(options.source, options.file, options.port)
    if not Path(options.source).is_file():
        from tilth.report import write_report
        from tilth.runs import Run

        ui.reporter().say(f"report: {write_report(Run(options.source))}")
    return found


def _submit(options: argparse.Namespace) -> Any:
    from tilth.jobs.commands import submit

    return submit(options)


def _jobs(options: argparse.Namespace) -> Any:
    from tilth.jobs.commands import jobs

    return jobs(options)


def _doctor(options: argparse.Namespace) -> Any:
    from tilth.doctor import doctor

    return doctor(options)


_COMMANDS = {
    "check": _check, "plan": _plan, "run": _run, "show": _show, "annotate": _annotate,
    "submit": _submit, "jobs": _jobs, "doctor": _doctor,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
