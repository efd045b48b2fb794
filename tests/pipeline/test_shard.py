"""The journey of one shard: every record ends once, whatever comes along with it."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from anonymizer.boomerang import Boomerang
from anonymizer.data import image_codec
from anonymizer.data.metadata import find_metadata
from anonymizer.noise import KeyedNoise
from anonymizer.records import Scores
from anonymizer.release.ledger import Ledger, ShardWriter
from anonymizer.storage.layout import Release
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import (
    GARBAGE,
    KEY,
    Broken,
    NotFinite,
    PlainScorer,
    Unscored,
    begin,
    folder_of,
    listing,
    manifest,
    one_shard,
    people,
    picture,
    plain,
    public_images,
    released,
    rows,
    run,
    settings,
    tree,
)

ENDS = {  # what a record is -> how it ends
    "good": ("released", None),
    "same": ("released", None),  # the same bytes under another id
    "empty": ("failed", "empty"),
    "truncated": ("failed", "truncated"),
    "garbage": ("failed", "not_an_image"),
    "duplicate": ("failed", "duplicate_id"),
    "vanished": ("failed", "unreadable"),
    "outside": ("failed", "outside_source"),
    "white": ("failed", "not_finite"),  # the model returns NaN for it
    "black": ("quarantined", "not_scored"),  # the scorer has nothing for it
}


def bytes_of(kind: str, number: int) -> bytes:
    fixed = {"empty": b"", "garbage": GARBAGE, "white": plain(255), "black": plain(0), "same": picture(0)}
    whole = picture(1000 + number)
    return fixed.get(kind, whole[: len(whole) * 2 // 3] if kind == "truncated" else whole)


def source_of(root: Path, kinds: list[str]) -> Path:
    """A listing with a good record, and then one of each kind in order."""
    files, items = {"first.png": picture(999)}, [{"image": "first.png", "id": "twice"}]
    for number, kind in enumerate(kinds):
        name = f"p{number}.png"
        files[name] = bytes_of(kind, number)
        path = f"../{name}" if kind == "outside" else f"gone/{name}" if kind == "vanished" else name
        items.append({"image": path, "id": "twice" if kind == "duplicate" else f"r{number}"})
    return listing(folder_of(root, files), items)


@given(
    kinds=st.lists(st.sampled_from(sorted(ENDS)), max_size=8),
    batch_size=st.integers(1, 9),
    shard_size=st.integers(1, 9),
    missing=st.sampled_from([Scores(), Scores(clip_similarity=math.nan, lpips=0.1), Scores(0.5, math.inf)]),
)
@hypothesis_settings(max_examples=25, deadline=None)
def test_every_record_ends_in_exactly_one_row(
    kinds: list[str], batch_size: int, shard_size: int, missing: Scores
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = settings(
            source_of(root / "in", kinds),
            root / "out",
            source={"id": "id"},
            run={"batch_size": batch_size, "shard_size": shard_size},
        )
        release = run(config, NotFinite(), Unscored(missing))
        found = rows(release)
        expected = [("released", None), *(ENDS[kind] for kind in kinds)]
        assert Counter((row["status"], row["reason"]) for row in found) == Counter(expected)
        assert len({row["record_id"] for row in found}) == len(found) == 1 + len(kinds)
        count = Counter(row["status"] for row in found)
        assert count["released"] + count["quarantined"] + count["failed"] == len(found)
        assert len(manifest(release)) == count["released"]
        pictures = [name for name in tree(release.public.path) if name.startswith("images/")]
        assert len(pictures) == count["released"]
        held = [row["output_id"] for row in found if row["status"] == "quarantined"]
        assert sorted(p.name for p in release.quarantine.children()) == sorted(f"{i}.png" for i in held)


@given(batch_size=st.integers(1, 7), shard_size=st.integers(1, 7), threads=st.integers(1, 4))
@hypothesis_settings(max_examples=8, deadline=None)
def test_batch_and_shard_size_do_not_change_a_records_picture(batch_size: int, shard_size: int, threads: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = people(root / "in", 6)
        alone = settings(source, root / "alone", run={"batch_size": 1, "shard_size": 1})
        together = settings(
            source, root / "together", run={"batch_size": batch_size, "shard_size": shard_size, "threads": threads}
        )
        one, other = run(alone), run(together)
        assert released(one) == released(other)
        assert public_images(one)[1].equals(public_images(other)[1])


@pytest.mark.parametrize("threads", [1, 3])
def test_decoding_waits_for_the_model_so_that_memory_stays_flat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Never more pictures in memory than two batches waiting, one on the model, and three being encoded."""
    batch_size, ahead = 2, []
    decoded, written = [], []
    decode, put = image_codec.decode, ShardWriter.put

    def decoding(*args: Any) -> Any:
        decoded.append(1)
        ahead.append(len(decoded) - len(written))
        return decode(*args)

    def putting(*args: Any) -> None:
        put(*args)
        written.append(1)

    monkeypatch.setattr(image_codec, "decode", decoding)
    monkeypatch.setattr(ShardWriter, "put", putting)
    config = settings(
        people(tmp_path / "in", 40), tmp_path / "out",
        run={"batch_size": batch_size, "shard_size": 40, "threads": threads},
    )  # fmt: skip
    run(config)
    assert len(decoded) == 40
    assert max(ahead) <= (2 + 1 + 3) * batch_size


def test_order_and_batch_do_not_change_a_records_picture(tmp_path: Path) -> None:
    items = [{"image": f"p{i}.png", "id": f"r{i}"} for i in range(5)]
    root = folder_of(tmp_path / "in", {f"p{i}.png": picture(i) for i in range(5)})
    listing(root, items, "forth.jsonl")
    listing(root, items[::-1], "back.jsonl")
    listing(root, items[2:3], "one.jsonl")
    all_of = [
        released(run(settings(root / f"{name}.jsonl", tmp_path / name, source={"id": "id"})))
        for name in ("forth", "back", "one")
    ]
    assert all_of[0] == all_of[1]
    assert all_of[2].items() <= all_of[0].items()


def test_an_output_is_the_boomerang_of_its_original_under_the_records_noise(tmp_path: Path) -> None:
    """Worked out step by step, without the shard."""
    source = folder_of(tmp_path / "in", {"one.png": picture(5)})
    config = settings(source, tmp_path / "out")
    release, ideal = run(config), IdealGaussian()
    x0 = image_codec.decode(picture(5), ideal.size).tensor[None]
    key = KEY.noise_key(KEY.source_hmac(picture(5)), config.fingerprint(ideal.digest))
    output = Boomerang(ideal, config.boomerang.sampler, 2).sample(x0, 0.4, KeyedNoise([key]))
    (row,) = rows(release)
    name = manifest(release)["file"][0].as_py()
    assert (Path(release.public.path) / name).read_bytes() == image_codec.encode(output[0]).data
    (scores,) = PlainScorer().score(x0, output)
    assert row["clip_similarity"] == pytest.approx(scores.clip_similarity, abs=1e-6)
    assert row["lpips"] == pytest.approx(scores.lpips, abs=1e-6)
    assert (row["t_boom"], row["steps"], row["source_hmac"]) == (400, 2, KEY.source_hmac(picture(5)))


def test_nan_from_the_model_fails_its_record_and_no_other(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"a.png": picture(1), "b.png": plain(255), "c.png": picture(2)})
    config = settings(source, tmp_path / "out", run={"batch_size": 3, "shard_size": 3})
    release = run(config, NotFinite())
    ends = {row["record_id"]: (row["status"], row["reason"], row["output_id"]) for row in rows(release)}
    assert ends["b.png"] == ("failed", "not_finite", None)
    alone = settings(folder_of(tmp_path / "in2", {"a.png": picture(1), "c.png": picture(2)}), tmp_path / "out2")
    assert released(release) == released(run(alone))


@pytest.mark.parametrize("missing", [Scores(), Scores(lpips=0.1), Scores(math.nan, 0.1), Scores(0.9, math.inf)])
def test_an_output_without_a_score_is_quarantined(tmp_path: Path, missing: Scores) -> None:
    source = folder_of(tmp_path / "in", {"a.png": picture(1), "b.png": plain(0)})
    release = run(settings(source, tmp_path / "out"), scorer=Unscored(missing))
    row = next(row for row in rows(release) if row["record_id"] == "b.png")
    assert (row["status"], row["reason"]) == ("quarantined", "not_scored")
    holding = [name for name in tree(release.root.path) if row["output_id"] in name]
    assert holding == [f"restricted/quarantine/{row['output_id']}.png"]
    assert row["output_id"].encode() not in b"".join(tree(release.public.path).values())


def test_a_score_that_is_not_configured_is_not_required(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"b.png": plain(0)})
    config = settings(source, tmp_path / "out", metrics={"clip": "none", "lpips": "none"})
    assert [row["status"] for row in rows(run(config, scorer=Unscored(Scores())))] == ["released"]


class Miscounting(PlainScorer):
    def __init__(self, change: int) -> None:
        self.change = change

    def score(self, reference: torch.Tensor, outputs: torch.Tensor) -> list[Scores]:
        return (super().score(reference, outputs) * 2)[: len(outputs) + self.change]


@pytest.mark.parametrize("change", [-1, 1])
def test_a_scorer_that_miscounts_is_an_error_and_not_a_row(tmp_path: Path, change: int) -> None:
    config = settings(people(tmp_path / "in", 2), tmp_path / "out")
    release = begin(config)
    with pytest.raises(ValueError, match="it must give one for each"):
        one_shard(config, 0, scorer=Miscounting(change))
    assert Ledger.open(release).read_shard(0) is None


def test_a_broken_model_leaves_the_shard_uncommitted_and_a_second_run_finishes_it(tmp_path: Path) -> None:
    source = people(tmp_path / "in", 6)
    whole = {"batch_size": 2, "shard_size": 6}
    config = settings(source, tmp_path / "out", run=whole)
    release = begin(config)
    with pytest.raises(RuntimeError, match="out of memory"):
        one_shard(config, 0, Broken(after=3))  # in its second batch
    assert Ledger.open(release).read_shard(0) is None
    assert not release.public.exists()
    undisturbed = run(settings(source, tmp_path / "undisturbed", run=whole))
    assert public_images(run(config))[0] == public_images(undisturbed)[0]
    assert public_images(release)[1].equals(public_images(undisturbed)[1])


def test_files_that_vanish_or_change_after_planning_become_rows(tmp_path: Path) -> None:
    source = people(tmp_path / "in", 4)
    config = settings(source, tmp_path / "out")
    begin(config)
    (source / "a" / "person 0.png").unlink()
    (source / "a" / "person 2.png").write_bytes(picture(77, (20, 20)))
    ends = {row["record_id"]: row["reason"] for row in rows(run(config))}
    assert ends == {"a/person 0.png": "unreadable", "a/person 2.png": "changed"} | dict.fromkeys(
        ("b/person 1.png", "b/person 3.png")
    )


def test_progress_counts_up_to_every_record(tmp_path: Path) -> None:
    source = people(tmp_path / "in", 5)
    (source / "bad.png").write_bytes(GARBAGE)
    config = settings(source, tmp_path / "out", run={"shard_size": 9})
    begin(config)
    counts: list[int] = []
    one_shard(config, 0, progress=counts.append)
    assert counts == sorted(counts)
    assert counts[-1] == 6


@pytest.mark.parametrize(("image", "size"), [("png", "model"), ("jpeg", "original"), ("webp", "original")])
def test_the_ledger_says_what_was_written(tmp_path: Path, image: str, size: str) -> None:
    config = settings(people(tmp_path / "in", 3), tmp_path / "out", output={"image": image, "size": size})
    release = run(config)
    side: Any = 8  # both the model's size and the shorter side of the originals, which are cropped
    for row in manifest(release).to_pylist():
        data = (Path(release.public.path) / row["file"]).read_bytes()
        assert (row["bytes"], row["width"], row["height"]) == (len(data), side, side)
        assert find_metadata(data) == []


def test_nothing_is_written_outside_the_release(tmp_path: Path) -> None:
    source = people(tmp_path / "in", 3)
    before = tree(source)
    run(settings(source, tmp_path / "out"))
    assert tree(source) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]
    assert sorted(p.name for p in Release.at(str(tmp_path / "out")).root.children()) == ["public", "restricted"]
