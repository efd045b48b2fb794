"""Groups of k on the command line: planned, made, and planned once more."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from flows.cli import main
from tests.support.releases import GARBAGE, HEX, folder_of, people, picture, tree


def anonymizer(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def options(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nine pictures in two folders, one broken and a label that one record has."""
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setenv("COLUMNS", "300")
    source = folder_of(people(tmp_path / "in", 9), {"a/broken.png": GARBAGE, "c/rare.png": picture(90)})
    sets = ["metrics.clip=none", "metrics.lpips=none", "boomerang.steps=2", "source.label=folder", "boomerang.k=3"]
    words = ["--source", str(source), "--output", str(tmp_path / "out"), "--level", "0.4", "--model", str(tiny_model)]
    return [*words, *(word for one in sets for word in ("--set", one))]


def test_plan_shows_groups_and_what_is_left_over_and_writes_nothing(tmp_path: Path, options: list[str]) -> None:
    before = tree(tmp_path / "in")
    document = json.loads(anonymizer("plan", *options, "--json").stdout)
    assert document["groups"] == {
        "k": 3, "outputs": "one", "by": ["label"], "records": 11, "shards": 1, "groups": 2, "largest": 3,
        "left_over": 4, "unusable": 1, "small_strata": 1, "images": 2, "share_left_over": 4 / 11,
    }  # fmt: skip
    done = anonymizer("plan", *options)
    for text in (
        "2 of 3 records, equal in label; one picture each, 2 in all",
        "4 of 11 records (36.4%); 1 cannot be used",
        "of label: 1 in fewer than 3 records",
        "better than by guessing, 1 in 3",
        "every record counts as a person",
    ):
        assert text in done.stdout
    assert tree(tmp_path / "in") == before
    assert not (tmp_path / "out").exists()


def test_a_policy_on_what_is_left_over_is_refused_by_plan_in_one_line(options: list[str]) -> None:
    done = anonymizer("plan", *options, "--set", "policy.groups.max_leftover=0.1")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: policy.groups.max_leftover: at most 0.1 of all, and 4 of 11 records have no")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_run_makes_one_picture_for_each_group_that_was_planned(
    tmp_path: Path, options: list[str], prefect_home: Path
) -> None:
    done = anonymizer("run", *options, "--json")
    assert done.exit_code == 0, done.output
    counts = json.loads(done.stdout)
    assert {name: counts[name] for name in ("read", "released", "failed", "waiting", "least_group")} == {
        "read": 11, "released": 6, "failed": 1, "waiting": 4, "least_group": 3
    }  # fmt: skip
    manifest = pq.read_table(tmp_path / "out" / "public" / "manifest.parquet").to_pylist()
    assert sorted(row["label"] for row in manifest) == ["a", "b"]
    document = json.loads(anonymizer("plan", *options, "--json").stdout)
    assert (document["groups"]["groups"], document["groups"]["left_over"], document["done"]) == (2, 5, 11)
