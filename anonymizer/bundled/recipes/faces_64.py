"""Recipe of ``bundled:faces-64``: a small diffusion model of 64 x 64 faces that two CPU cores can train.

    python -m anonymizer.bundled.recipes.faces_64 --data faces.parquet --work WORKDIR --minutes 120 [--start FOLDER]

Reads a Parquet file with the columns ``image`` (encoded bytes) and ``split`` (``train`` / ``test``), writes
``WORKDIR/model`` (a diffusers pipeline folder, fp16 safetensors, EMA weights) and ``WORKDIR/training.json``.
"""

from anonymizer.bundled.recipes.training import Recipe, train

# 3.8 M parameters, attention at 8 x 8.
RECIPE = Recipe(64, (64, 96, 128), (False, False, True), batch=32, rate=6e-4, ema=0.9995)

if __name__ == "__main__":
    train(RECIPE, __doc__)
