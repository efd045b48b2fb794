"""Recipe of ``bundled:cifar10-32``: a small class-conditional diffusion model of 32 x 32 images, for two CPU cores.

    python -m anonymizer.bundled.recipes.cifar10_32 --data cifar10.parquet --work WORKDIR --minutes 80 [--start FOLDER]

Reads a Parquet file with the columns ``image`` (encoded bytes), ``label`` (a name) and ``split`` (``train`` /
``test``), writes ``WORKDIR/model`` (a diffusers pipeline folder, fp16 safetensors, EMA weights) and
``WORKDIR/training.json``. One label in seven is dropped, so that the model serves without labels and with guidance.
"""

from anonymizer.bundled.recipes.clip_mini_data import OBJECTS
from anonymizer.bundled.recipes.training import Recipe, train

# 8.3 M parameters, attention at 8 x 8 and 4 x 4.
RECIPE = Recipe(
    32, (96, 128, 192), (False, True, True), batch=64, rate=8e-4, ema=0.999, names=OBJECTS, label_dropout=1 / 7
)

if __name__ == "__main__":
    train(RECIPE, __doc__)
