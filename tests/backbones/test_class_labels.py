"""Classes by name, synonym and number; and pixel models that know them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from anonymizer.backbones import load_backbone
from anonymizer.backbones.class_labels import ClassLabels
from anonymizer.boomerang import Boomerang
from anonymizer.config import ModelConfig
from anonymizer.errors import ModelError, RecordError
from anonymizer.noise import FORWARD, KeyedNoise
from anonymizer.records import Reason

NAMES = {"0": "airplane, plane", "1": "car", "2": "7"}
Make = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Make:
    def make(embeddings: int | None = 4, names: dict[str, str] | None = NAMES, **more: Any) -> Path:
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 8), norm_num_groups=4,
            layers_per_block=1, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
            num_class_embeds=embeddings, **more,
        )  # fmt: skip
        if embeddings:
            unet.class_embedding.weight.data *= 5  # so that an untrained network depends on its class
        schedule = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", clip_sample=False)
        DDPMPipeline(unet, schedule).save_pretrained(tmp_path / "model")
        index = tmp_path / "model/model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | ({"id2label": names} if names else {})))
        return tmp_path / "model"

    return make


def load(path: Path, **more: Any) -> Any:
    return load_backbone(ModelConfig(id=str(path), device="cpu", **more))


def network(path: Path, zt: torch.Tensor, t: int, labels: list[int]) -> torch.Tensor:
    unet = UNet2DModel.from_pretrained(path / "unet", low_cpu_mem_usage=False)
    with torch.no_grad():
        return unet(zt, t - 1, class_labels=torch.tensor(labels)).sample


def test_a_class_goes_by_name_synonym_and_number():
    classes = ClassLabels.from_config(4, NAMES)
    labels = ["airplane", "plane", "airplane, plane", " Car ", "PLANE", "0", "1"]
    assert classes.indices_of(labels).tolist() == [0, 0, 0, 1, 0, 0, 1]
    assert classes.indices_of(labels).dtype == torch.long


def test_a_name_counts_before_a_number():
    assert ClassLabels.from_config(9, {"0": "3", "3": "cat"}).index_of("3") == 0


@pytest.mark.parametrize("label", ["truck", "", "3", "-1", "1.0", "²", "1_0", "ai", ","])
def test_what_is_no_class_is_a_reason(label):
    with pytest.raises(RecordError) as caught:
        ClassLabels.from_config(4, NAMES).index_of(label)
    assert caught.value.reason is Reason.NO_CONDITION
    assert label == "" or label not in str(caught.value)


@pytest.mark.parametrize(
    ("embeddings", "names", "count", "null"),
    [(4, NAMES, 3, 3), (3, NAMES, 3, None), (10, None, 10, None), (10, {}, 10, None), (9, NAMES, 3, None)],
)
def test_one_embedding_more_than_names_stands_for_none(embeddings, names, count, null):
    classes = ClassLabels.from_config(embeddings, names)
    assert (classes.count, classes.null) == (count, null)


def test_without_names_numbers_are_known():
    classes = ClassLabels.from_config(10, None)
    assert classes.indices_of(["0", "9"]).tolist() == [0, 9]
    with pytest.raises(RecordError):
        classes.index_of("10")


def test_a_model_is_conditioned_on_the_class_of_each_row(folder):
    path, zt = folder(), torch.randn(2, 3, 8, 8)
    backbone = load(path, condition="label")
    assert backbone.condition_kind == "class"
    guided = backbone.predict(zt, 400, backbone.condition(["car", "plane"])).eps
    torch.testing.assert_close(guided, network(path, zt, 400, [1, 0]), atol=1e-5, rtol=1e-5)


def test_without_a_condition_the_class_is_none(folder):
    path, zt = folder(), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(load(path).predict(zt, 400).eps, network(path, zt, 400, [3, 3]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 4.0])
def test_guidance_leads_from_no_class_past_the_class(folder, guidance):
    path, zt = folder(), torch.randn(2, 3, 8, 8)
    backbone = load(path, guidance=guidance, condition="label")
    without, within = (network(path, zt, 400, labels) for labels in ([3, 3], [1, 0]))
    guided = backbone.predict(zt, 400, backbone.condition(["car", "plane"])).eps
    torch.testing.assert_close(guided, without + guidance * (within - without), atol=1e-5, rtol=1e-5)


def test_guidance_takes_one_pass_of_the_network(folder, monkeypatch):
    backbone, rows = load(folder(), guidance=2.0, condition="label"), []
    forward = backbone.unet.forward
    monkeypatch.setattr(backbone.unet, "forward", lambda z, t, **more: rows.append(len(z)) or forward(z, t, **more))
    backbone.predict(torch.randn(3, 3, 8, 8), 400, backbone.condition(["0", "1", "2"]))
    assert rows == [6]


def test_a_row_does_not_depend_on_its_batch(folder):
    backbone, zt = load(folder(), guidance=2.0, condition="label"), torch.randn(2, 3, 8, 8)
    both = backbone.predict(zt, 600, backbone.condition(["car", "plane"]))
    for row, label in enumerate(["car", "plane"]):
        separate = backbone.predict(zt[row : row + 1], 600, backbone.condition([label]))
        torch.testing.assert_close(both.z0[row : row + 1], separate.z0, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(both.eps[row : row + 1], separate.eps, atol=1e-5, rtol=1e-5)


def test_algorithm_1_is_diffusers_loop_with_classes(folder):
    path, keys = folder(), KeyedNoise([bytes([row]) * 16 for row in range(2)])
    backbone, scheduler = load(path, condition="label"), DDPMScheduler.from_pretrained(path / "scheduler")
    x0 = torch.rand(2, 3, 8, 8) * 2 - 1
    zt = scheduler.add_noise(x0, keys(FORWARD, x0), torch.full((2,), 29))
    for t in range(29, -1, -1):
        # diffusers draws its own noise, which is taken out again: what is left is the mean.
        drawn = torch.randn(zt.shape, generator=torch.Generator().manual_seed(t))
        deviation = scheduler._get_variance(t) ** 0.5 if t else 0.0
        out = network(path, zt, t + 1, [1, 0])
        mean = scheduler.step(out, t, zt, generator=torch.Generator().manual_seed(t)).prev_sample - deviation * drawn
        zt = mean + deviation * keys(t + 1, zt)
    ours = Boomerang(backbone).sample(x0, 0.03, keys, backbone.condition(["car", "plane"]))
    torch.testing.assert_close(ours, zt.clamp(-1, 1), atol=1e-3, rtol=0)


def test_an_unknown_label_is_a_reason(folder):
    with pytest.raises(RecordError) as caught:
        load(folder(), condition="label").condition(["car", "zeppelin"])
    assert caught.value.reason is Reason.NO_CONDITION


def test_without_a_class_of_none_each_record_needs_one(folder):
    backbone, zt = load(folder(embeddings=3)), torch.randn(1, 3, 8, 8)
    assert backbone.predict(zt, 400, backbone.condition(["car"])).eps.isfinite().all()
    with pytest.raises(ModelError, match=r"model\.condition: the model .* needs a class for each record"):
        backbone.predict(zt, 400)


def test_guidance_needs_a_class_of_none(folder):
    backbone = load(folder(embeddings=3), guidance=2.0, condition="label")
    with pytest.raises(ModelError, match=r"model\.guidance: the model .* has no class that stands for none"):
        backbone.predict(torch.randn(1, 3, 8, 8), 400, backbone.condition(["car"]))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"condition": "label"}, "model.condition: the model"),
        ({"guidance": 2.0}, "model.guidance: the model"),
        ({"prompt": "a car"}, "model.prompt: the model"),
    ],
)
def test_a_model_without_classes_takes_no_condition(folder, settings, line):
    path = folder(embeddings=None)
    with pytest.raises(ModelError) as caught:
        load(path, **settings)
    assert str(caught.value).startswith(line)
    with pytest.raises(ModelError, match="knows no classes"):
        load(path).condition(["car"])


def test_a_name_that_several_classes_have_names_none_of_them():
    classes = ClassLabels.from_config(3, {"0": "crane, bird", "1": "crane, machine", "2": "cat"})
    assert (classes.index_of("bird"), classes.index_of("machine"), classes.index_of("1")) == (0, 1, 1)
    with pytest.raises(RecordError):
        classes.index_of("crane")
