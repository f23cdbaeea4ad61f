"""The report of a run: one HTML file that loads nothing from elsewhere, written from artifacts alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilth.runs import Artifact, Run

__all__ = ["write_report"]
REPORT = "report.html"


def write_report(run: Run) -> str:
    """Write RUN/report.html from what the last plan has finished; returns its URL. Unfinished stages are named."""
    from tilth.planning import show
    from tilth.report.people import campaigns
    from tilth.report.sections import campaign, sections

    artifacts = run.current()
    page = _template().render(
        recipe=_recipe(run),
        yaml=_yaml(run),
        summary=show(run),
        artifacts=artifacts,
        versions=_versions(artifacts),
        sections=[*sections(artifacts), *(campaign(*found) for found in campaigns(run))],
    )
    run.store.write(REPORT, page.encode("utf-8", "replace"))
    return run.store.at_url(REPORT)


def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("tilth.report", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["number"] = number
    environment.tests["numeric"] = _is_number
    return environment.get_template("report.html.j2")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(value: Any) -> str:
    """A cell as people read it: thousands apart, four significant digits, an empty cell for None."""
    if value is None:
        return ""
    if not _is_number(value):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _yaml(run: Run) -> str:
    if not run.store.exists("recipe.yaml"):
        return ""
    return run.store.read("recipe.yaml").decode("utf-8", "replace")


def _recipe(run: Run) -> dict[str, Any]:
    import yaml

    return {"name": "run", "description": "", **(yaml.safe_load(_yaml(run)) or {})}


def _versions(artifacts: dict[str, Artifact]) -> dict[str, str]:
    """Every version that took part, by package; several where stages ran under different ones."""
    found: dict[str, set[str]] = {}
    for artifact in artifacts.values():
        for package, version in artifact.versions.items():
            found.setdefault(package, set()).add(version)
    return {package: ", ".join(sorted(each)) for package, each in found.items()}
