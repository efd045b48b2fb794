"""Measure the growth of all but the model: planning, shards, assembling, publishing, verifying, at several sizes.

    python benchmarks/scale.py [--records 1000 10000 100000] [--format parquet] [--work FOLDER] [--json FILE]
                               [--plot PREFIX]

The model copies its input and the scores cost nothing, so that only our own work is measured. Pictures are PNGs
of 8 x 8 in Parquet files; one in a hundred is damaged, one in a hundred is held back by the policy. Each step of each
size runs in a process of its own, so that its peak memory is its own. What is in --work is taken up again: a step that
is done is not done twice.

Printed: records per second (by the clock, which other work on the machine slows), peak resident memory, and the
exponent by which processor time grows from one size to the next (1: twice the records take twice the time).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

KEY, SIGNING_KEY = "SCALE_KEY", "SCALE_SIGNING_KEY"
STEPS = {
    "imports": "nothing but the imports",
    "plan": "list the source, write the plan",
    "shards": "read, decode, encode, stage, commit",
    "log": "an event for each shard, as the flow writes them, then which shards it knows of",
    "reconcile": "one pass over the ledger: every planned record is in it",
    "assemble": "pictures and manifest in output order",
    "report": "the custodian's page",
    "publish": "policy, card, statement, signature, check",
    "again": "the same run when all is done",
    "summary": "counts of the ledger",
    "status": "`anonymizer status`",
    "inspect": "`anonymizer inspect` of one picture",
    "verify": "`verify --decode 1000` of public/",
    "verify-all": "`verify` of public/",
    "verify-both": "`verify --decode 1000` of both halves",
    "draw": "300 pictures for an audit",
    "previous": "what a next release looks up",
}
COMBINE: dict[str, Callable[[Iterable[float]], float]] = {"seconds": max, "cpu": sum, "peak_mib": max}
SIDE, ROWS, CHUNK = 8, 1000, 50_000  # of a picture; of a row group; of a file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--format", choices=["parquet", "webdataset", "folder"], default="parquet")
    parser.add_argument("--shard-size", type=int, default=100)
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--again", nargs="+", choices=list(STEPS), default=[], help="measure these once more")
    parser.add_argument("--work", type=Path, help="folder to resume from; a temporary one by default")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", help="PREFIX of two pictures, PREFIX-rate.png and PREFIX-memory.png")
    parser.add_argument("--workers", type=int, default=1, help="processes that take the shards")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--part", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        job = Job(args) if args.one != "source" else None
        _measure(job.steps()[args.one] if job else lambda: _write_source(args.work, args.records[0]))
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        results = [_measure_size(args, work / f"{args.format}-{n}", n) for n in args.records]
    print(_table(args.records, results))
    if args.json:
        args.json.write_text(json.dumps(dict(zip(map(str, args.records), results, strict=True)), indent=2) + "\n")
    if args.plot:
        _plot(args.records, results, args.plot)


def _measure_size(args: argparse.Namespace, work: Path, records: int) -> dict[str, Any]:
    """Measure every step at one size, each in its own process."""
    work.mkdir(parents=True, exist_ok=True)
    results = work / "results.json"
    measured: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    os.environ[KEY] = hashlib.sha256(b"a key for measuring").hexdigest()
    os.environ[SIGNING_KEY] = str(work / "publisher.key")
    for step in ["source", *args.steps]:
        if step in measured and step not in args.again:
            continue
        own = ["--one", step, "--records", str(records), "--format", args.format, "--work", str(work)]
        command = [
            sys.executable,
            "-P",
            __file__,
            *own,
            "--shard-size",
            str(args.shard_size),
            "--workers",
            str(args.workers),
        ]
        parts = range(args.workers if step == "shards" else 1)
        running = [
            subprocess.Popen([*command, "--part", str(part)], stdout=subprocess.PIPE, text=True) for part in parts
        ]
        outputs = [process.communicate()[0] for process in running]
        if any(process.returncode for process in running):
            raise SystemExit(f"{step} of {records}: failed")
        figures = [json.loads(text.splitlines()[-1]) for text in outputs]
        measured[step] = {name: of(figure[name] for figure in figures) for name, of in COMBINE.items()}
        results.write_text(json.dumps(measured, indent=2) + "\n")
        print(f"{records:>9,} {step:<12} {measured[step]}", file=sys.stderr, flush=True)
    return measured


def _measure(run: Callable[[], object]) -> None:
    """Run one step in this process; print its figures as the last line."""
    started, cpu = time.monotonic(), time.process_time()
    run()
    figures = {"seconds": time.monotonic() - started, "cpu": time.process_time() - cpu, "peak_mib": _peak()}
    print("\n" + json.dumps({name: round(value, 3) for name, value in figures.items()}))


def _peak() -> float:
    """Return the peak resident memory of this process in MiB, by the kernel, without its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def _write_source(work: Path, records: int) -> None:
    """Write Parquet files of tiny images, all different, with an id, a label and a number to carry."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from anonymizer.crypto import signing

    (work / "publisher.key").write_bytes(signing.generate_key_pair().private_bytes)
    (work / "source").mkdir(exist_ok=True)
    for begin in range(0, records, CHUNK):
        rng, rows = np.random.default_rng(begin), range(begin, min(begin + CHUNK, records))
        encoded = []
        for pixels in rng.integers(40, 200, (len(rows), SIDE, SIDE, 3), dtype=np.uint8):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            encoded.append(file.getvalue())
        table = pa.table(
            {
                "id": [f"person-{row:09d}" for row in rows],
                "image": [b"no picture" if row % 100 == 7 else data for row, data in zip(rows, encoded, strict=True)],
                "label": [f"class {row % 50}" for row in rows],
                "year": [1990 + row % 30 for row in rows],
            }
        )
        pq.write_table(table, work / "source" / f"{begin:09d}.parquet", row_group_size=ROWS)


class Job:
    """One release, and the steps that build and check it."""

    def __init__(self, args: argparse.Namespace) -> None:
        import numpy as np
        import torch

        from anonymizer.backbones import Denoised
        from anonymizer.config import build
        from anonymizer.crypto.custodian_key import load_key
        from anonymizer.records import Scores
        from anonymizer.storage.layout import Release
        from flows.jobs import release as release_job  # noqa: F401  what a command imports

        class Copying:
            """A model whose estimate of the image is its input, and has no weights."""

            T, size, channels, multiple, scale, condition_kind = 1000, SIDE, 3, 1, 1, "nothing"
            alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
            device, name, digest = torch.device("cpu"), "copying", hashlib.sha256(b"copying").hexdigest()

            def encode(self, images: torch.Tensor) -> torch.Tensor:
                return images

            def decode(self, z0: torch.Tensor) -> torch.Tensor:
                return z0

            def condition(self, texts: Sequence[str]) -> object:
                raise AssertionError("it takes neither prompts nor classes")

            def flag_unsafe(self, images: torch.Tensor) -> Sequence[bool]:
                return [False] * len(images)

            def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
                return Denoised(zt, torch.zeros_like(zt))

        class Free:
            """Scores that depend on the output, spread evenly, and cost nothing."""

            names: Mapping[str, str] = {"clip_similarity": "free", "lpips": "free"}

            def embed(self, originals: torch.Tensor) -> torch.Tensor:
                return originals

            def score(self, reference: torch.Tensor, outputs: torch.Tensor) -> list[Scores]:
                spread = (outputs[:, 0, 0, 0].double() * 1e4 % 1).tolist()
                return [Scores(clip_similarity=value, lpips=1 - value) for value in spread]

        work, kind = args.work, args.format
        self.work, self.backbone, self.scorer = work, Copying(), Free()
        self.part, self.workers = args.part, args.workers
        self.config = build(
            {
                "source": {"uri": str(work / "source"), "id": "id", "label": "label", "carry": ["year"]},
                "output": {"uri": str(work / "release"), "format": kind},
                "boomerang": {"level": 0.6, "steps": 1},
                "policy": {"scores": {"clip_similarity": {"max": 0.99}}},
                "run": {"shard_size": args.shard_size},
                "key_env": KEY, "signing_key_env": SIGNING_KEY,
            }
        )  # fmt: skip
        self.release, self.key = Release.at(self.config.output.uri, load_key(KEY)), load_key(KEY)
        self.rng = np.random.default_rng(0)

    def steps(self) -> dict[str, Callable[[], object]]:
        from anonymizer import report
        from anonymizer.release import assemble, plan, publish
        from anonymizer.release.finished_ledger import FinishedLedger
        from anonymizer.release.ledger import Ledger
        from anonymizer.report.ledger_summary import LedgerSummary
        from flows.cli import main
        from flows.cli.governance import verify_release

        release, config = self.release, self.config
        public, whole = str(release.public), str(release.root)

        def finish(*parts: Callable[[FinishedLedger, LedgerSummary], object]) -> None:
            rows = LedgerSummary(plan.read(release))
            with FinishedLedger(release, plan.read(release), config, rows.add) as finished:
                for part in parts:
                    part(finished, rows)

        def assemble_candidate(finished: FinishedLedger, rows: LedgerSummary) -> None:
            assemble.assemble(release, config, finished)

        def write_report(finished: FinishedLedger, rows: LedgerSummary) -> None:
            report.write_restricted(release, config, finished, rows)

        def decide_and_publish(finished: FinishedLedger, rows: LedgerSummary) -> None:
            publish.decide_and_publish(release, config, self.key, finished, report.write_public)

        return {
            "imports": lambda: None,
            "plan": lambda: plan.write_or_resume(config, self.backbone, self.key, release),
            "shards": self.shards,
            "log": self.log,
            "reconcile": finish,
            "assemble": lambda: finish(assemble_candidate),
            "report": lambda: finish(write_report),
            "publish": lambda: finish(decide_and_publish),
            "again": lambda: finish(assemble_candidate, decide_and_publish),
            "summary": lambda: Ledger.open(release).summarize(),
            "status": lambda: main(["status", whole, "--json"], standalone_mode=False),
            "inspect": self.inspect,
            "verify": lambda: _require_verified(verify_release(public, decode=1000, as_json=True)),
            "verify-all": lambda: _require_verified(verify_release(public, as_json=True)),
            "verify-both": lambda: _require_verified(verify_release(whole, decode=1000, as_json=True)),
            "draw": self.draw,
            "previous": self.previous,
        }

    def shards(self) -> None:
        from anonymizer.pipeline.shard import anonymize_shard
        from anonymizer.release import plan
        from anonymizer.release.ledger import Ledger, ShardWriter

        ledger = Ledger.open(self.release)
        for shard in range(self.part, ledger.plan.shards, self.workers):
            if self.release.shard_ledger(shard).exists():
                continue
            writer = ShardWriter(ledger, shard, self.scorer.names)
            entries = plan.read_entries(self.release, ledger.plan, shard)
            anonymize_shard(shard, entries, self.config, self.backbone, self.scorer, self.key, writer)

    def log(self) -> None:
        from anonymizer.release import plan
        from flows.jobs import release as release_job

        shards = range(plan.read(self.release).shards)
        for shard in shards:
            release_job.log_event(
                self.config, "shard committed", shard=shard, read=100, released=98, quarantined=1, failed=1
            )
        assert release_job.read_logged_shards(self.config) >= set(shards)

    def inspect(self) -> None:
        import pyarrow.parquet as pq

        from flows.cli import main

        groups = pq.ParquetFile(self.release.manifest.path)
        output_id = groups.read_row_group(groups.num_row_groups - 1, columns=["output_id"])["output_id"][-1].as_py()
        main(["inspect", str(self.release.root), output_id, "--json"], standalone_mode=False)

    def draw(self) -> None:
        from anonymizer.release.audit_sample import draw_sample

        sample = draw_sample(self.release, self.config.source, SIDE, 300, self.rng)
        assert len(sample) == min(300, sample.released)

    def previous(self) -> None:
        from anonymizer.release import history
        from anonymizer.release.ledger import Ledger
        from anonymizer.storage.layout import Release

        following, ledger = Release.at(str(self.work / "following"), self.key), Ledger.open(self.release)
        following.predecessors.write(json.dumps([str(self.release.root)]).encode())
        sample, table = history.load(following), ledger.read_shard(ledger.plan.shards - 1)
        assert table is not None
        known = [row for row in table.to_pylist() if row["status"] == "released"]
        for row in known:
            assert sample.find_row(row["source_hmac"])["sha256"] == row["sha256"]


def _require_verified(verified: bool) -> None:
    if not verified:
        raise SystemExit("verify: a check failed")


def _table(sizes: Sequence[int], results: Sequence[dict[str, Any]]) -> str:
    """Return Markdown: a line for each step, for each size its rate and peak, and the exponents in between."""
    head = ["step", *(f"{n:,}" for n in sizes), *(f"MiB at {n:,}" for n in sizes), "exponents"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for step in (step for step in STEPS if any(step in one for one in results)):
        rates = [
            f"{n / max(result[step]['seconds'], 1e-3):,.0f}/s" if step in result else ""
            for n, result in zip(sizes, results, strict=True)
        ]
        peaks = [f"{result[step]['peak_mib']:,.0f}" if step in result else "" for result in results]
        lines.append("| " + " | ".join([step, *rates, *peaks, ", ".join(_exponents(step, sizes, results))]) + " |")
    return "\n".join(lines)


def _exponents(step: str, sizes: Sequence[int], results: Sequence[dict[str, Any]]) -> list[str]:
    """Return log(time ratio) / log(size ratio) of neighbouring sizes whose time is more than noise."""
    known = [(n, result[step]["cpu"]) for n, result in zip(sizes, results, strict=True) if step in result]
    return [
        f"{math.log(t / before) / math.log(n / fewer):.2f}"
        for (fewer, before), (n, t) in pairwise(known)
        if before > 0.2
    ]


def _plot(sizes: Sequence[int], results: Sequence[dict[str, Any]], prefix: str) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    for name, value, title in (
        ("rate", lambda n, figures: n / figures["seconds"], "records per second"),
        ("memory", lambda n, figures: figures["peak_mib"], "peak resident memory, MiB"),
    ):
        figure, axes = pyplot.subplots(figsize=(7, 4.5))
        for number, step in enumerate(s for s in STEPS if s != "imports"):
            points = [(n, value(n, result[step])) for n, result in zip(sizes, results, strict=True) if step in result]
            axes.plot(
                *zip(*points, strict=True), ("o-", "s--", "^:")[number % 3], label=step, linewidth=1, markersize=3
            )
        axes.set(xscale="log", xlabel="records", ylabel=title)
        if name == "rate":
            axes.set_yscale("log")
        else:
            axes.axhline(1024, color="black", linewidth=0.5)
            axes.set_ylim(0)
        axes.legend(fontsize=7, ncols=1, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.tight_layout()
        figure.savefig(f"{prefix}-{name}.png", dpi=110)


if __name__ == "__main__":
    main()
