"""Diffusion models behind one protocol."""

from anonymizer.backbones.load import load_backbone
from anonymizer.backbones.protocol import Backbone, Denoised

__all__ = ["Backbone", "Denoised", "load_backbone"]
