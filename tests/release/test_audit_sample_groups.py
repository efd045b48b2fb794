"""Samples of a release with groups hold whole groups."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from anonymizer.release.audit_sample import draw_sample
from tests.support.groups import group_settings, photos, run_grouped


@pytest.mark.parametrize("outputs", ["one", "each"])
def test_a_group_is_in_a_sample_as_a_whole_or_not_at_all(tmp_path: Path, outputs: str) -> None:
    config = group_settings(photos(tmp_path / "in", 15), tmp_path / "out", groups={"outputs": outputs})
    release, drawn = run_grouped(config), Counter[str]()
    for seed in range(20):
        sample = draw_sample(release, config.source, 8, 7, np.random.default_rng(seed))
        groups = Counter(row["group"] for row in sample.ledger)
        assert set(groups.values()) == {3}
        assert len(groups) == 2
        assert all(
            row["sha256"] == public["sha256"] for row, public in zip(sample.ledger, sample.manifest, strict=True)
        )
        drawn.update(groups)
    assert len(drawn) == 5, "every group has its turn"
    assert len(draw_sample(release, config.source, 8, 2, np.random.default_rng(0)).ledger) == 3, "one group at least"
    assert len(draw_sample(release, config.source, 8, 99, np.random.default_rng(0)).ledger) == 15
