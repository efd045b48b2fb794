"""The recipe of the bundled CLIP: captions are true, and the losses are what the literature says."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn import functional as F

from anonymizer.bundled.recipes.clip_mini import TEMPERATURE, caption_loss, instance_loss, learning_rate
from anonymizer.bundled.recipes.clip_mini_data import ANY, augment_views, draw_caption, match_captions
from anonymizer.bundled.recipes.clip_mini_evaluation import format_share

PEOPLE_AND_THINGS = [(0, 0, 1, ANY), (0, 1, 1, ANY), (3, 1, ANY, ANY), (ANY, ANY, ANY, 0), (ANY, ANY, ANY, 7)]


def unit(rows: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_each_caption_is_true_of_its_own_picture() -> None:
    rng = random.Random(0)
    for _ in range(50):
        mentions = [draw_caption(row, rng)[1] for row in PEOPLE_AND_THINGS]
        assert match_captions(torch.tensor(PEOPLE_AND_THINGS), torch.tensor(mentions)).diagonal().all()


def test_a_caption_is_true_of_all_that_share_what_it_mentions_and_of_nothing_else() -> None:
    mentions = torch.tensor([(ANY, 1, ANY, ANY), (0, ANY, 1, ANY), (ANY, ANY, ANY, ANY), (ANY, ANY, ANY, 7)])
    expected = [[0, 1, 1, 0], [1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert match_captions(torch.tensor(PEOPLE_AND_THINGS), mentions).int().tolist() == expected


def test_captions_read_like_english() -> None:
    texts = {draw_caption(row, random.Random(i))[0] for i in range(60) for row in PEOPLE_AND_THINGS}
    assert {"a photo of an airplane", "a portrait of a young black man"} <= texts
    assert not [t for t in texts if " a a" in t or "  " in t]


def test_with_one_true_caption_a_picture_the_loss_is_clips() -> None:
    images, texts, scale = unit(5, 0), unit(5, 1), torch.tensor(10.0)
    logits, target = scale * images @ texts.T, torch.arange(5)
    clips = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(caption_loss(images, texts, scale, torch.eye(5, dtype=torch.bool)), clips)


def test_pictures_that_share_a_caption_do_not_repel_it() -> None:
    """With two pictures and one caption, both true, the loss is least when both are equally near: log 2 / 2."""
    text = F.normalize(torch.ones(1, 6), dim=-1)
    loss = caption_loss(text.expand(2, -1), text, torch.tensor(10.0), torch.ones(2, 1, dtype=torch.bool))
    assert loss.item() == pytest.approx(0.5 * 0.693147, abs=1e-5)


def test_the_instance_term_is_nt_xent() -> None:
    first, second = unit(3, 0), unit(3, 1)
    both = torch.cat([first, second])
    expected = 0.0
    for i in range(6):
        terms = [float((both[i] @ both[j] / TEMPERATURE).exp()) for j in range(6)]
        expected -= float(torch.tensor(terms[(i + 3) % 6] / (sum(terms) - terms[i])).log()) / 6
    assert instance_loss(first, second).item() == pytest.approx(expected, abs=1e-5)


def test_views_are_in_range_and_repeat_with_their_generator() -> None:
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    a, b = (augment_views(pixels, torch.Generator().manual_seed(5)) for _ in range(2))
    assert a.shape == (4, 3, 64, 64) and a.abs().max() <= 1 and torch.equal(a, b)


def test_the_learning_rate_rises_stays_and_falls() -> None:
    rates = [learning_rate(done, step, 1.0) for done, step in ((0, 0), (0.3, 200), (0.7, 500), (1.0, 900))]
    assert rates == pytest.approx([0.01, 1, 0.5, 0.01])


def test_the_wilson_interval_of_five_in_ten() -> None:
    assert format_share(5, 10) == "0.500 | 0.237 to 0.763 | 10"
