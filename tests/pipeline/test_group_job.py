"""Groups in a shard: each output is drawn from the mean of its group, and belongs to all of it or to one by lot."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from anonymizer.boomerang import Boomerang
from anonymizer.crypto import signing
from anonymizer.data import image_codec
from anonymizer.errors import IntegrityError
from anonymizer.noise import KeyedNoise
from anonymizer.records import Scores
from anonymizer.release.ledger import Ledger
from anonymizer.storage.layout import Release
from tests.support.groups import begin_grouped, group_id, group_settings, in_threes, photos
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import (
    GARBAGE,
    KEY,
    NotFinite,
    PlainScorer,
    folder_of,
    listing,
    one_shard,
    picture,
    plain,
    rows,
    tree,
)


def commit(config: Any, assign: Any = in_threes, backbone: Any = None, scorer: Any = None) -> list[dict[str, Any]]:
    release = begin_grouped(config, assign, backbone)
    one_shard(config, 0, backbone, scorer)
    return rows(release)


def staged(config: Any) -> dict[str, bytes]:
    """Output id -> encoded output."""
    files = tree(Release.at(config.output.uri).staging.path)
    return {Path(name).stem: data for name, data in files.items()}


def test_an_output_is_the_boomerang_of_the_mean_of_its_group(tmp_path: Path) -> None:
    """Worked out step by step, without the shard."""
    config = group_settings(photos(tmp_path / "in", 3), tmp_path / "out")
    found, ideal = commit(config), IdealGaussian()
    x0 = torch.stack([image_codec.decode(picture(i), ideal.size).tensor for i in range(3)])
    content = KEY.group_hmac(group_id("group 0"), [KEY.source_hmac(picture(i)) for i in range(3)], 0)
    noise = KeyedNoise([KEY.noise_key(content, config.fingerprint(ideal.digest))])
    output = Boomerang(ideal, config.boomerang.sampler, 2).sample(x0.mean(0, keepdim=True), 0.4, noise)
    (data,) = staged(config).values()
    assert data == image_codec.encode(output[0]).data
    assert {(row["group"], row["group_size"], row["status"]) for row in found} == {(group_id("group 0"), 3, "released")}
    assert len({row["output_id"] for row in found}) == len({row["sha256"] for row in found}) == 1


def test_a_score_of_a_group_is_that_of_its_nearest_member(tmp_path: Path) -> None:
    config = group_settings(photos(tmp_path / "in", 3), tmp_path / "out")
    found, ideal = commit(config), IdealGaussian()
    (data,) = staged(config).values()
    output = image_codec.decode(data, ideal.size).tensor
    each = [PlainScorer().score_one(image_codec.decode(picture(i), ideal.size).tensor, output) for i in range(3)]
    for row in found:
        assert row["lpips"] == pytest.approx(min(scores.lpips or 0 for scores in each), abs=0.005)
        assert row["clip_similarity"] == pytest.approx(max(scores.clip_similarity or 0 for scores in each), abs=0.005)


def test_what_is_left_over_waits_and_nothing_is_made_of_it(tmp_path: Path) -> None:
    config = group_settings(photos(tmp_path / "in", 5), tmp_path / "out")
    found = commit(config)
    assert Counter(row["status"] for row in found) == {"released": 3, "waiting": 2}
    for row in found:
        if row["status"] == "waiting":
            assert (row["reason"], row["attempts"], row["output_id"], row["group"]) == ("too_few_alike", 0, None, None)
    assert len(staged(config)) == 1


@pytest.mark.parametrize("outputs", ["one", "each"])
def test_a_member_that_cannot_be_used_leaves_before_the_mean(tmp_path: Path, outputs: str) -> None:
    """Its group goes on without it, as if it had never been there, while k are left; below that the others wait."""
    source = photos(tmp_path / "in", 7)
    (source / "p0.png").write_bytes(GARBAGE)
    sections = {"groups": {"outputs": outputs}}
    config = group_settings(source, tmp_path / "out", **sections)
    found = commit(config, lambda entries: {e.record_id: "first" if e.record_id < "p4" else "second" for e in entries})
    ends = {row["record_id"]: (row["status"], row["group_size"]) for row in found}
    assert ends == {"p0.png": ("failed", None)} | {f"p{i}.png": ("released", 3) for i in range(1, 7)}
    alone = group_settings(photos(tmp_path / "in2", 7), tmp_path / "out2", **sections)
    (tmp_path / "in2" / "p0.png").unlink()
    commit(alone, lambda entries: {e.record_id: "first" if e.record_id < "p4" else "second" for e in entries})
    assert staged(config) == staged(alone)
    small = group_settings(source, tmp_path / "small", **sections)
    ends = {row["record_id"]: row["status"] for row in commit(small)}
    assert [ends[f"p{i}.png"] for i in range(7)] == ["failed", *2 * ["waiting"], *3 * ["released"], "waiting"]


def test_one_output_for_each_is_dealt_by_the_key_and_not_by_order_or_name(tmp_path: Path) -> None:
    names = {f"{'zyx'[i]}.png": picture(i) for i in range(3)}
    config = group_settings(folder_of(tmp_path / "in", names), tmp_path / "out", groups={"outputs": "each"})
    found = {row["source_hmac"]: row["output_id"] for row in commit(config)}
    turned = folder_of(tmp_path / "in2", {f"{'xyz'[i]}.png": picture(i) for i in range(3)})
    other = group_settings(turned, tmp_path / "out2", groups={"outputs": "each"})
    assert {row["source_hmac"]: row["output_id"] for row in commit(other)} == found
    assert len(set(found.values())) == len(set(staged(config).values())) == 3
    assert list(found.values()) != sorted(found.values()) or list(found) != sorted(found)


def test_batches_do_not_matter_to_outputs_of_groups(tmp_path: Path) -> None:
    source = photos(tmp_path / "in", 24)

    def assign(entries: Any) -> dict[str, str]:  # groups of 3, 4 and 5
        return {entry.record_id: f"g{min(i // 4, 3) if i < 15 else 4 + i % 2}" for i, entry in enumerate(entries)}

    made = []
    for batch in (1, 2, 5, 32):
        config = group_settings(
            source, tmp_path / f"out{batch}", groups={"outputs": "each"}, run={"batch_size": batch, "shard_size": 99}
        )
        commit(config, assign)
        made.append(staged(config))
    assert made[0] == made[1] == made[2] == made[3]
    assert len(made[0]) == 24


def test_copies_of_one_original_count_once(tmp_path: Path) -> None:
    files = {"a.png": picture(1), "b.png": picture(1), "c.png": picture(2), "d.png": picture(3)}
    config = group_settings(folder_of(tmp_path / "in", files), tmp_path / "out")
    ends = {
        row["record_id"]: row["status"]
        for row in commit(config, lambda es: dict.fromkeys([e.record_id for e in es], "g"))
    }
    assert sorted(ends.values()) == ["released", "released", "released", "waiting"]
    assert {ends["a.png"], ends["b.png"]} == {"released", "waiting"}


@pytest.mark.parametrize("outputs", ["one", "each"])
def test_nan_from_the_model_fails_its_whole_group_and_no_other(tmp_path: Path, outputs: str) -> None:
    files = {f"p{i}.png": picture(i) for i in range(6)} | {"p1.png": plain(255)}
    config = group_settings(folder_of(tmp_path / "in", files), tmp_path / "out", groups={"outputs": outputs})
    found = commit(config, backbone=NotFinite())
    ends = [(row["status"], row["reason"], row["group"] is None) for row in sorted(found, key=lambda r: r["record_id"])]
    assert ends == 3 * [("failed", "not_finite", True)] + 3 * [("released", None, False)]


class Leveled(PlainScorer):
    """Finds the output that is drawn from a group with a black member too close below level 0.7, and no other."""

    level = 0.0

    def score_one(self, original: torch.Tensor, output: torch.Tensor) -> Scores:
        is_close = float(original.max()) < -0.9 and self.model.level < 0.7
        return Scores(clip_similarity=0.5, lpips=0.0 if is_close else 0.5)

    def __init__(self, model: Any) -> None:
        self.model = model


class LevelRecorder(IdealGaussian):
    level = 0.0

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Any:
        self.level = max(t / self.T, self.level if self.calls and self.calls[-1] > t else 0)
        return super().predict(zt, t, condition)


@pytest.mark.parametrize("outputs", ["one", "each"])
def test_one_output_that_is_too_close_has_its_whole_group_drawn_again(
    tmp_path: Path, outputs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", signing.generate_key_pair().private_bytes.decode())
    files = {f"p{i}.png": picture(i) for i in range(6)} | {"p0.png": plain(0)}
    model = LevelRecorder()
    config = group_settings(
        folder_of(tmp_path / "in", files), tmp_path / "out", groups={"outputs": outputs},
        policy={"scores": {"lpips": {"min": 0.1}}, "escalate": [0.5, 0.8]}, run={"batch_size": 3, "shard_size": 9},
    )  # fmt: skip
    found = sorted(commit(config, backbone=model, scorer=Leveled(model)), key=lambda row: row["record_id"])
    assert [(row["status"], row["level"], row["attempts"]) for row in found] == 3 * [("released", 0.8, 3)] + 3 * [
        ("released", 0.4, 1)
    ]
    assert [one["level"] for one in json.loads(found[1]["earlier"])] == [0.4, 0.5]
    assert sum(row["seconds"] for row in found) > 0


class Picky(PlainScorer):
    """Finds outputs that are brighter on the whole than a bound too far."""

    bound = 0.0

    def score_one(self, original: torch.Tensor, output: torch.Tensor) -> Scores:
        return Scores(clip_similarity=0.5, lpips=0.9 if float(output.mean()) > self.bound else 0.1)


def test_an_output_that_is_quarantined_takes_the_record_it_was_dealt_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", signing.generate_key_pair().private_bytes.decode())
    sections: dict[str, Any] = {"groups": {"outputs": "each"}}
    config = group_settings(photos(tmp_path / "in", 3), tmp_path / "out", **sections)
    commit(config)
    means = sorted(float(image_codec.decode(data, 8).tensor.mean()) for data in staged(config).values())
    scorer = Picky()
    scorer.bound = (means[1] + means[2]) / 2
    policy = {"scores": {"lpips": {"max": 0.5}}}
    again = group_settings(tmp_path / "in", tmp_path / "again", policy=policy, **sections)
    found = commit(again, scorer=scorer)
    assert Counter((row["status"], row["reason"]) for row in found) == {
        ("released", None): 2,
        ("quarantined", "too_far"): 1,
    }
    scorer.bound = -2
    one = group_settings(tmp_path / "in", tmp_path / "one", policy=policy)
    assert {row["status"] for row in commit(one, scorer=scorer)} == {"quarantined"}


def people_with(root: Path, **columns: list[Any]) -> Path:
    """A listing of pictures with columns."""
    count = len(next(iter(columns.values())))
    folder_of(root, {f"p{i}.png": picture(i) for i in range(count)})
    return listing(root, [{"image": f"p{i}.png"} | {n: v[i] for n, v in columns.items()} for i in range(count)])


def test_a_generalised_column_is_a_range_around_the_values_of_its_group(tmp_path: Path) -> None:
    source = people_with(tmp_path / "in", age=[31, 27, 44, 8, 8, 8])
    config = group_settings(
        source, tmp_path / "out", source={"carry": ["age"]}, groups={"by": [], "generalise": {"age": "range"}}
    )
    found = sorted(commit(config), key=lambda row: row["record_id"])
    assert [json.loads(row["carried"])["age"] for row in found] == 3 * ["20 to 50"] + 3 * ["8"]


@pytest.mark.parametrize("value", ["old", None, True, "nan"])
def test_a_value_that_is_no_number_fails_its_record_and_leaves_the_range(tmp_path: Path, value: Any) -> None:
    source = people_with(tmp_path / "in", age=[31, value, 44, 8])
    config = group_settings(
        source, tmp_path / "out", source={"carry": ["age"]}, groups={"by": [], "generalise": {"age": "range"}}
    )
    found = sorted(
        commit(config, lambda es: dict.fromkeys([e.record_id for e in es], "g")), key=lambda r: r["record_id"]
    )
    assert [(row["status"], row["reason"]) for row in found].count(("failed", "bad_metadata")) == 1
    ranges = {json.loads(row["carried"])["age"] for row in found if row["status"] == "released"}
    assert ranges == {"0 to 60"}


@pytest.mark.parametrize(
    ("columns", "source"),
    [
        ({"kind": ["cat", "cat", "dog"]}, {"label": "kind"}),
        ({"kind": ["cat", "cat", "dog"]}, {"restricted": ["kind"]}),
        ({"who": ["Ann", "ann ", "Bob"]}, {"subject": "who"}),
    ],
)
def test_a_group_that_is_not_alike_or_holds_one_person_twice_is_never_sampled(
    tmp_path: Path, columns: dict[str, list[str]], source: dict[str, Any]
) -> None:
    groups = {"by": ["kind"]} if "restricted" in source else {}
    config = group_settings(people_with(tmp_path / "in", **columns), tmp_path / "out", source=source, groups=groups)
    release = begin_grouped(config)
    with pytest.raises(IntegrityError, match="the members of a group differ"):
        one_shard(config, 0)
    assert Ledger.open(release).read_shard(0) is None
