"""The audit's page for the custodian, and the public summary with upper bounds only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from anonymizer.config import CeilingName, RunConfig
from anonymizer.crypto.encryption import Encryptor
from anonymizer.policy.ceilings import describe, parse_ceilings, upper_end
from anonymizer.policy.risk_figures import FigureRow, risk_above_chance, select_strongest
from anonymizer.records import Ceilings, Plan
from anonymizer.release.ledger import Ledger
from anonymizer.report.rendering import render
from anonymizer.report.thumbnails import ImagePair, Row, read_pairs
from anonymizer.storage.layout import Release

MAX_EXPOSED = 12  # records on the page
EFFORT = ("pairs", "outputs", "averaged")
EVIDENCE = ("identity", "attributes", "others", "outsiders", "training")  # settings of what attackers may hold
CEILED_ATTACKS = ("linkage", "parrot", "inversion")
CEILINGS: Mapping[str, CeilingName] = {
    "rank-1": "linkage_rank1",
    "rank-5": "linkage_rank5",
    "assigned": "linkage_assigned",
}
NO_GUARANTEE, SIGNED_CEILINGS = "No formal guarantee", "Ceilings, as in the signed statement"
PUBLIC_STEP = 0.05  # public bounds are rounded up to a multiple of it


@dataclass(frozen=True)
class Question:
    """One of the three risks of WP29 opinion 05/2014, and the attacks that measure it."""

    title: str
    text: str
    attacks: tuple[str, ...]


QUESTIONS = (
    Question(
        "Singling out",
        "Can a person be picked out, by other photos or by what the files carry?",
        ("reidentification", "leaks"),
    ),
    Question(
        "Linkability",
        "Can a released picture be linked to the original it was made from?",
        ("linkage", "parrot", "averaging", "inversion", "groups"),
    ),
    Question(
        "Inference",
        "Can it be told that a photo was in, or what the person is like?",
        ("membership", "attributes"),
    ),
)


@dataclass(frozen=True)
class Answer:
    """A question with the strongest figure of each attack that was measured, strongest first."""

    question: Question
    strongest: Sequence[FigureRow]


@dataclass(frozen=True)
class MethodComparison:
    """Strongest figure of each attack against the release or a baseline; ``distance`` is its median LPIPS."""

    name: str
    distance: float | None
    figures: Mapping[str, FigureRow | None]


@dataclass(frozen=True)
class AuditReport:
    """What an audit found: its figures, ``audit.json`` as far as it is known, and the records that attacks found."""

    rows: Sequence[FigureRow]
    audit: Mapping[str, Any]
    found: Sequence[str]  # record ids, one for each attack that found the record

    @property
    def ceilings(self) -> Ceilings | None:
        """What no attacker passes on the originals that were attacked; None where an assumption fails."""
        return parse_ceilings(self.audit["ceilings"])

    def find_ceiling(self, row: FigureRow) -> float | None:
        """Return the upper end of the ceiling on a figure: of linkage to the right one of the same candidates."""
        name = CEILINGS.get(row["measure"]) if row["attack"] in CEILED_ATTACKS else None
        if (row["attack"], row["attacker"], row["measure"]) == ("groups", "knows all others", "rank-1"):
            name = "knows_others"
        if name is None or self.ceilings is None or row["baseline"] is not None or row["outputs"] > 1:
            return None
        return upper_end(self.ceilings, name)

    @property
    def own(self) -> list[FigureRow]:
        """The figures of the release itself, without baselines."""
        return [row for row in self.rows if row["baseline"] is None]

    @property
    def answers(self) -> list[Answer]:
        return [Answer(question, select_strongest(self.own, question.attacks)) for question in QUESTIONS]


def write_audit(
    release: Release, config: RunConfig, plan: Plan, report: AuditReport, attackers: Mapping[str, str]
) -> None:
    """Write ``restricted/audit.html``; ``attackers`` describes each attacker by name."""
    rows, audit, own, answers = report.rows, report.audit, report.own, report.answers
    measured = [row for row in own if row["value"] is not None]
    names = {row["attacker"] for row in own}
    Encryptor(config.restricted.recipients).write(
        release.audit_page,
        render(
            "audit.html.j2",
            plan=plan,
            audit=audit,
            answers=answers,
            ceiling_lines=describe(report.ceilings) if report.ceilings else {},
            ceiling_of=report.find_ceiling,
            attackers={name: text for name, text in attackers.items() if name in names},
            exposed=_most_exposed(release, config, plan, report),
            measured=[row for row in measured if row["subgroup"] is None],
            comparison=_compare_methods(rows, plan, audit["distances"]),
            subgroups=_subgroup_figures(measured),
            not_run=[row for row in rows if row["value"] is None and row["subgroup"] is None],
        ),
    )


def build_public_summary(plan: Plan, audit: Mapping[str, Any], answers: Sequence[Answer]) -> dict[str, Any]:
    """Return rounded upper bounds per question from ``audit.json``, and by whose attacks.

    Which feature or threshold did best is left out, and so are records and subgroups.
    """

    def bound(answer: Answer) -> dict[str, Any]:
        if not answer.strongest:
            return {"question": answer.question.text, "result": "not measured"}
        risk = max(risk_above_chance(row) for row in answer.strongest)
        rounded = min(1.0, math.ceil(risk / PUBLIC_STEP - 1e-9) * PUBLIC_STEP)
        return {
            "question": answer.question.text,
            "risk_above_chance_at_most": round(rounded, 2),
            "attacks_tried": sorted({row["attack"] for row in answer.strongest}),
        }

    scope = "this release and of earlier ones" if audit.get("union") else "this release"
    return {
        "manifest_sha256": audit["manifest"],
        "level": plan.level,
        "pictures_attacked": audit["audited"],
        "pictures_not_measured": audit["unread"] + audit["changed"],  # their originals are gone, or others
        "confidence": 0.95,
        "attackers": _public_attackers(audit),
        "answers": {answer.question.title: bound(answer) for answer in answers},
        "formal_guarantee": NO_GUARANTEE if plan.ceilings is None else SIGNED_CEILINGS,
        "reading": f"Bounds hold for the attacks that were tried, on a sample of {scope}. Other attackers may do "
        "better. A bound of 1 means that the attack cannot be ruled out for any picture."
        + (f" Here {audit['lacking']}." if audit.get("lacking") else ""),
    }


def _public_attackers(audit: Mapping[str, Any]) -> dict[str, Any]:
    """Return who attacked: attacks, models of features, effort, and what they held besides; no address or column."""
    effort = {name: audit["attackers"][name] for name in ("attacks", "sample", "released", *EFFORT)}
    return effort | {"features": audit["features"], "held": [name for name in EVIDENCE if audit["config"][name]]}


def _compare_methods(rows: Sequence[FigureRow], plan: Plan, distances: Mapping[str, float]) -> list[MethodComparison]:
    """Compare the release with the baselines by all attacks that were measured; [] if there are no baselines."""
    names = dict.fromkeys(row["baseline"] for row in rows)
    if len(names) < 2:
        return []
    attacks = [attack for question in QUESTIONS for attack in question.attacks if attack != "leaks"]
    strongest = {
        name: {row["attack"]: row for row in select_strongest([r for r in rows if r["baseline"] == name], attacks)}
        for name in names
    }
    measured = [attack for attack in attacks if any(attack in figures for figures in strongest.values())]
    own = f"level {plan.level:g}"
    return [
        MethodComparison(name or "this release", distances.get(name or own), {a: figures.get(a) for a in measured})
        for name, figures in strongest.items()
        if figures
    ]


def _subgroup_figures(measured: Sequence[FigureRow]) -> list[FigureRow]:
    """Return the subgroups of each attribute for the strongest linkage."""
    linkage = [row for row in measured if row["subgroup"] is not None and row["attack"] == "linkage"]
    strongest = max(linkage, key=risk_above_chance, default={})
    same = {name: strongest.get(name) for name in ("attacker", "feature")}
    return [row for row in linkage if same == {name: row[name] for name in same}]


def _most_exposed(release: Release, config: RunConfig, plan: Plan, report: AuditReport) -> list[ImagePair]:
    """Return the records that most attacks identified, most exposed first."""
    hits = Counter(report.found)
    exposed = dict(hits.most_common(MAX_EXPOSED))
    if not exposed:
        return []
    rank_1 = [row for row in report.own if row["measure"] == "rank-1"]
    attacks = len({(row["attack"], row["attacker"], row["feature"]) for row in rank_1})
    ids = pa.array(list(exposed), pa.string())
    rows = [
        row
        for _, table in Ledger(release, plan).scan()
        for row in table.filter(pc.is_in(table["record_id"], value_set=ids)).to_pylist()
    ]

    def caption(row: Row) -> list[tuple[str, str]]:
        return [("found by", f"{exposed[row['record_id']]} of {attacks} attacks")]

    pairs, _ = read_pairs(release, config, rows, caption)
    return sorted(pairs.values(), key=lambda pair: -exposed[pair.record_id])
