"""Training of the bundled models on a CPU, with checkpoints, and of the diffusion models by v-prediction.

A killed run goes on from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor

CHECKPOINT_STEPS = 100


@dataclass(frozen=True)
class ImageSplit:
    """Images of one split, uint8 (N, 3, size, size), and their labels (N, ...), of which there may be none (0,)."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Recipe:
    """A network on pixel-unshuffled images of ``size``, with one block a level, and the defaults of its training.

    ``attention``: whether a level has it, from the finest to the coarsest. ``names``: of the classes, if it knows any;
    the class after the last one stands for none of them, and replaces the label in ``label_dropout`` of the rows
    (classifier-free guidance: Ho and Salimans 2022).
    """

    size: int
    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    batch: int
    rate: float
    ema: float
    patch: int = 2
    names: tuple[str, ...] = ()
    label_dropout: float = 0.0

    def new_unet(self) -> UNet2DModel:
        return UNet2DModel(
            sample_size=self.size // self.patch,
            in_channels=3 * self.patch**2,
            out_channels=3 * self.patch**2,
            block_out_channels=self.channels,
            layers_per_block=1,
            down_block_types=tuple("AttnDownBlock2D" if attends else "DownBlock2D" for attends in self.attention),
            up_block_types=tuple("AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(self.attention)),
            attention_head_dim=32,
            norm_num_groups=16,
            num_class_embeds=len(self.names) + 1 if self.names else None,
        )


def decode_images(encoded: Sequence[bytes], size: int, resampling: Image.Resampling) -> torch.Tensor:
    """Return images as uint8 (N, 3, size, size)."""
    images = (Image.open(io.BytesIO(data)).convert("RGB").resize((size, size), resampling) for data in encoded)
    return torch.stack([pil_to_tensor(image) for image in images])


def load_split(path: str, split: str, size: int, names: tuple[str, ...] = ()) -> ImageSplit:
    """Read a Parquet file with the columns ``image`` (encoded bytes) and ``split``, resized with Lanczos.

    With ``names``, the column ``label`` holds one of them for each image.
    """
    columns = ["image", *(["label"] if names else [])]
    table = pq.read_table(path, columns=columns, filters=[("split", "=", split)])
    encoded = [row["bytes"] if isinstance(row, dict) else row for row in table["image"].to_pylist()]
    labels = [names.index(name) for name in table["label"].to_pylist()] if names else []
    return ImageSplit(decode_images(encoded, size, Image.Resampling.LANCZOS), torch.tensor(labels))


def new_scheduler() -> DDPMScheduler:
    """Return the schedule that the bundled models are trained on."""
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")


def v_loss(
    unet: UNet2DModel, scheduler: DDPMScheduler, patch: int, x0: torch.Tensor, labels: torch.Tensor | None,
    gen: torch.Generator,
) -> torch.Tensor:  # fmt: skip
    """Return the mean squared error of v at one random t and one noise draw for each row of ``x0`` (B, 3, H, W)."""
    z0 = F.pixel_unshuffle(x0, patch)
    t = torch.randint(0, scheduler.config.num_train_timesteps, (len(z0),), generator=gen)
    eps = torch.randn(z0.shape, generator=gen)
    with torch.autocast("cpu", torch.bfloat16):
        out = unet(scheduler.add_noise(z0, eps, t), t, class_labels=labels).sample
    return F.mse_loss(out.float(), scheduler.get_velocity(z0, eps, t))


def learning_rate(done: float, step: int, peak: float) -> float:
    """Return the rate: warm-up over 300 steps, flat, then linear decay over the last 35 % of the time.

    ``done``: share of the time, in [0, 1].
    """
    return peak * min(1.0, (step + 1) / 300) * min(1.0, max(0.02, (1 - done) / 0.35))


@torch.no_grad()
def held_out_loss(unet: UNet2DModel, scheduler: DDPMScheduler, patch: int, data: ImageSplit) -> float:
    """Return the mean squared error of v over a split, one draw of t and noise for each image, always the same."""
    gen = torch.Generator().manual_seed(0)
    total = 0.0
    for rows in torch.arange(len(data)).split(100):
        labels = data.labels[rows] if len(data.labels) else None
        x0 = data.images[rows].float() / 127.5 - 1
        total += v_loss(unet, scheduler, patch, x0, labels, gen).item() * len(rows)
    return total / len(data)


def save_pipeline(unet: UNet2DModel, scheduler: DDPMScheduler, names: tuple[str, ...], folder: Path) -> None:
    """Write a pipeline folder, fp16; the names of the classes lie where DiT's pipelines have theirs."""
    DDPMPipeline(deepcopy(unet).half(), scheduler).save_pretrained(folder)
    if names:
        path = folder / "model_index.json"
        index = json.loads(path.read_text()) | {"id2label": dict(enumerate(names))}
        path.write_text(json.dumps(index, indent=2) + "\n")


def make_parser(about: str | None, *, batch: int, rate: float) -> argparse.ArgumentParser:
    """Return the options of every recipe, and their defaults."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="training time in all, over all restarts")
    parser.add_argument("--batch", type=int, default=batch, help="images a step")
    parser.add_argument("--rate", type=float, default=rate, help="peak of the learning rate")
    return parser


def run_training(
    args: argparse.Namespace, stateful: Mapping[str, Any], gen: torch.Generator,
    rate: Callable[[float, int, float], float], loss_of: Callable[[int], torch.Tensor],
    after_step: Callable[[int], None] = lambda step: None, *, longest_step: float, smoothing: float,
) -> dict[str, Any]:  # fmt: skip
    """Train for ``args.minutes`` over all restarts, from ``checkpoint.pt`` if it is there; return the figures.

    ``stateful``: the model, the ``optimizer`` and what else has a state, by its name in the checkpoint. ``rate``: of
    the share of the time in [0, 1], the step and the peak. ``longest_step``: seconds; a longer one means that the
    process was paused, and a pause is not training time. ``smoothing``: of the reported loss.
    """
    args.work.mkdir(parents=True, exist_ok=True)
    optimizer, checkpoint = stateful["optimizer"], args.work / "checkpoint.pt"
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    step, seconds, smooth = 0, 0.0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for name, holder in stateful.items():
            holder.load_state_dict(state[name])
        gen.set_state(state["gen"])
        step, seconds, smooth = state["step"], state["seconds"], state["smooth"]

    def save() -> None:
        state = {name: holder.state_dict() for name, holder in stateful.items()}
        state |= {"gen": gen.get_state(), "step": step, "seconds": seconds, "smooth": smooth}
        torch.save(state, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)

    while seconds < args.minutes * 60:
        started = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = rate(seconds / (args.minutes * 60), step, args.rate)
        loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        after_step(step)
        step += 1
        smooth = loss.item() if step == 1 else smoothing * smooth + (1 - smoothing) * loss.item()
        seconds += min(time.monotonic() - started, longest_step)
        if step % 50 == 0:
            print(f"step {step}  {seconds / 60:.1f} min  loss {smooth:.4f}", flush=True)
        if step % CHECKPOINT_STEPS == 0:
            save()
    save()
    minutes = round(seconds / 60, 1)
    return {"steps": step, "batch": args.batch, "minutes": minutes, "training_loss": round(smooth, 5)}


def write_figures(work: Path, figures: Mapping[str, Any]) -> None:
    """Write and print what a training reached."""
    (work / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(figures)


def train(recipe: Recipe, about: str | None) -> None:
    """Run a recipe's command line: write ``WORK/model`` (fp16 safetensors, EMA weights) and ``WORK/training.json``."""
    parser = make_parser(about, batch=recipe.batch, rate=recipe.rate)
    parser.add_argument("--data", required=True)
    parser.add_argument("--start", type=Path, help="a pipeline folder to start from")
    parser.add_argument("--ema", type=float, default=recipe.ema)
    args = parser.parse_args()
    unet = recipe.new_unet()
    if args.start:
        unet = UNet2DModel.from_pretrained(args.start, subfolder="unet", torch_dtype=torch.float32)
    data, test = (load_split(args.data, split, recipe.size, recipe.names) for split in ("train", "test"))
    scheduler, gen = new_scheduler(), torch.Generator().manual_seed(1)
    average = deepcopy(unet).requires_grad_(False)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.rate, weight_decay=0.0, fused=True)

    def loss_of(step: int) -> torch.Tensor:
        rows = torch.randint(0, len(data), (args.batch,), generator=gen)
        x0 = data.images[rows].float() / 127.5 - 1
        flip = torch.rand(args.batch, generator=gen) < 0.5
        x0[flip] = x0[flip].flip(-1)
        labels = None
        if recipe.names:
            labels = data.labels[rows]
            labels[torch.rand(args.batch, generator=gen) < recipe.label_dropout] = len(recipe.names)
        return v_loss(unet, scheduler, recipe.patch, x0, labels, gen)

    def update_average(step: int) -> None:
        decay = min(args.ema, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), 1 - decay)

    stateful = {"unet": unet, "ema": average, "optimizer": optimizer}
    figures = run_training(
        args, stateful, gen, learning_rate, loss_of, update_average, longest_step=2.0, smoothing=0.99
    )
    save_pipeline(average.eval(), scheduler, recipe.names, args.work / "model")
    figures["held_out_loss"] = round(held_out_loss(average, scheduler, recipe.patch, test), 5)
    write_figures(args.work, {**figures, "started_from_scratch": args.start is None})
