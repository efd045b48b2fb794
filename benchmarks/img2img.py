"""Compare Boomerang with diffusers, one by one and in batches, with the same weights, steps and dtype, in one run.

    python benchmarks/img2img.py --model pixel  [--pictures 64] [--batch-size 32] [--repeats 3]
    python benchmarks/img2img.py --model latent [--pictures 32] [--batch-size 16] [--dtype float16] [--guidance 7.5]
    python benchmarks/img2img.py --model latent --size 256 --pictures 2 --batch-size 2 --steps 2   # on a CPU

* latent: Stable Diffusion 1.5's true size with random weights (speed does not depend on them) against diffusers'
  ``StableDiffusionImg2ImgPipeline`` with its SDE-DPM++ scheduler, in exactly as many steps;
* pixel: ``bundled:faces-64`` against the loop that users write with diffusers' scheduler, as it has no such pipeline.

From pictures in memory to pictures in memory on every side: no files, no scores. ``--compile`` compiles the network
for full batches, for both. It needs neither a network connection nor weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timing
import torch
from sizes import SD15, Shape, count_parameters, make_backbone, make_parts
from torch.nn import functional as F

from anonymizer.backbones import Backbone, compilation, load_backbone
from anonymizer.backbones.conditioning import encode_conditions
from anonymizer.backbones.load import torch_device
from anonymizer.boomerang import Boomerang
from anonymizer.config import ModelConfig
from anonymizer.noise import KeyedNoise

SAMPLER, PROMPT = "sde-dpm++", "a photo"
Sampler = Callable[[torch.Tensor], torch.Tensor]  # pictures (B, 3, H, W) in [-1, 1] -> as many


@dataclass(frozen=True)
class Contenders:
    """Ours and theirs, on the same weights; both call ``network``."""

    ours: Sampler
    theirs: Sampler
    network: Any
    backbone: Backbone
    description: str


def latent_contenders(
    shape: Shape, config: ModelConfig, device: torch.device, level: float, steps: int, folder: Path
) -> Contenders:
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionImg2ImgPipeline

    parts = make_parts(shape, folder)
    model = make_backbone(parts, config, device, folder)
    scheduler = DPMSolverMultistepScheduler.from_config(parts["scheduler"].config, algorithm_type="sde-dpmsolver++")
    nothing = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    networks = {name: parts[name] for name in ("unet", "vae", "text_encoder", "tokenizer")}
    pipeline = StableDiffusionImg2ImgPipeline(
        **networks, scheduler=scheduler, requires_safety_checker=False, **nothing
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)
    requested = steps_to_request(steps, level)

    def theirs(x0: torch.Tensor) -> torch.Tensor:
        images: torch.Tensor = pipeline(
            prompt=[PROMPT] * len(x0), image=(x0 + 1) / 2, strength=level, num_inference_steps=requested,
            guidance_scale=config.guidance, output_type="pt",
        ).images  # fmt: skip
        return images.float().cpu() * 2 - 1

    counts = ", ".join(
        f"{name} {count_parameters(parts[name]) / 1e6:.0f} M" for name in ("unet", "vae", "text_encoder")
    )
    ours = make_boomerang(model, config, level, steps)
    return Contenders(ours, theirs, parts["unet"], model, f"{counts}, {model.size} px, random weights")


def pixel_contenders(config: ModelConfig, level: float, steps: int) -> Contenders:
    from diffusers import DPMSolverMultistepScheduler

    model: Any = load_backbone(config)
    betas = 1 - model.alphas_cumprod / torch.cat([torch.ones(1, dtype=torch.float64), model.alphas_cumprod[:-1]])
    t_boom = max(1, round(level * model.T))

    def theirs(x0: torch.Tensor) -> torch.Tensor:
        scheduler = DPMSolverMultistepScheduler(
            model.T, trained_betas=betas.tolist(), algorithm_type="sde-dpmsolver++", prediction_type="v_prediction"
        )
        scheduler.set_timesteps(timesteps=[round(t_boom * (steps - k) / steps) - 1 for k in range(steps)])
        with torch.no_grad(), torch.autocast(model.device.type, model.dtype, enabled=model.dtype != torch.float32):
            z0 = F.pixel_unshuffle(x0.to(model.device), model.patch)
            zt = scheduler.add_noise(z0, torch.randn_like(z0), scheduler.timesteps[:1])
            for t in scheduler.timesteps:
                zt = scheduler.step(model.unet(zt, t).sample.float(), t, zt).prev_sample
            return F.pixel_shuffle(zt, model.patch).clamp(-1, 1).cpu()

    what = f"{config.id}, {count_parameters(model.unet) / 1e6:.1f} M, {model.size} px"
    return Contenders(make_boomerang(model, config, level, steps), theirs, model.unet, model, what)


def make_boomerang(model: Backbone, config: ModelConfig, level: float, steps: int) -> Sampler:
    boomerang = Boomerang(model, SAMPLER, steps)

    def sample(x0: torch.Tensor) -> torch.Tensor:
        noise = KeyedNoise([i.to_bytes(16, "big") for i in range(len(x0))])
        condition = encode_conditions(model, [PROMPT] * len(x0)) if model.condition_kind == "prompt" else None
        return boomerang.sample(x0.to(model.device), level, noise, condition).cpu()

    return sample


def steps_to_request(steps: int, level: float) -> int:
    """Return the ``num_inference_steps`` with which diffusers takes ``steps`` at this strength."""
    for requested in range(steps, 100 * steps + 1000):
        if min(int(requested * level), requested) == steps:
            return requested
    raise SystemExit(f"--steps {steps}: no number of steps gives that many at level {level:g}: choose another level")


def compare(contenders: Contenders, pictures: torch.Tensor, batch_size: int, repeats: int) -> dict[str, list[float]]:
    """Return images per second of each contender, ``repeats`` times. The memory layout is each side's own choice."""
    device = contenders.backbone.device
    own = next(p for p in contenders.network.parameters() if p.dim() == 4)
    last = own.is_contiguous(memory_format=torch.channels_last)

    def rate(sampler: Sampler, size: int, channels_last: bool) -> Callable[[], float]:
        def measured() -> float:
            form = torch.channels_last if channels_last else torch.contiguous_format
            contenders.network.to(memory_format=form)
            batches = pictures.split(size)
            sampler(batches[0])  # warm up
            return len(pictures) / timing.time_call(lambda: [sampler(batch) for batch in batches], device)

        return measured

    contenders_by_name = {
        "diffusers, one by one": rate(contenders.theirs, 1, False),
        "diffusers, batched": rate(contenders.theirs, batch_size, False),
        "ours, one by one": rate(contenders.ours, 1, last),
        "ours, batched": rate(contenders.ours, batch_size, last),
    }
    return timing.take_turns(contenders_by_name, repeats)


def main(arguments: list[str] | None = None, shape: Shape = SD15) -> None:
    parser = timing.argument_parser(__doc__)
    parser.add_argument("--pictures", type=int, default=64)
    args = parser.parse_args(arguments)

    device = torch_device(args.device)
    with tempfile.TemporaryDirectory() as scratch:
        settings: dict[str, Any] = {"device": str(device), "dtype": args.dtype, "size": args.size}
        if args.model == "pixel":
            contenders = pixel_contenders(ModelConfig(**settings), args.level, args.steps)
        else:
            config = ModelConfig(id="random/latent", prompt=PROMPT, guidance=args.guidance, **settings)
            contenders = latent_contenders(shape, config, device, args.level, args.steps, Path(scratch))
        if args.compile:
            compilation.compile_network(contenders.backbone, args.batch_size)
        side = contenders.backbone.size
        pictures = torch.rand(args.pictures, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
        rates = compare(contenders, pictures, args.batch_size, args.repeats)
    median = timing.medians(rates)
    reference = median["diffusers, one by one"]
    rows = [[name, rate, rate / reference] for name, rate in median.items()]
    title = (
        f"{contenders.description}; {args.dtype}, level {args.level:g}, {args.steps} steps of {SAMPLER}, guidance "
        f"{args.guidance:g}, {args.pictures} pictures, batches of {args.batch_size}{', compiled' * args.compile}"
    )
    text = timing.markdown_table(["", "pictures/s", "against diffusers one by one"], rows)
    batched = median["ours, batched"] / median["diffusers, batched"]
    text += f"\n\nOurs batched / diffusers batched: {batched:.3f}"
    timing.report(title, device, text, {"settings": title, "pictures_per_second": rates, "batched": batched}, args.json)


if __name__ == "__main__":
    main()
