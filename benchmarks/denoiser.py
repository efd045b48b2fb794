"""Measure the share of a device's peak arithmetic that the denoiser reaches, network calls and images per second.

    python benchmarks/denoiser.py --model latent --dtype float16 --batch-size 16 --guidance 7.5 --compile   # on a GPU
    python benchmarks/denoiser.py --model pixel [--batch-size 32]
    python benchmarks/denoiser.py --model latent --size 256 --batch-size 1 --steps 2 --calls 2              # on a CPU

Operations are counted by ``torch.utils.flop_counter``. The peak is what a large matrix product in the same dtype
reaches on this device, and, of GPUs that are known, what their maker's data sheet says. The latent model has Stable
Diffusion 1.5's true size and random weights; it needs neither a network connection nor weights.

A published mark to beat: Stable Diffusion 1.5, 512 px, batch of 16, float16, compiled, with guidance: about 75
image-steps per second on one A100.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import timing
import torch
from img2img import PROMPT, SAMPLER
from sizes import SD15, Shape, count_parameters, make_backbone, make_parts

from anonymizer.backbones import Backbone, compilation, load_backbone
from anonymizer.backbones.conditioning import encode_conditions
from anonymizer.backbones.load import torch_device
from anonymizer.boomerang import Boomerang
from anonymizer.config import ModelConfig
from anonymizer.noise import KeyedNoise

PUBLISHED_RATE = 75.0  # image-steps per second

# Dense TFLOP/s of data sheets: half precision with tensor cores, TF32 (what convolutions in float32 run in).
DATA_SHEET_TFLOPS = {
    "H200": (989.0, 494.0),
    "H100 PCIe": (756.0, 378.0),
    "H100": (989.0, 494.0),
    "A100": (312.0, 156.0),
    "L40S": (362.0, 183.0),
    "A10": (125.0, 62.5),
    "L4": (121.0, 60.0),
}


def data_sheet_peak(name: str, dtype: torch.dtype) -> float | None:
    """Return the operations per second by the data sheet, where the device is known."""
    for known, (half, tf32) in DATA_SHEET_TFLOPS.items():
        if known in name.replace("-", " "):
            return 1e12 * (tf32 if dtype == torch.float32 else half)
    return None


def measure_peak(device: torch.device, dtype: torch.dtype, side: int, repeats: int = 5) -> float:
    """Return the operations per second of the best of some products of two square matrices."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        torch.mm(a, b)
        best = min(timing.time_call(lambda: torch.mm(a, b), device) for _ in range(repeats))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return 2.0 * side**3 / best


def measure(model: Backbone, batch_size: int, level: float, steps: int, calls: int, repeats: int) -> dict[str, float]:
    """Return medians of ``repeats``: network calls and pictures per second, and operations of one image-step."""
    x0 = torch.rand(batch_size, 3, model.size, model.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    condition = encode_conditions(model, [PROMPT] * batch_size) if model.condition_kind == "prompt" else None
    row_condition = encode_conditions(model, [PROMPT]) if model.condition_kind == "prompt" else None
    boomerang, noise = Boomerang(model, SAMPLER, steps), KeyedNoise([i.to_bytes(16, "big") for i in range(batch_size)])
    flops = compilation.count_flops(model, row_condition)  # counted on the eager network
    with torch.inference_mode():
        zt = model.encode(x0)

        def network() -> None:
            for k in range(calls):
                model.predict(zt, model.T // 2 - k % 2, condition)

        def whole() -> None:
            boomerang.sample(x0.to(model.device), level, noise, condition).cpu()

        network()  # warm up, and compile
        contenders = {
            "calls": lambda: calls / timing.time_call(network, model.device),
            "pictures": lambda: batch_size / timing.time_call(whole, model.device),
        }
        rates = timing.medians(timing.take_turns(contenders, repeats))
    return {"operations": float(flops), **rates}


def main(arguments: list[str] | None = None, shape: Shape = SD15) -> None:
    parser = timing.argument_parser(__doc__)
    parser.add_argument("--calls", type=int, default=10, help="network calls that are timed together")
    parser.add_argument("--matrix", type=int, help="side of the matrices; 8192 on a GPU, 2048 elsewhere")
    args = parser.parse_args(arguments)

    device, dtype = torch_device(args.device), getattr(torch, args.dtype)
    settings: dict[str, Any] = {"device": str(device), "dtype": args.dtype, "size": args.size}
    with tempfile.TemporaryDirectory() as scratch:
        if args.model == "pixel":
            model: Any = load_backbone(ModelConfig(**settings))
        else:
            config = ModelConfig(id="random/latent", prompt=PROMPT, guidance=args.guidance, **settings)
            model = make_backbone(make_parts(shape, Path(scratch)), config, device, Path(scratch))
        if args.compile:
            compilation.compile_network(model, args.batch_size)
        rates = measure(model, args.batch_size, args.level, args.steps, args.calls, args.repeats)
    best = measure_peak(device, dtype, args.matrix or (8192 if device.type == "cuda" else 2048))
    name = timing.describe_machine(device)["device"]
    reached = rates["operations"] * rates["calls"] * args.batch_size
    by_sheet = data_sheet_peak(name, dtype)
    image_steps = rates["calls"] * args.batch_size
    rows = [
        ["network calls/s, batches of " + str(args.batch_size), rates["calls"]],
        ["image-steps/s", image_steps],
        [f"pictures/s, level {args.level:g}, {args.steps} steps", rates["pictures"]],
        ["operations of an image-step", f"{rates['operations'] / 1e9:.4g} G"],
        ["reached", f"{reached / 1e12:.3g} TFLOP/s"],
        ["of a matrix product here", _share(reached, best)],
        ["of the data sheet", "not known" if by_sheet is None else _share(reached, by_sheet)],
    ]
    if args.model == "latent" and device.type == "cuda":
        rows.append(["against the mark (75 on one A100)", image_steps / PUBLISHED_RATE])
    million = count_parameters(compilation.get_network(model)) / 1e6
    title = (
        f"{args.model} model, {million:.1f} M parameters, {model.size} px, {args.dtype}, guidance {args.guidance:g}"
        f"{', compiled' * args.compile}"
    )
    result = {"settings": title, **rates, "peak": best, "sheet": by_sheet, "share": reached / best}
    timing.report(title, device, timing.markdown_table(["", ""], rows), result, args.json)


def _share(reached: float, best: float) -> str:
    return f"{best / 1e12:.4g} TFLOP/s: {reached / best:.1%}"


if __name__ == "__main__":
    main()
