"""Whether a picture still shows its label: known functions, a classifier in transformers' format, zero-shot CLIP."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anonymizer.config import FilterConfig
from anonymizer.errors import ConfigError, ModelError
from metrics.utility.label_consistency import Classifier, ZeroShot, build_reader, load_filter
from tests.support.pictures import pictures

NAMES = ("dark", "light, bright")


def brightness(images: torch.Tensor) -> torch.Tensor:
    """Class 1 for whatever is lighter than grey."""
    mean = images.mean((1, 2, 3))
    return torch.stack([-mean, mean], 1)


def greys(*values: float) -> torch.Tensor:
    return torch.stack([torch.full((3, 8, 8), value) for value in values])


def folder_of_a_classifier(folder: Path, names: Any = ("cat", "dog, puppy", "ship"), seed: int = 0) -> Path:
    """An untrained ConvNext for pictures of 8 x 8, as transformers saves it."""
    from transformers import ConvNextConfig, ConvNextForImageClassification, ConvNextImageProcessor
    from transformers.utils import logging

    torch.manual_seed(seed)
    config = ConvNextConfig(
        patch_size=2, num_stages=2, hidden_sizes=[8, 8], depths=[1, 1], image_size=8, initializer_range=1.0,
        num_labels=len(names), id2label=dict(enumerate(names)), label2id={name: at for at, name in enumerate(names)},
    )  # fmt: skip
    logging.disable_progress_bar()
    ConvNextForImageClassification(config).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 8}, crop_pct=1.0).save_pretrained(folder)
    logging.enable_progress_bar()
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_a_classifier(tmp_path_factory.mktemp("classifier"))


# -- any function -----------------------------------------------------------------------------------------------------


def test_a_picture_agrees_if_the_largest_logit_is_that_of_its_label() -> None:
    reader = Classifier(brightness, NAMES).reader_for(["dark", "light"])
    result = reader.read(greys(-0.5, -0.5, 0.5, 0.5), ["dark", "light", "dark", "light"])
    assert [one.agrees for one in result] == [True, False, False, True]
    assert [one.predicted for one in result] == ["dark", "dark", "light", "light"]


@pytest.mark.parametrize("label", ["light, bright", "light", "BRIGHT", " bright ", "1"])
def test_a_class_is_found_by_name_synonym_or_number(label: str) -> None:
    (result,) = Classifier(brightness, NAMES).reader_for([label]).read(greys(0.5), [label])
    assert (result.predicted, result.agrees) == (label, True)


def test_labels_may_be_called_something_else_than_the_classes() -> None:
    reader = Classifier(brightness, NAMES).reader_for(["night", "noon"], {"night": "dark", "noon": "light"})
    assert [one.agrees for one in reader.read(greys(-0.5, -0.5), ["night", "noon"])] == [True, False]


def test_a_class_that_happens_to_have_the_name_of_a_label_is_not_that_label() -> None:
    reader = Classifier(brightness, NAMES).reader_for(["dark"], {"dark": "light"})
    assert [one.agrees for one in reader.read(greys(-0.5, 0.5), ["dark", "dark"])] == [False, True]


def test_two_labels_may_be_one_class() -> None:
    reader = Classifier(brightness, NAMES).reader_for(["noon", "morning"], {"noon": "light", "morning": "light"})
    result = reader.read(greys(0.5, 0.5), ["noon", "morning"])
    assert [(one.predicted, one.agrees) for one in result] == [("noon", True), ("morning", True)]


def test_a_label_that_is_no_class_is_refused_without_naming_it() -> None:
    with pytest.raises(ConfigError, match=r"1 of 2 labels .* no classes of the classifier \('dark', ") as caught:
        Classifier(brightness, NAMES).reader_for(["dark", "Ada Lovelace"])
    assert "Ada" not in str(caught.value)


@pytest.mark.parametrize("label", ["2", "-1", "", "dusk"])
def test_what_is_neither_name_nor_number_of_a_class_is_refused(label: str) -> None:
    with pytest.raises(ConfigError, match="1 of 1 labels"):
        Classifier(brightness, NAMES).reader_for([label])


def test_logits_of_another_shape_are_refused() -> None:
    reader = Classifier(lambda x: x.mean((1, 2, 3)), NAMES).reader_for(["dark"])
    with pytest.raises(ValueError, match=r"logits must be \(1, 2\), got \(1,\)"):
        reader.read(greys(0.5), ["dark"])


# -- a classifier in transformers' format -----------------------------------------------------------------------------


def test_a_classifier_reads_pictures_as_transformers_pipeline_reads_the_files(classifier: Path) -> None:
    from transformers import pipeline

    x = pictures(12, 8)
    reader = Classifier.load(str(classifier)).reader_for(["cat", "dog", "ship"])
    result = [one.predicted for one in reader.read(x, ["cat"] * 12)]
    pixels = ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    theirs = pipeline("image-classification", str(classifier), top_k=1)([Image.fromarray(p) for p in pixels])
    assert result == [one[0]["label"].replace("dog, puppy", "dog") for one in theirs]
    assert len(set(result)) > 1


def test_a_classifier_is_known_by_a_digest_and_not_by_its_place(classifier: Path, tmp_path: Path) -> None:
    one, other = (Classifier.load(str(p)) for p in (classifier, folder_of_a_classifier(tmp_path / "b", seed=1)))
    assert one.versioned_name.startswith("a classifier sha256:") and one.versioned_name != other.versioned_name
    assert one.names == ["cat", "dog, puppy", "ship"]


def test_loading_a_classifier_prints_nothing(classifier: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity()
    Classifier.load(str(classifier))
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert logging.get_verbosity() == before and logging.is_progress_bar_enabled()


def spoil(folder: Path, how: str) -> None:
    if how == "pickle":
        from safetensors.torch import load_file

        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    elif how == "code":
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "mine", "auto_map": {"AutoModelForImageClassification": "mine.Mine"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "mine.py").write_text("raise SystemExit('this has been run')")
    else:
        (folder / how).unlink()


@pytest.mark.parametrize("how", ["pickle", "code", "config.json", "model.safetensors", "preprocessor_config.json"])
def test_what_is_no_classifier_with_safe_weights_is_one_line(tmp_path: Path, how: str) -> None:
    folder = folder_of_a_classifier(tmp_path / "c")
    spoil(folder, how)
    with pytest.raises(ModelError, match=r"filter\.classifier .* not a usable classifier .*: it needs config"):
        Classifier.load(str(folder))


def test_weights_that_are_missing_are_not_drawn_at_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = folder_of_a_classifier(tmp_path / "c")
    kept = {name: value for name, value in load_file(folder / "model.safetensors").items() if "classifier" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="the weights lack 2 tensors"):
        Classifier.load(str(folder))


# -- zero-shot CLIP ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zero_shot() -> ZeroShot:
    return ZeroShot.load("bundled:clip-mini")


def test_zero_shot_agrees_with_open_clips_own(zero_shot: ZeroShot) -> None:
    import open_clip

    folder = f"local-dir:{Path(str(files('anonymizer.bundled'))) / 'clip-mini'}"
    model, _, _ = open_clip.create_model_and_transforms(folder)
    words, x = ["cat", "ship", "truck", "frog", "bird"], pictures(24)
    with torch.inference_mode():
        texts = open_clip.get_tokenizer(folder)([f"a picture of a {word}" for word in words])
        image, text = model.eval().encode_image(x, normalize=True), model.encode_text(texts, normalize=True)
    reader = zero_shot.reader_for(words, prompt="a picture of a {label}")
    result = [one.predicted for one in reader.read(x, ["cat"] * 24)]
    assert result == [words[at] for at in (image @ text.T).argmax(1)]
    assert len(set(result)) > 1


def test_a_face_is_a_person_and_no_truck(zero_shot: ZeroShot) -> None:
    sheet = np.asarray(Image.open(str(files("anonymizer.bundled") / "faces-64/sheet.png")).convert("RGB"))
    faces = torch.from_numpy(np.stack(np.split(sheet[:128, -12 * 128 :], 12, axis=1))).permute(0, 3, 1, 2)
    reader = zero_shot.reader_for(["S1", "S2"], {"S1": "person", "S2": "truck"})
    assert np.mean([one.agrees for one in reader.read(faces / 127.5 - 1, ["S1"] * len(faces))]) > 0.8


def test_underscores_are_spaces_and_two_labels_may_have_one_name(zero_shot: ZeroShot) -> None:
    plain = zero_shot.reader_for(["young man", "truck"]).read(pictures(8), ["truck"] * 8)
    other = zero_shot.reader_for(["young_man", "truck", "lorry"], {"lorry": "truck"})
    assert [one.agrees for one in other.read(pictures(8), ["truck"] * 8)] == [one.agrees for one in plain]
    assert [one.agrees for one in other.read(pictures(8), ["lorry"] * 8)] == [one.agrees for one in plain]


@pytest.mark.parametrize(("labels", "names"), [(["cat"], {}), (["a", "b"], {"a": "cat", "b": "cat"})])
def test_without_a_choice_zero_shot_is_refused(zero_shot: ZeroShot, labels: list[str], names: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="one name, which every picture fits"):
        zero_shot.reader_for(labels, names)


# -- settings ---------------------------------------------------------------------------------------------------------


def test_the_settings_name_the_filter(classifier: Path, zero_shot: ZeroShot) -> None:
    assert load_filter(FilterConfig(), "cpu") is None
    own = FilterConfig(kind="classifier", classifier=str(classifier), names={"kitten": "cat"})
    model = load_filter(own, "cpu")
    assert isinstance(model, Classifier) and build_reader(model, own, ["kitten"]).columns == {"kitten": 0}
    clip = FilterConfig(kind="clip", prompt="{label}", names={"kitten": "cat"})
    assert build_reader(zero_shot, clip, ["kitten", "dog"]).columns.keys() == {"kitten", "dog"}
    with pytest.raises(ModelError, match="unknown bundled model"):
        load_filter(FilterConfig(kind="clip", clip="bundled:none"), "cpu")
