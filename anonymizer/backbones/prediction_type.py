"""From what a network was trained to say to what it takes z_t for."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from anonymizer.backbones.protocol import Denoised
from anonymizer.errors import ModelError

OutputConverter = Callable[[torch.Tensor, torch.Tensor, float], Denoised]  # z_t, the network's output, abar_t


def from_noise(zt: torch.Tensor, out: torch.Tensor, abar: float) -> Denoised:
    return Denoised((zt - math.sqrt(1 - abar) * out) / math.sqrt(abar), out)


def from_sample(zt: torch.Tensor, out: torch.Tensor, abar: float) -> Denoised:
    return Denoised(out, (zt - math.sqrt(abar) * out) / math.sqrt(1 - abar))


def from_v(zt: torch.Tensor, out: torch.Tensor, abar: float) -> Denoised:
    """v = sqrt(abar) eps - sqrt(1 - abar) z0 (Salimans and Ho 2022)."""
    a, s = math.sqrt(abar), math.sqrt(1 - abar)
    return Denoised(a * zt - s * out, s * zt + a * out)


def clip_z0(zt: torch.Tensor, denoised: Denoised, abar: float, bound: float) -> Denoised:
    """z0 within [-bound, bound], and the noise that agrees with it."""
    return from_sample(zt, denoised.z0.clamp(-bound, bound), abar)


OUTPUT_CONVERTERS: dict[str, OutputConverter] = {"epsilon": from_noise, "sample": from_sample, "v_prediction": from_v}


def make_output_converter(name: str, prediction_type: str, abar: torch.Tensor) -> OutputConverter:
    """The reading of a model with the schedule ``abar`` (T,). ModelError if it cannot be read at every step."""
    if prediction_type not in OUTPUT_CONVERTERS:
        raise ModelError(
            f"model.id {name!r}: prediction_type {prediction_type!r}: epsilon, sample and v_prediction are supported"
        )
    least_open = 0.0 if prediction_type == "epsilon" else -1.0  # of no signal at all, noise tells nothing of z0
    usable = (abar > least_open) & (abar < 1)
    if not usable.all():
        at = int(usable.int().argmin()) + 1
        raise ModelError(
            f"model.id {name!r}: its schedule leaves no signal or no noise at step {at} (alphas_cumprod "
            f"{float(abar[at - 1]):g}), which a model of {prediction_type} cannot start from: choose one that was "
            "trained with v_prediction, or without rescale_betas_zero_snr"
        )
    return OUTPUT_CONVERTERS[prediction_type]
