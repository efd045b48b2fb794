"""Recipe of ``bundled:faces-64``: a small diffusion model of 64 x 64 faces that two CPU cores can train.

    python -m anonymizer.bundled.recipes.faces_64 --data faces.parquet --work WORKDIR --minutes 120 [--start FOLDER]

Reads a Parquet file with the columns ``image`` (encoded bytes) and ``split`` (``train`` / ``test``), writes
``WORKDIR/model`` (a diffusers pipeline folder, fp16 safetensors, EMA weights) and ``WORKDIR/training.json``.
A killed run goes on from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from copy import deepcopy
from pathlib import Path

import pyarrow.parquet as pq
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image
from torch.nn import functional as F

SIZE, PATCH = 64, 2
LONGEST_STEP = 5.0  # seconds; a longer one means that the process was paused, and a pause is not training time


def load_split(path: str, split: str) -> torch.Tensor:
    """Pictures of one split, uint8 (N, 3, 64, 64)."""
    table = pq.read_table(path, columns=["image", "split"])
    rows = [b for b, s in zip(table["image"].to_pylist(), table["split"].to_pylist(), strict=True) if s == split]
    out = torch.empty(len(rows), 3, SIZE, SIZE, dtype=torch.uint8)
    for i, row in enumerate(rows):
        data = row["bytes"] if isinstance(row, dict) else row
        picture = Image.open(io.BytesIO(data)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        out[i] = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(SIZE, SIZE, 3).permute(2, 0, 1)
    return out


def new_unet() -> UNet2DModel:
    """The network, on pixel-unshuffled input: 3.8 M parameters, attention at 8 x 8 only."""
    return UNet2DModel(
        sample_size=SIZE // PATCH,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=16,
    )


def new_scheduler() -> DDPMScheduler:
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")


def v_loss(unet: UNet2DModel, scheduler: DDPMScheduler, x0: torch.Tensor, gen: torch.Generator) -> torch.Tensor:
    """Mean squared error of v at one random t and one noise draw for each row of ``x0`` (B, 3, 64, 64)."""
    z0 = F.pixel_unshuffle(x0, PATCH)
    t = torch.randint(0, scheduler.config.num_train_timesteps, (len(z0),), generator=gen)
    eps = torch.randn(z0.shape, generator=gen)
    with torch.autocast("cpu", torch.bfloat16):
        out = unet(scheduler.add_noise(z0, eps, t), t).sample
    return F.mse_loss(out.float(), scheduler.get_velocity(z0, eps, t))


def learning_rate(done: float, step: int, peak: float) -> float:
    """Warm-up over 300 steps, flat, then linear decay over the last 35 % of the time; ``done`` in [0, 1]."""
    return peak * min(1.0, (step + 1) / 300) * min(1.0, max(0.02, (1 - done) / 0.35))


@torch.no_grad()
def held_out_loss(unet: UNet2DModel, scheduler: DDPMScheduler, data: torch.Tensor) -> float:
    gen = torch.Generator().manual_seed(0)
    losses = [v_loss(unet, scheduler, part.float() / 127.5 - 1, gen).item() * len(part) for part in data.split(100)]
    return sum(losses) / len(data)


def save_model(unet: UNet2DModel, scheduler: DDPMScheduler, folder: Path) -> None:
    half = deepcopy(unet).half()
    half.save_pretrained(folder / "unet", safe_serialization=True)
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="training time in all, over all restarts")
    parser.add_argument("--start", type=Path, help="a pipeline folder to start from")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument("--ema", type=float, default=0.9995)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    data = load_split(args.data, "train")
    unet = (
        UNet2DModel.from_pretrained(args.start, subfolder="unet", torch_dtype=torch.float32)
        if args.start
        else new_unet()
    )
    scheduler = new_scheduler()
    average = deepcopy(unet).requires_grad_(False)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.rate, weight_decay=0.0, fused=True)
    gen = torch.Generator().manual_seed(1)
    step, seconds, smooth = 0, 0.0, 0.0
    checkpoint = args.work / "checkpoint.pt"
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

    while seconds < args.minutes * 60:
        begun = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(seconds / (args.minutes * 60), step, args.rate)
        rows = torch.randint(0, len(data), (args.batch,), generator=gen)
        x0 = data[rows].float() / 127.5 - 1
        flip = torch.rand(args.batch, generator=gen) < 0.5
        x0[flip] = x0[flip].flip(-1)
        loss = v_loss(unet, scheduler, x0, gen)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(args.ema, (step + 1) / (step + 10))
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
    save_model(average, scheduler, args.work / "model")
    figures = {
        "steps": step,
        "batch": args.batch,
        "minutes": round(seconds / 60, 1),
        "training_loss": round(smooth, 5),
        "held_out_loss": round(held_out_loss(average, scheduler, load_split(args.data, "test")), 5),
        "started_from_scratch": args.start is None,
    }
    (args.work / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(figures)


if __name__ == "__main__":
    main()
