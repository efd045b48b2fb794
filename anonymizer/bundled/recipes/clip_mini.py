"""Recipe of ``bundled:clip-mini``: a small CLIP of 64 x 64 faces and CIFAR-10 objects that two CPU cores can train.

    python -m anonymizer.bundled.recipes.clip_mini --faces faces.parquet --cifar cifar10.parquet --work DIR --minutes 28

``faces.parquet``: columns ``image`` (encoded bytes), ``age``, ``gender``, ``ethnicity``, ``split`` (``train`` or
``test``); ``cifar10.parquet``: ``image``, ``label`` (a class name), ``split``. Writes ``DIR/model`` (open_clip's own
folder format: ``open_clip_config.json`` and ``open_clip_model.safetensors`` in fp16) and ``DIR/training.json``;
``clip_mini_evaluation`` measures the held-out figures. A killed run goes on from its last checkpoint when the same
command is given again.

The loss has two terms. Captions: each image gets one caption with some of its attributes ("a photo of a young woman");
every image that a caption is true of is a target, in equal parts, so that images that share a caption do not repel it.
Instances: two augmented views of one image attract and all other images repel (NT-Xent; Chen et al. 2020), so that the
embedding tells images of one class apart, as the similarity score must.
"""

from __future__ import annotations

import json
import random
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from anonymizer.bundled.recipes import clip_mini_data as data
from anonymizer.bundled.recipes.training import ImageSplit, make_parser, run_training, write_figures

TEMPERATURE = 0.15  # of the instance term
MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": data.SIZE, "layers": [1, 1, 2, 1], "width": 32, "head_width": 64},
    # The simple tokenizer's vocabulary; all but a few dozen rows stay as they were drawn.
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


def new_clip() -> tuple[torch.nn.Module, Any]:
    """Return an untrained network and its tokenizer, both open_clip's; a third of the weights is the vocabulary."""
    import open_clip

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip-mini.json"
        path.write_text(json.dumps(MODEL_CONFIG))
        open_clip.add_model_config(path)
    model, _, _ = open_clip.create_model_and_transforms("clip-mini")
    return model.to(memory_format=torch.channels_last), open_clip.get_tokenizer("clip-mini")


def caption_loss(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, is_match: torch.Tensor
) -> torch.Tensor:
    """Return CLIP's symmetric cross-entropy with all matching pairs as targets in equal parts.

    ``images`` (N, D) and ``texts`` (M, D) of unit norm, ``is_match`` bool (N, M) with a match in each row and column.
    """
    logits = scale * images @ texts.T  # (N, M)
    to_text = F.cross_entropy(logits, is_match / is_match.sum(1, keepdim=True))
    to_image = F.cross_entropy(logits.T, (is_match / is_match.sum(0, keepdim=True)).T)
    return (to_text + to_image) / 2


def instance_loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return NT-Xent of two views (B, D) of unit norm."""
    both = torch.cat([first, second])  # (2B, D)
    logits = (both @ both.T / TEMPERATURE).fill_diagonal_(float("-inf"))
    return F.cross_entropy(logits, torch.arange(len(both)).roll(len(first)))


def learning_rate(done: float, step: int, peak: float) -> float:
    """Return the rate: warm-up over 100 steps, flat, then linear decay over the last 60 % of the time.

    ``done``: share of the time, in [0, 1].
    """
    return peak * min(1.0, (step + 1) / 100) * min(1.0, max(0.01, (1 - done) / 0.6))


def parameter_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Return weight decay for matrices and filters only, not for the vocabulary and vectors."""
    groups: dict[float, list[torch.nn.Parameter]] = {0.05: [], 0.0: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[0.0 if parameter.ndim < 2 or "embedding" in name else 0.05].append(parameter)
    return [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]


def save_model(model: torch.nn.Module, folder: Path) -> None:
    """Write open_clip's folder format, loadable as ``local-dir:FOLDER``."""
    from open_clip.transform import PreprocessCfg
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    # Batch counters are integers and stay so.
    half = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}
    save_file(half, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    preprocess = asdict(PreprocessCfg(size=(data.SIZE, data.SIZE), mean=(0.5,) * 3, std=(0.5,) * 3))
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")


def step_loss(
    model: Any, tokenizer: Any, batches: list[tuple[ImageSplit, torch.Tensor]], gen: torch.Generator,
    rng: random.Random,
) -> torch.Tensor:  # fmt: skip
    """Return both terms on one batch, given as images and rows of them; the first two thirds get a second view."""
    attributes = torch.cat([images.labels[rows] for images, rows in batches])
    captions, mentions = zip(*(data.draw_caption(row, rng) for row in attributes.tolist()), strict=True)
    is_match = data.match_captions(attributes, torch.tensor(mentions))
    first, second = (
        torch.cat([data.augment_views(images.images[rows], gen) for images, rows in batches]) for _ in range(2)
    )
    paired = len(first) * 2 // 3
    pixels = torch.cat([first, second[:paired]]).contiguous(memory_format=torch.channels_last)  # (5/3 B, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        images, texts = model.encode_image(pixels), model.encode_text(tokenizer(list(captions)))
    images, texts = F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)
    scale = model.logit_scale.exp().clamp(max=100)
    captions_term = caption_loss(images, texts, scale, torch.cat([is_match, is_match[:paired]]))
    return captions_term + 0.5 * instance_loss(images[:paired], images[len(first) :])


def main() -> None:
    """Train and write the model."""
    parser = make_parser(__doc__, batch=168, rate=1.5e-3)
    parser.add_argument("--faces", required=True)
    parser.add_argument("--cifar", required=True)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice; 1 where other work shares the cores")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    face_count = args.batch * 3 // 7
    faces, objects = data.load_faces(args.faces, "train"), data.load_cifar(args.cifar, "train")
    sources = (faces, face_count), (objects, args.batch - face_count)
    torch.manual_seed(0)
    model, tokenizer = new_clip()
    model.train()
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=args.rate, betas=(0.9, 0.98))
    gen = torch.Generator().manual_seed(1)

    def loss_of(step: int) -> torch.Tensor:
        batches = [(images, torch.randint(0, len(images), (count,), generator=gen)) for images, count in sources]
        return step_loss(model, tokenizer, batches, gen, random.Random(step))

    stateful = {"model": model, "optimizer": optimizer}
    figures = run_training(args, stateful, gen, learning_rate, loss_of, longest_step=5.0, smoothing=0.98)
    save_model(model.eval(), args.work / "model")
    write_figures(args.work, figures)


if __name__ == "__main__":
    main()
