"""``import anonymizer``: a few names, loaded when first used, and a release that was opened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import anonymizer
from anonymizer.errors import OutputError
from anonymizer.release import publish
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import GARBAGE, folder_of, picture, run, settings


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; begun = time.perf_counter(); import anonymizer; taken = time.perf_counter() - begun\n"
        "heavy = {'torch', 'numpy', 'pandas', 'prefect', 'pyarrow', 'PIL', 'pydantic'} & set(sys.modules)\n"
        "print(sorted(heavy), [name for name in sys.modules if name.startswith('anonymizer.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


@pytest.mark.parametrize("name", anonymizer.__all__)
def test_every_public_name_loads_and_is_documented(name: str) -> None:
    value = getattr(anonymizer, name)
    assert callable(value)
    assert value.__doc__


def test_a_public_function_stays_when_the_room_of_its_name_is_imported() -> None:
    import anonymizer.augment
    import anonymizer.enhance
    import anonymizer.release.plan

    for name in ("augment", "enhance", "release"):
        assert callable(getattr(anonymizer, name))
    from anonymizer.augment import LocalSamples

    assert LocalSamples.__module__ == "anonymizer.augment"


def test_a_name_that_is_not_public_is_one_line() -> None:
    with pytest.raises(AttributeError, match=r"no public name 'sampels': see anonymizer\.__all__"):
        anonymizer.sampels  # noqa: B018


def test_an_opened_release_gives_tables_and_images(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"a.png": picture(0), "b.png": picture(1), "c.png": GARBAGE})
    release = run(settings(source, tmp_path / "out"), IdealGaussian())
    opened = anonymizer.open_release(str(release.root))
    assert list(opened.ledger["status"]) == ["released", "released", "failed"]
    assert set(opened.manifest.index) == set(opened.ledger["output_id"].dropna())
    images = dict(opened.images())
    assert list(images) == list(opened.manifest.index)
    for output_id, image in images.items():
        assert image.mode == "RGB" and image.size == (
            opened.manifest.width[output_id],
            opened.manifest.height[output_id],
        )
        assert np.asarray(image).std() > 0
    assert repr(opened).endswith(", 2 images)")
    with pytest.raises(OutputError, match=r"was not audited: call anonymizer\.audit first"):
        opened.figures  # noqa: B018


def test_a_public_half_opens_without_its_ledger(tmp_path: Path) -> None:
    release = run(settings(folder_of(tmp_path / "in", {"a.png": picture(0)}), tmp_path / "out"), IdealGaussian())
    assert publish.read_status(release) is not None
    opened = anonymizer.open_release(str(release.public))
    assert len(opened.manifest) == len(dict(opened.images())) == 1
    with pytest.raises(OutputError, match="is a public half: open the whole release"):
        opened.ledger  # noqa: B018


def test_a_folder_that_holds_no_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"has no manifest\.parquet: name a finished release"):
        anonymizer.open_release(str(tmp_path))
