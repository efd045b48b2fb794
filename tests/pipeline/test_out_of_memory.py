"""A device without memory: smaller batches, the same pictures, and an end for what never fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anonymizer.backbones import Denoised
from anonymizer.errors import ModelError
from anonymizer.records import Scores
from anonymizer.release.ledger import Ledger
from anonymizer.release.profiling import Profile
from anonymizer.storage.layout import Release
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import (
    PlainScorer,
    begin,
    folder_of,
    one_shard,
    people,
    picture,
    public_images,
    released,
    rows,
    run,
    settings,
)

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of ...")


class Small(IdealGaussian):
    """A model with room for so many values at once."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.refused: list[int] = []

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        if zt.numel() > self.room:
            self.refused.append(len(zt))
            raise FULL
        return super().predict(zt, t, condition)


class SmallScorer(PlainScorer):
    def score(self, reference: torch.Tensor, outputs: torch.Tensor) -> list[Scores]:
        if len(outputs) > 2:
            raise FULL
        return super().score(reference, outputs)


ONE = 3 * 8 * 8


def profile_of(release: Release) -> Profile:
    found = Profile.merge(Ledger.open(release).read_profiles())
    assert found is not None
    return found


@pytest.mark.usefixtures("either_overlap")
def test_batches_are_halved_until_they_fit_and_stay_so_for_the_shard(tmp_path: Path) -> None:
    source, whole = people(tmp_path / "in", 24), {"batch_size": 8, "shard_size": 24}
    model = Small(2 * ONE)
    release = run(settings(source, tmp_path / "out", run=whole), model)
    undisturbed = run(settings(source, tmp_path / "undisturbed", run=whole))
    assert public_images(release)[0] == public_images(undisturbed)[0]
    assert public_images(release)[1].equals(public_images(undisturbed)[1])
    assert model.refused == [8, 4, 4]  # of the first batch only: those after it are of two
    profile = profile_of(release)
    assert (profile.batch_size, profile.halved) == (2, 3)
    assert (profile_of(undisturbed).batch_size, profile_of(undisturbed).halved) == (8, 0)


@pytest.mark.usefixtures("either_overlap")
def test_a_scorer_without_memory_halves_its_batch_too(tmp_path: Path) -> None:
    source, whole = people(tmp_path / "in", 9), {"batch_size": 4, "shard_size": 9}
    found = released(run(settings(source, tmp_path / "out", run=whole), scorer=SmallScorer()))
    assert found == released(run(settings(source, tmp_path / "undisturbed", run=whole)))
    assert len(found) == 9


def test_where_not_even_one_picture_fits_the_shard_fails_with_one_line(tmp_path: Path) -> None:
    config = settings(people(tmp_path / "in", 4), tmp_path / "out")
    release = begin(config)
    with pytest.raises(
        ModelError, match=r"^model.id: one picture of 8 x 8 is more than cpu has memory for: set [^\n]+$"
    ):
        one_shard(config, 0, Small(ONE - 1))
    assert Ledger.open(release).read_shard(0) is None
    run(config)  # on a device with more memory
    assert len(released(release)) == 4


def test_a_picture_that_never_fits_fails_alone_where_others_are_smaller(tmp_path: Path) -> None:
    files = {"small.png": picture(1, (8, 8)), "large.png": picture(2, (40, 40)), "other.png": picture(3, (10, 9))}
    config = settings(
        folder_of(tmp_path / "in", files), tmp_path / "out", source={"fit": "tiles"}, run={"shard_size": 3}
    )

    class Room(IdealGaussian):
        def decode(self, z0: torch.Tensor) -> torch.Tensor:
            if z0.numel() > 3 * 20 * 20:
                raise FULL
            return z0

    ends = {row["record_id"]: (row["status"], row["reason"]) for row in rows(run(config, Room()))}
    assert ends == {
        "small.png": ("released", None),
        "other.png": ("released", None),
        "large.png": ("failed", "out_of_memory"),
    }
