"""The two reports and the dataset card: what was done, how far the outputs moved, what became of every record."""

from __future__ import annotations

from typing import Any

import jinja2
import pyarrow as pa

from anonymizer.config import RunConfig
from anonymizer.layout import Release
from anonymizer.place import Place
from anonymizer.plan import Plan


def write_public(folder: Place, plan: Plan, config: RunConfig, summary: Any, manifest: pa.Table) -> None:
    """``report.html`` and ``README.md`` of the public half: nothing about an individual original."""
    context = {"plan": plan, "config": config, "summary": summary, "columns": manifest.column_names}
    (folder / "report.html").put(_render("public.html.j2", context))
    (folder / "README.md").put(_render("card.md.j2", context))


def write_restricted(release: Release, plan: Plan, config: RunConfig, summary: Any) -> None:
    """``restricted/report.html``: originals beside outputs, for the custodian's eyes."""
    release.report.write(_render("restricted.html.j2", {"plan": plan, "config": config, "summary": summary}))


def _render(name: str, context: dict[str, Any]) -> bytes:
    loader = jinja2.PackageLoader("anonymizer", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=jinja2.select_autoescape(["html.j2", "html"]))
    return environment.get_template(name).render(context).encode()
