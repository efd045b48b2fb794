"""Diffusion models behind one protocol."""

from anonymizer.backbones.load import load_backbone
from anonymizer.backbones.protocol import Backbone

__all__ = ["Backbone", "load_backbone"]
