"""The audit's page for the custodian, and the few bounds of it that may be public."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from anonymizer.config import RunConfig
from anonymizer.crypto.encryption import Encryptor
from anonymizer.policy.risk_figures import FigureRow, risk_above_chance, select_strongest
from anonymizer.records import Plan
from anonymizer.release import ledger, plan
from anonymizer.report import thumbnails
from anonymizer.report.rendering import render
from anonymizer.report.thumbnails import Thumbnail
from anonymizer.storage import parquet
from anonymizer.storage.layout import Release

MAX_EXPOSED = 12  # records shown
PUBLIC_STEP = 0.05  # public bounds are rounded up to it


@dataclass(frozen=True)
class Question:
    """One of the three ways to find a person in data (WP29 opinion 05/2014), and the attacks that try it here."""

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
        ("linkage", "parrot", "averaging", "inversion"),
    ),
    Question(
        "Inference",
        "Can it be told that a photo was in, or what the person is like?",
        ("membership", "attributes"),
    ),
)


@dataclass(frozen=True)
class Answer:
    """A question and the strongest attack that was measured for each kind, the strongest of all first."""

    question: Question
    strongest: Sequence[FigureRow]


@dataclass(frozen=True)
class ExposedRecord:
    """A record that attacks found, beside its output."""

    record_id: str
    output_id: str
    original: Thumbnail | str
    output: Thumbnail | str
    n_found: int
    n_attacks: int


@dataclass(frozen=True)
class MethodComparison:
    """What the strongest attack of each kind reached in the release, or in a baseline."""

    name: str
    distance: float | None  # the median LPIPS from the originals
    figures: Mapping[str, FigureRow | None]


def write_audit(release: Release, config: RunConfig, the_plan: Plan, attackers: Mapping[str, str]) -> None:
    """``restricted/audit.html`` and ``restricted/audit/public.json``, from the tables in ``restricted/audit/``."""
    every = parquet.read(release.audit / "figures.parquet").to_pylist()
    lines = [line for line in every if line["baseline"] is None]
    told = json.loads((release.audit / "audit.json").read())
    answers = [Answer(question, select_strongest(lines, question.attacks)) for question in QUESTIONS]
    Encryptor(config.restricted.recipients).write(
        release.audit_page,
        render(
            "audit.html.j2",
            plan=the_plan,
            told=told,
            answers=answers,
            attackers={name: text for name, text in attackers.items() if any(x["attacker"] == name for x in lines)},
            worst=_most_exposed(release, config, lines),
            groups=_group_by_attack(lines),
            averaged=_averaging_figures(lines),
            beside=_compare_methods(every, the_plan, told["distances"]),
            subgroups=_subgroup_figures(lines),
            not_run=[line for line in every if line["value"] is None and line["subgroup"] is None],
            sentence=told["certificate"]["sentence"],
        ),
    )
    release.audit_summary.write(json.dumps(build_public_summary(the_plan, told, answers), indent=2).encode())


def build_public_summary(the_plan: Plan, told: Mapping[str, Any], answers: Sequence[Answer]) -> dict[str, Any]:
    """Upper bounds, rounded up, of the best attacker for each question: no feature, threshold, record or subgroup."""

    def bound(answer: Answer) -> dict[str, Any]:
        if not answer.strongest:
            return {"question": answer.question.text, "result": "not measured"}
        risk = max(risk_above_chance(line) for line in answer.strongest)
        rounded = min(1.0, math.ceil(risk / PUBLIC_STEP - 1e-9) * PUBLIC_STEP)
        return {
            "question": answer.question.text,
            "risk_above_chance_at_most": round(rounded, 2),
            "attacks_tried": sorted({line["attack"] for line in answer.strongest}),
        }

    what = "this release and of earlier ones" if told.get("union") else "this release"
    return {
        "manifest_sha256": told["manifest"],
        "level": the_plan.level,
        "pictures_attacked": told["audited"],
        "confidence": 0.95,
        "answers": {answer.question.title: bound(answer) for answer in answers},
        # A bound for the originals of the sample is none for all of the release.
        "formal_guarantee": "No formal guarantee",
        "reading": f"Bounds hold for the attacks that were tried, on a sample of {what}. Other attackers may do "
        "better. A bound of 1 means that the attack cannot be ruled out for any picture."
        + (f" Here {told['lacking']}." if told.get("lacking") else ""),
    }


def _group_by_attack(lines: Sequence[FigureRow]) -> dict[str, list[FigureRow]]:
    groups: dict[str, list[FigureRow]] = defaultdict(list)
    for line in lines:
        if line["value"] is not None and line["subgroup"] is None:
            groups[line["attack"]].append(line)
    return dict(groups)


def _compare_methods(
    lines: Sequence[FigureRow], the_plan: Plan, distances: Mapping[str, float]
) -> list[MethodComparison]:
    """The release first, with the attacks that were tried; empty where no baseline was attacked."""
    names = dict.fromkeys(line["baseline"] for line in lines)
    if len(names) < 2:
        return []
    attacks = [attack for question in QUESTIONS for attack in question.attacks if attack != "leaks"]
    best = {
        name: {line["attack"]: line for line in select_strongest([x for x in lines if x["baseline"] == name], attacks)}
        for name in names
    }
    tried = [attack for attack in attacks if any(attack in found for found in best.values())]
    release = f"level {the_plan.level:g}"
    return [
        MethodComparison(name or "this release", distances.get(name or release), {a: found.get(a) for a in tried})
        for name, found in best.items()
        if found
    ]


def _averaging_figures(lines: Sequence[FigureRow]) -> list[FigureRow]:
    return [x for x in lines if x["attack"] == "averaging" and x["value"] is not None and x["measure"] == "rank-1"]


def _subgroup_figures(lines: Sequence[FigureRow]) -> list[FigureRow]:
    """The subgroups of each attribute for the strongest linkage."""
    mine = [x for x in lines if x["subgroup"] is not None and x["value"] is not None and x["attack"] == "linkage"]
    if not mine:
        return []
    best = max(mine, key=risk_above_chance)
    return [x for x in mine if (x["attacker"], x["feature"]) == (best["attacker"], best["feature"])]


def _most_exposed(release: Release, config: RunConfig, lines: Sequence[FigureRow]) -> list[ExposedRecord]:
    """The records that most attacks found, as pictures."""
    found = parquet.read(release.audit / "found.parquet")
    if not len(found):
        return []
    tried = len({(x["attack"], x["attacker"], x["feature"]) for x in lines if x["measure"] == "rank-1"})
    counts = found.group_by(["record_id"]).aggregate([("attack", "count")]).sort_by([("attack_count", "descending")])
    most = {row["record_id"]: row["attack_count"] for row in counts.slice(0, MAX_EXPOSED).to_pylist()}
    wanted = pa.array(list(most), pa.string())
    rows = [
        row
        for _, table in ledger.scan_shards(release, plan.read(release))
        for row in table.filter(pc.is_in(table["record_id"], value_set=wanted)).to_pylist()
    ]
    ids = pa.array([row["output_id"] for row in rows], pa.string())
    published = [
        row
        for batch in parquet.open_table(release.manifest).to_batches(parquet.BATCH_ROWS)
        for row in batch.filter(pc.is_in(batch["output_id"], value_set=ids)).to_pylist()
    ]
    outputs = thumbnails.released_thumbnails(release.public_or_candidate, published)
    originals, _ = thumbnails.original_thumbnails(release, config, rows)
    shown = [
        ExposedRecord(
            record_id=row["record_id"],
            output_id=row["output_id"],
            original=originals.get(row["record_id"], "gone"),
            output=outputs.get(row["output_id"], "not found"),
            n_found=most[row["record_id"]],
            n_attacks=tried,
        )
        for row in rows
    ]
    return sorted(shown, key=lambda one: -one.n_found)
