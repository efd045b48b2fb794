"""Markdown tables of the lines of `benchmarks/protection.py`: guarantees, attackers, utility; in per cent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Line = Mapping[str, Any]

LINKS, KNOWS_OTHERS, TELLS_MEMBERS = 0.10, 0.10, 0.15  # the promise that a pair is looked for
ATTACKS = ("links", "knows groups", "knows others", "tells members")


def print_tables(lines: Sequence[Line]) -> None:
    for outputs, title in (("one", "One output for each group"), ("shared", "One for each member, one noised mean"),
                           ("each", "One for each member, noise of its own")):  # fmt: skip
        chosen = sorted((line for line in lines if line["outputs"] == outputs), key=lambda x: (x["k"], x["level"]))
        noised = [line for line in chosen if "ceilings" in line]
        if not noised:
            continue
        print(f"### {title}\n")
        print(markdown_table(PROTECTION, [protection_row(line) for line in noised]))
        print(markdown_table(ATTACKERS, [attackers_row(line) for line in noised]))
        print(markdown_table(UTILITY, [utility_row(line) for line in chosen]))


PROTECTION = (
    "k, level", "links", "one-to-one", "knows all others", "of the same published columns",
    "tells a member from the nearest", "from the median", "promise kept",
)  # fmt: skip
ATTACKERS = ("k, level", *ATTACKS, "above a ceiling", "knows others and likeness", "the same without the output")
UTILITY = (
    "k, level", "pictures", "gender", "ethnicity", "age group", "face found", "Fréchet (floor)",
    "kernel x 1000 (floor)", "variety",
)  # fmt: skip


def protection_row(line: Line) -> list[str]:
    ceilings = line["ceilings"]
    rates = [ceilings[name] for name in ("linkage_rank1", "linkage_assigned", "knows_others")]
    members = [f"{100 * ceilings['membership_tpr_at_1'][pair]:.0f}" for pair in ("nearest", "median")]
    return [
        label(line),
        *map(cell, [*rates, line.get("knows others within strata")]),
        *members,
        "yes" if keeps_promise(line) else "no",
    ]


def attackers_row(line: Line) -> list[str]:
    """Return the strongest attacker of each kind, and those whose whole interval lies above the ceiling.

    Ceilings are for a uniform prior. Likeness to the other members is another one, and has its own control.
    """
    best = [strongest(line, attack) for attack in ATTACKS]
    above = [name for name, limit in limits(line).items() if line["attackers"][name]["low"] > limit]
    return [label(line), *(cell(rate) + (f" {by}" if by else "") for by, rate in best), ", ".join(above) or "none",
            *(cell(line["attackers"].get(f"likeness, {name}")) for name in ("filter", "no output"))]  # fmt: skip


def utility_row(line: Line) -> list[str]:
    frechet, kernel = (line["distances"][name] for name in ("Fréchet distance", "kernel distance"))
    return [
        label(line), str(line["pictures"]), *(cell(line["taught"][name]) for name in ("gender", "ethnicity", "age")),
        cell(line["faces"]), f"{frechet['value']:.3f} ({frechet['floor']:.3f})",
        f"{1000 * kernel['value']:.0f} ({1000 * kernel['floor']:.0f})", f"{line['variety']:.2f}",
    ]  # fmt: skip


def keeps_promise(line: Line) -> bool:
    """Return whether the upper ends of the ceilings lie within the promise."""
    ceilings = line["ceilings"]
    others = line.get("knows others within strata") or ceilings["linkage_rank1"]
    within = max(ceilings[name]["high"] for name in ("linkage_rank1", "linkage_assigned")) <= LINKS + 1e-9
    nearest = ceilings["membership_tpr_at_1"]["nearest"]
    return within and others["high"] <= KNOWS_OTHERS and nearest <= TELLS_MEMBERS


def limits(line: Line) -> dict[str, float]:
    """Return the upper end of the ceiling of each attacker."""
    ceilings, found = line["ceilings"], {}
    for name in line["attackers"]:
        if name.startswith("likeness"):
            continue
        if name.startswith("tells members"):
            found[name] = ceilings["membership_tpr_at_1"]["worst"]
        elif name.startswith("knows others"):
            found[name] = ceilings["knows_others"]["high"]
        else:
            assigned = name.endswith("assigned") or name.startswith("knows groups")
            found[name] = ceilings["linkage_assigned" if assigned else "linkage_rank1"]["high"]
    return found


def strongest(line: Line, attack: str) -> tuple[str, Mapping[str, float] | None]:
    rates = [(name, rate) for name, rate in line["attackers"].items() if name.startswith(attack)]
    if not rates:
        return "", None
    name, rate = max(rates, key=lambda item: item[1]["value"])
    return name.removeprefix(attack).strip(", "), rate


def label(line: Line) -> str:
    return f"{line['k']}, {line['level']:g}" if line["level"] else "originals"


def cell(rate: Mapping[str, float] | None) -> str:
    if rate is None:
        return "-"
    return f"{percent(rate['value'])} ({percent(rate['low'])} to {percent(rate['high'])})"


def percent(value: float) -> str:
    return f"{100 * value:.1f}" if value < 0.1 else f"{100 * value:.0f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)) + "\n"
