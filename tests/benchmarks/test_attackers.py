"""The benchmark of attackers without training, on a model in closed form."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.support import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import attackers

from anonymizer.boomerang import Boomerang
from metrics import features
from metrics.audit.mechanisms import LocalSampling
from metrics.audit.workbench import Effort, Evidence, Workbench
from metrics.stats.intervals import as_subjects
from tests.metrics.audit.test_filtering import MODEL, pictures


def test_each_level_is_one_file_and_one_row_and_outputs_are_drawn_once(tmp_path: Path) -> None:
    for level in (0.15, 1.0):
        mechanism, originals = LocalSampling(Boomerang(MODEL, "sde-dpm++", 10), level), pictures(60, 1)
        file = tmp_path / f"sde-dpm++-10-{level:g}.npy"
        outputs = attackers.load_outputs(file, mechanism, originals)
        assert (attackers.load_outputs(file, mechanism, originals[:0]) == outputs).all()
        others = pictures(200, 2), as_subjects([f"outsider {i}" for i in range(200)])
        evidence = Evidence(originals, outputs, as_subjects(range(60)), has_identities=False, mechanism=mechanism,
                            model=MODEL, training=pictures(200, 3), outsiders=others)  # fmt: skip
        bench = Workbench(evidence, features.load_embedders(["pixels"]), Effort(matched_filter=True), 1)
        file.with_suffix(".json").write_text(json.dumps(attackers.measure(bench, mechanism)))
    header, _, near, far = attackers.table(tmp_path, "sde-dpm++-10").splitlines()
    assert header.count("|") == near.count("|") == far.count("|")
    assert near.startswith("| 0.15 |") and far.startswith("| 1 | ")
    values = dict(zip(header.split(" | "), near.split(" | "), strict=True))
    assert float(values["filter"].split()[0]) > 50 and float(values["filter"].split()[0]) <= float(
        values["ceiling"].split()[0]
    )
