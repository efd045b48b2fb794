"""What the recipes of the diffusion models share: v-prediction on patched pixels, on a CPU, with checkpoints.

A killed run goes on from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image
from torch.nn import functional as F

LONGEST_STEP = 2.0  # seconds; a longer one means that the process was paused, and a pause is not training time


@dataclass(frozen=True)
class ImageSplit:
    """Pictures of one split, uint8 (N, 3, size, size), and, for a model that knows classes, their labels (N,)."""

    pictures: torch.Tensor
    labels: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.pictures)


@dataclass(frozen=True)
class Recipe:
    """A network on pixel-unshuffled pictures, and what it is trained with.

    ``names``: of the classes, if it knows any; the class after the last one stands for none of them, and takes the
    place of the label in ``drop`` of the rows (classifier-free guidance: Ho and Salimans 2022).
    """

    unet: UNet2DModel
    patch: int
    names: tuple[str, ...] = ()
    label_dropout: float = 0.0
    batch: int = 32
    rate: float = 6e-4
    ema: float = 0.9995


def load_split(path: str, split: str, size: int, names: tuple[str, ...] = ()) -> ImageSplit:
    """Pictures of a Parquet file with the columns ``image`` (encoded bytes) and ``split``, resized with Lanczos.

    With ``names``, the column ``label`` holds one of them for each.
    """
    table = pq.read_table(path, columns=["image", "split", *(["label"] if names else [])])
    table = table.filter(pq.filters_to_expression([("split", "=", split)]))
    out = torch.empty(len(table), 3, size, size, dtype=torch.uint8)
    for i, row in enumerate(table["image"].to_pylist()):
        data = row["bytes"] if isinstance(row, dict) else row
        picture = Image.open(io.BytesIO(data)).convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
        out[i] = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(size, size, 3).permute(2, 0, 1)
    return ImageSplit(out, torch.tensor([names.index(name) for name in table["label"].to_pylist()]) if names else None)


def new_scheduler() -> DDPMScheduler:
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")


def v_loss(
    unet: UNet2DModel,
    scheduler: DDPMScheduler,
    patch: int,
    x0: torch.Tensor,
    labels: torch.Tensor | None,
    gen: torch.Generator,
) -> torch.Tensor:
    """Mean squared error of v at one random t and one noise draw for each row of ``x0`` (B, 3, H, W)."""
    z0 = F.pixel_unshuffle(x0, patch)
    t = torch.randint(0, scheduler.config.num_train_timesteps, (len(z0),), generator=gen)
    eps = torch.randn(z0.shape, generator=gen)
    with torch.autocast("cpu", torch.bfloat16):
        out = unet(scheduler.add_noise(z0, eps, t), t, class_labels=labels).sample
    return F.mse_loss(out.float(), scheduler.get_velocity(z0, eps, t))


def learning_rate(done: float, step: int, peak: float) -> float:
    """Warm-up over 300 steps, flat, then linear decay over the last 35 % of the time; ``done`` in [0, 1]."""
    return peak * min(1.0, (step + 1) / 300) * min(1.0, max(0.02, (1 - done) / 0.35))


@torch.no_grad()
def held_out_loss(unet: UNet2DModel, scheduler: DDPMScheduler, patch: int, data: ImageSplit) -> float:
    """Mean squared error of v over a split, one draw of t and noise for each picture, always the same."""
    gen = torch.Generator().manual_seed(0)
    total = 0.0
    for rows in torch.arange(len(data)).split(100):
        labels = None if data.labels is None else data.labels[rows]
        x0 = data.pictures[rows].float() / 127.5 - 1
        total += v_loss(unet, scheduler, patch, x0, labels, gen).item() * len(rows)
    return total / len(data)


def save_model(unet: UNet2DModel, scheduler: DDPMScheduler, names: tuple[str, ...], folder: Path) -> None:
    """A pipeline folder, fp16; the names of the classes stand where DiT's pipelines have theirs."""
    half = deepcopy(unet).half()
    half.save_pretrained(folder / "unet", safe_serialization=True)
    scheduler.save_pretrained(folder / "scheduler")
    index: dict[str, Any] = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    if names:
        index["id2label"] = dict(enumerate(names))
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def parse_arguments(about: str | None, **defaults: Any) -> argparse.Namespace:
    """The command line of a recipe; ``defaults`` are those of the options --batch, --rate and --ema."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="training time in all, over all restarts")
    parser.add_argument("--start", type=Path, help="a pipeline folder to start from")
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    return parser.parse_args()


def train(recipe: Recipe, data: ImageSplit, test: ImageSplit, work: Path, minutes: float, from_scratch: bool) -> None:
    """Write ``work/model`` (fp16 safetensors, EMA weights) and ``work/training.json``."""
    work.mkdir(parents=True, exist_ok=True)
    unet, scheduler = recipe.unet, new_scheduler()
    average = deepcopy(unet).requires_grad_(False)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=recipe.rate, weight_decay=0.0, fused=True)
    gen = torch.Generator().manual_seed(1)
    step, seconds, smooth = 0, 0.0, 0.0
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        unet.load_state_dict(state["unet"])
        average.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        gen.set_state(state["gen"])
        step, seconds, smooth = state["step"], state["seconds"], state["smooth"]

    def save() -> None:
        state = {"unet": unet.state_dict(), "ema": average.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"gen": gen.get_state(), "step": step, "seconds": seconds, "smooth": smooth}
        torch.save(state, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)

    while seconds < minutes * 60:
        begun = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(seconds / (minutes * 60), step, recipe.rate)
        rows = torch.randint(0, len(data), (recipe.batch,), generator=gen)
        x0 = data.pictures[rows].float() / 127.5 - 1
        flip = torch.rand(recipe.batch, generator=gen) < 0.5
        x0[flip] = x0[flip].flip(-1)
        labels = None
        if data.labels is not None:
            labels = data.labels[rows]
            labels[torch.rand(recipe.batch, generator=gen) < recipe.label_dropout] = len(recipe.names)
        loss = v_loss(unet, scheduler, recipe.patch, x0, labels, gen)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(recipe.ema, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), 1 - decay)
        step += 1
        smooth = loss.item() if step == 1 else 0.99 * smooth + 0.01 * loss.item()
        seconds += min(time.monotonic() - begun, LONGEST_STEP)
        if step % 50 == 0:
            print(f"step {step}  {seconds / 60:.1f} min  loss {smooth:.4f}", flush=True)
        if step % 100 == 0:
            save()
    save()
    average.eval()
    save_model(average, scheduler, recipe.names, work / "model")
    figures = {
        "steps": step,
        "batch": recipe.batch,
        "minutes": round(seconds / 60, 1),
        "training_loss": round(smooth, 5),
        "held_out_loss": round(held_out_loss(average, scheduler, recipe.patch, test), 5),
        "started_from_scratch": from_scratch,
    }
    (work / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(figures)
