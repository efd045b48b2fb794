"""The small models that come with the package, for demonstration: what there is, and their cards."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path


@dataclass(frozen=True)
class ModelCard:
    summary: str  # one line
    text: str  # Markdown
    weight_bytes: int  # of the weights


def read_model_cards() -> dict[str, ModelCard]:
    """Name -> card of each bundled model, from the README.md in its folder."""
    root = Path(str(files("anonymizer.bundled")))
    return {path.parent.name: _card(path) for path in sorted(root.glob("*/README.md"))}


def _card(path: Path) -> ModelCard:
    text = path.read_text(encoding="utf-8")
    about = next((line for line in text.splitlines() if line and not line.startswith(("#", "---"))), "")
    return ModelCard(about, text, sum(p.stat().st_size for p in path.parent.rglob("*.safetensors")))
