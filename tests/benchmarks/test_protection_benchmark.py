"""The benchmark of groups and levels, at toy sizes: attackers with a known answer, and one line for each pair."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from anonymizer.noise import FORWARD, KeyedNoise
from tests.support import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import protection
import protection_attackers as attackers
import protection_outputs


def test_outputs_of_a_group_share_the_noise_that_their_mean_is_noised_with() -> None:
    keys = [bytes([number]) * 16 for number in range(4)]
    noise = protection_outputs.SharedForward(KeyedNoise([keys[0], keys[0], keys[2], keys[2]]), KeyedNoise(keys))
    first, later = noise(FORWARD, torch.zeros(4, 3, 2, 2)), noise(7, torch.zeros(4, 3, 2, 2))
    assert len(first.unique(dim=0)) == 2 and torch.equal(first[0], first[1])
    assert len(later.unique(dim=0)) == 4


@pytest.mark.parametrize("by_filter", [False, True])
def test_an_attacker_who_sees_the_means_themselves_names_a_member_once_in_k_and_the_last_one_always(
    by_filter: bool,
) -> None:
    rng, k = np.random.default_rng(3), 3
    candidates = rng.standard_normal((30, 12))
    groups = np.arange(27).reshape(9, k)
    outputs = candidates[groups].mean(1)
    filters = attackers.Filters(np.ones(12), 1 - 1e-6, k, np.zeros(12))
    one, mean = map(attackers.scores_of, (filters.of_one, filters.of_mean)) if by_filter else [attackers.cosine] * 2
    attacked = attackers.Attacked(outputs, candidates, groups, one, mean)
    assert attackers.link_known_groups(attacked, rng).value == pytest.approx(1 / k)
    assert attackers.link_last_member(attacked, rng).value == 1
    assert attackers.link_by_likeness(attacked, filters, rng)["likeness, filter"].value == 1
    assert attackers.link(attacked).value > 0.25  # of at most 1/3


def write_people(file: Path, tests: int, trains: int) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(tests + trains):
        picture = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(picture, "PNG")
        split = "test" if number < tests else "train"
        rows.append({"image": picture.getvalue(), "split": split, "gender": str(number % 2), "ethnicity": "any",
                     "age": 20 + number % 40})  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), file)


@pytest.mark.slow
def test_each_pair_is_measured_once_and_outputs_of_one_noised_mean_have_the_ceilings_of_one_output(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_people(tmp_path / "people.parquet", tests=164, trains=40)
    toy = ["--source", str(tmp_path / "people.parquet"), "--output", str(tmp_path / "results"),
           "--model", str(tiny_model), "--originals", "64", "--public", "40", "--steps", "1", "--k", "1", "3",
           "--levels", "0", ".98", "--outputs", "one", "shared"]  # fmt: skip
    protection.main(toy)
    results = tmp_path / "results" / "results.jsonl"
    lines = {line["name"]: line for line in map(json.loads, results.read_text().splitlines())}
    assert set(lines) == {"1 0 one", "1 0.98 one", "3 0.98 one", "3 0.98 shared"}
    one, shared = lines["3 0.98 one"], lines["3 0.98 shared"]
    assert shared["pictures"] == 3 * one["pictures"] == 3 * one["groups"] <= 64 == lines["1 0.98 one"]["pictures"]
    members = [line["ceilings"]["membership_tpr_at_1"]["worst"] for line in (one, shared, lines["1 0.98 one"])]
    assert members[0] == members[1] < members[2]
    before = results.read_text()
    protection.main(toy)
    assert results.read_text() == before
    with pytest.raises(SystemExit, match="begun with 1"):
        protection.main([*toy, "--steps", "2"])
    capsys.readouterr()
    protection.main(["--output", str(tmp_path / "results"), "--table"])
    printed = capsys.readouterr().out
    assert "| 3, 0.98 |" in printed and "| originals |" in printed and printed.count("###") == 2
    for table in printed.split("\n\n"):
        assert len({line.count(" |") for line in table.splitlines() if line.startswith("|")}) <= 1
