"""Conversion of a network's output, whatever it was trained to predict, to estimates of z0 and of the noise."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from anonymizer.backbones.protocol import Denoised
from anonymizer.errors import ModelError

OutputConverter = Callable[[torch.Tensor, torch.Tensor, float], Denoised]  # z_t, the network's output, abar_t


def from_noise(zt: torch.Tensor, out: torch.Tensor, abar: float) -> Denoised:
    """Convert eps (Ho et al. 2020)."""
    return Denoised((zt - math.sqrt(1 - abar) * out) / math.sqrt(abar), out)


def from_sample(zt: torch.Tensor, out: torch.Tensor, abar: float) -> Denoised:
    """Convert z0."""
    return Denoised(out, (zt - math.sqrt(abar) * out) / math.sqrt(1 - abar))


def from_v(zt: torch.Tensor, out: torch.Tensor, abar: float) -> Denoised:
    """Convert v = sqrt(abar) eps - sqrt(1 - abar) z0 (Salimans and Ho 2022)."""
    a, s = math.sqrt(abar), math.sqrt(1 - abar)
    return Denoised(a * zt - s * out, s * zt + a * out)


OUTPUT_CONVERTERS: dict[str, OutputConverter] = {"epsilon": from_noise, "sample": from_sample, "v_prediction": from_v}


def make_output_converter(name: str, prediction_type: str, abar: torch.Tensor) -> OutputConverter:
    """Return the converter of a model with the schedule ``abar`` (T,). ModelError if a step of it is not invertible."""
    if prediction_type not in OUTPUT_CONVERTERS:
        raise ModelError(
            f"model.id {name!r}: prediction_type {prediction_type!r}: epsilon, sample and v_prediction are supported"
        )
    lower = 0.0 if prediction_type == "epsilon" else -1.0  # without any signal, the noise does not determine z0
    usable = (abar > lower) & (abar < 1)
    if not usable.all():
        step = int(usable.int().argmin()) + 1
        raise ModelError(
            f"model.id {name!r}: its schedule leaves no signal or no noise at step {step} (alphas_cumprod "
            f"{float(abar[step - 1]):g}), which a model of {prediction_type} cannot start from: choose one that was "
            "trained with v_prediction, or without rescale_betas_zero_snr"
        )
    return OUTPUT_CONVERTERS[prediction_type]
