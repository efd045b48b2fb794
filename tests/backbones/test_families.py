"""`anonymizer run` from the command line, with a pipeline folder of each family, prompts and labels included.

ANONYMIZER_TEST_PHOTOS names a Parquet file (columns ``image``, ``gender``, ``split``) to run on in place of invented
photos: its rows whose split is ``test``.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from diffusers import DDPMScheduler, EulerAncestralDiscreteScheduler, UNet2DModel
from PIL import Image

from anonymizer.storage.layout import Release
from flows.cli import main
from tests.support import tiny_flow_pipelines, tiny_pipelines
from tests.support.releases import HEX, picture

LABELS = ("female", "male")
PROMPT = ["model.prompt=a photo of a {gender}", "source.restricted=[gender]"]
GUIDED = [*PROMPT, "model.guidance=4", "model.negative_prompt=a cat"]
LABEL = ["source.label=gender", "model.condition=label", "model.guidance=2"]


def classes(folder: Path) -> Path:
    """A model of pixels that knows two classes, and none."""
    unet = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, num_class_embeds=3,
    )  # fmt: skip
    unet.save_pretrained(folder / "unet")
    DDPMScheduler(1000).save_pretrained(folder / "scheduler")
    index = {"_class_name": "DDPMPipeline", "id2label": dict(enumerate(LABELS))}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def dit(folder: Path) -> Path:
    return tiny_flow_pipelines.dit(folder, names=dict(enumerate(LABELS + tuple(f"class {i}" for i in range(2, 1000)))))


def turbo(folder: Path) -> Path:
    return tiny_pipelines.sd1(
        folder, EulerAncestralDiscreteScheduler(**tiny_pipelines.SCHEDULE, timestep_spacing="trailing", steps_offset=1)
    )


FAMILIES: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "pixels with classes": (classes, LABEL),
    "Stable Diffusion 1": (tiny_pipelines.sd1, GUIDED),
    "Stable Diffusion 2, v": (tiny_pipelines.sd2, GUIDED),
    "Stable Diffusion XL": (tiny_pipelines.sdxl, GUIDED),
    "LCM": (tiny_pipelines.lcm, [*PROMPT, "model.guidance=8", "boomerang.sampler=lcm", "boomerang.steps=4"]),
    "Turbo": (turbo, [*PROMPT, "boomerang.sampler=ddpm", "boomerang.steps=2"]),
    "Hyper-SD": (turbo, [*PROMPT, "boomerang.sampler=tcd", "boomerang.steps=4"]),
    "DiT": (dit, LABEL),
    "Stable Diffusion 3": (tiny_flow_pipelines.sd3, [*GUIDED, "model.size=16"]),
    "FLUX": (tiny_flow_pipelines.flux, [*PROMPT, "model.size=16", "model.guidance=3.5"]),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if path := os.environ.get("ANONYMIZER_TEST_PHOTOS"):
        return Path(path)
    rows = {
        "image": [picture(i, (30, 20 + i)) for i in range(5)],
        "gender": [LABELS[i % 2] for i in range(5)],
        "split": ["test"] * 4 + ["train"],
    }
    path = tmp_path_factory.mktemp("photos") / "photos.parquet"
    pq.write_table(pa.table(rows), path)
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_each_family_makes_a_release(
    name: str, photos: Path, tmp_path: Path, prefect_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    make, more = FAMILIES[name]
    sets = ["source.where.split=test", "source.drop=['*']", "metrics.clip=none", "metrics.lpips=none",
            "boomerang.steps=3", *more]  # fmt: skip
    words = ["run", "--source", photos, "--output", tmp_path / "out", "--level", "0.6", "--model", make(tmp_path / "m"),
             "--json", *(word for one in sets for word in ("--set", one))]  # fmt: skip
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["released"] == summary["read"] > 3
    release = Release.at(str(tmp_path / "out"))
    table = pq.read_table(release.manifest.path)
    assert "gender" not in table.column_names
    assert (table.column("label").null_count == 0) == ("source.label=gender" in more)
    for file in table.column("file").to_pylist():
        image: Any = Image.open(io.BytesIO((Path(release.public.path) / file).read_bytes()))
        assert image.getextrema() != ((0, 0),) * 3  # no black picture
