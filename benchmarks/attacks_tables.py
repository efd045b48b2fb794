"""Print tables and draw plots of the figures of `benchmarks/attacks.py`.

    python benchmarks/attacks_tables.py results/att --plot docs/images/audit-att.png

A cell holds the attacker with the highest upper bound, with a 95 % interval.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

LEVELS = ("0.2", "0.4", "0.6", "0.8", "0.9", "0.95", "0.97", "0.98", "0.99", "1")
ORDER = ("round-trip", *(f"level-{level}" for level in LEVELS), "blur", "pixelation", "unrelated")
ONE, FIVE = ", 1 photo a person", ", 5 photos a person"
LINKAGE = {
    "unaware": ("linkage", "unaware", "rank-1", None),
    "unaware, face": ("linkage", "unaware", "rank-1", "dlib"),
    "aware": ("linkage", "aware", "rank-1", None),
    "filtering": ("linkage", "filtering", "rank-1", None),
    "assigned": ("linkage", None, "assigned", None),
    "trained": ("parrot", "trained", "rank-1", None),
    "inverting": ("inversion", "inverting", "rank-1", None),
    "16 outputs": ("averaging", "sees k outputs", "rank-1", None),
}
PEOPLE = {
    "rank-1, 1 photo": ("reidentification", None, f"rank-1{ONE}", None),
    "rank-1, 5 photos": ("reidentification", None, f"rank-1{FIVE}", None),
    "dlib: rank-1, 1 photo": ("reidentification", None, f"rank-1{ONE}", "dlib"),
    "dlib: TPIR at FPIR 0.1": ("reidentification", None, f"TPIR at FPIR 0.1{ONE}", "dlib"),
    "dlib: TMR at FMR 0.01": ("reidentification", None, f"TMR at FMR 0.01{ONE}", "dlib"),
    "dlib: TMR at FMR 0.001": ("reidentification", None, f"TMR at FMR 0.001{ONE}", "dlib"),
    "dlib: not detected": ("reidentification", None, f"not detected{ONE}", "dlib"),
    "after inversion, rank-1": ("inversion", "inverting", f"rank-1{ONE}, whose picture", None),
}
MEMBERSHIP = {
    "in the release: AUC": ("membership", None, "AUC: in the release", None),
    "TPR at FPR 0.01": ("membership", None, "TPR at FPR 0.01: in the release", None),
    "TPR at FPR 0.001": ("membership", None, "TPR at FPR 0.001: in the release", None),
    "nearer to training pictures: AUC": ("membership", "unaware", "AUC: outputs nearer", None),
}
ATTRIBUTES = {
    f"{column}, {reader}": ("attributes", reader, f"accuracy of {column}", None)
    for column in ("gender", "ethnicity", "age")
    for reader in ("unaware", "trained")
}
PLOTTED = {
    "linkage, unaware": LINKAGE["unaware"],
    "linkage, aware": LINKAGE["aware"],
    "trained linker": LINKAGE["trained"],
    "inversion, then linkage": LINKAGE["inverting"],
    "16 outputs averaged": LINKAGE["16 outputs"],
    "re-identification, 1 photo": PEOPLE["rank-1, 1 photo"],
    "re-identification, dlib": PEOPLE["dlib: rank-1, 1 photo"],
    "membership (TPR at FPR 0.01)": MEMBERSHIP["TPR at FPR 0.01"],
}

Query = tuple[str, str | None, str, str | None]
Line = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    results = {name: read_figures(file) for name in ORDER if (file := args.folder / f"{name}.parquet").exists()}
    methods = {name: about for name, (about, _) in results.items()}
    lines = {name: lines for name, (_, lines) in results.items()}
    first = next(iter(methods.values()))
    print(f"{first['pictures']} pictures of {first['people']} people, {first['outsiders']} outsiders\n")
    rows = [
        [method_label(name, about), f"{about['lpips']:.3f}", f"{about['clip']:.2f}"] for name, about in methods.items()
    ]
    print(markdown_table(["pictures", "LPIPS", "CLIP similarity"], rows))
    for title, columns in (
        ("Linkage", LINKAGE), ("People", PEOPLE), ("Membership", MEMBERSHIP), ("Attributes", ATTRIBUTES),
    ):  # fmt: skip
        cells = {
            name: [format_cell(strongest_attacker(lines[name], column)) for column in columns.values()]
            for name in lines
        }
        if any(text != "-" for row in cells.values() for text in row):
            print(f"### {title}\n")
            print(
                markdown_table(
                    ["pictures", *columns], [[method_label(name, methods[name]), *row] for name, row in cells.items()]
                )
            )
    trained = strongest_attacker(
        next(iter(lines.values())), ("membership", "aware", "AUC: in the model's training set", None)
    )
    print("In the model's training set:", format_cell(trained), "\n")
    if args.plot:
        plot(methods, lines, args.plot)


def read_figures(file: Path) -> tuple[Line, list[Line]]:
    table = pq.read_table(file)
    return json.loads(table.schema.metadata[b"method"]), table.to_pylist()


def strongest_attacker(lines: Sequence[Line], query: Query) -> Line | None:
    attack, attacker, measure, feature = query
    matching = [
        line
        for line in lines
        if line["attack"] == attack
        and attacker in (None, line["attacker"])
        and line["measure"].startswith(measure)
        and (len(line["measure"]) == len(measure) or "outputs nearer" in measure)
        and (feature is None or line["feature"].startswith(feature))
        and line["subgroup"] is None
        and line["value"] is not None
        and (attack != "averaging" or line["outputs"] == 16)
    ]
    return max(matching, key=lambda line: (line["high"], line["value"])) if matching else None


def format_cell(line: Line | None) -> str:
    if line is None:
        return "-"
    by = line["feature"].split(" ")[0].split("-")[0].removesuffix(":")
    by = "" if by in ("learnt", "denoising", "dlib") else f" {FEATURE_NAMES.get(by, by)}"
    return f"{100 * line['value']:.0f} ({100 * line['low']:.0f} to {100 * line['high']:.0f}){by}"


FEATURE_NAMES = {"matched": "filter", "st": "lpips", "efficientnet": "imagenet", "clip": "clip"}


def method_label(name: str, about: Line) -> str:
    return about["method"] if about["log_snr"] is None else f"{about['method']} (log-SNR {about['log_snr']:+.2f})"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]) + "\n"


def plot(methods: dict[str, Line], lines: dict[str, list[Line]], file: Path) -> None:
    """Plot the figures of each attack against the level; baselines to the right."""
    from matplotlib.figure import Figure

    names = list(methods)
    columns = {
        title: query
        for title, query in PLOTTED.items()
        if any(strongest_attacker(lines[name], query) for name in names)
    }
    figure = Figure(figsize=(15, 3.3 * -(-len(columns) // 4)), layout="constrained")
    ticks = [TICK_LABELS.get(name, name.removeprefix("level-")) for name in names]
    for position, (title, query) in enumerate(columns.items(), start=1):
        panel = figure.add_subplot(-(-len(columns) // 4), 4, position)
        for x, name in enumerate(names):
            line = strongest_attacker(lines[name], query)
            if line is None:
                continue
            level = name.startswith("level") or name == "round-trip"
            colour = "#0072b2" if level else "#d55e00"
            span = [[line["value"] - line["low"]], [line["high"] - line["value"]]]
            panel.errorbar([x], [line["value"]], yerr=span, fmt="o", color=colour, capsize=2, markersize=5)
            if line["chance"] is not None:
                panel.plot([x - 0.35, x + 0.35], [line["chance"]] * 2, color="#999999", linewidth=1.5)
        panel.set(title=title, ylim=(-0.03, 1.03))
        panel.set_xticks(range(len(names)), ticks, fontsize=7, rotation=35, ha="right", rotation_mode="anchor")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", alpha=0.25)
    figure.supylabel("reached (grey: chance)", fontsize=9)
    figure.savefig(file, dpi=110, metadata={"Software": None})


TICK_LABELS = {"round-trip": "0 (round trip)"}

if __name__ == "__main__":
    main()
