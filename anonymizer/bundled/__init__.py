"""Small models that come with the package, for demonstration, with their cards and recipes."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path


@dataclass(frozen=True)
class ModelCard:
    summary: str  # one line
    text: str  # Markdown
    weight_bytes: int


def read_model_cards() -> dict[str, ModelCard]:
    """Return name -> card of each bundled model, from the README.md in its folder."""
    root = Path(str(files("anonymizer.bundled")))
    return {path.parent.name: _read_card(path) for path in sorted(root.glob("*/README.md"))}


def _read_card(path: Path) -> ModelCard:
    text = path.read_text(encoding="utf-8")
    summary = next((line for line in text.splitlines() if line and not line.startswith(("#", "---"))), "")
    return ModelCard(summary, text, sum(weights.stat().st_size for weights in path.parent.rglob("*.safetensors")))
