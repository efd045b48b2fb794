"""The columns of ledger and manifest: each once, with its type, its meaning and the tables it is in.

The ledger (``restricted/ledger/``) has one row for each record read, the manifest (``public/manifest.parquet``) one for
each released image. A column that is not in the manifest is restricted: it says which original an image is from, or how
it was made.
"""

from __future__ import annotations

import json
from enum import Flag, auto
from typing import NamedTuple

import pyarrow as pa


class Table(Flag):
    """The tables of a release."""

    LEDGER = auto()
    MANIFEST = auto()


LEDGER, MANIFEST, BOTH = Table.LEDGER, Table.MANIFEST, Table.LEDGER | Table.MANIFEST


class Column(NamedTuple):
    """One column. ``meaning`` is what cards and reports print of it."""

    name: str
    type: pa.DataType
    tables: Table
    meaning: str


TEXT, INT, DOUBLE, SCORE = pa.string(), pa.int32(), pa.float64(), pa.float32()
BIN_SUFFIX = "_bin"  # after the name of a score, for the column that publishes it as a range

# In the order of the ledger's files; the manifest's own follow.
COLUMNS = (
    Column("record_id", TEXT, LEDGER, "Path, tar key or row in the source; odd bytes are percent-encoded."),
    Column("source_uri", TEXT, LEDGER, "File that held the original."),
    Column("source_hmac", TEXT, LEDGER, "Keyed digest of the original's bytes."),
    Column("output_id", TEXT, BOTH, "Name of the image: an HMAC under the custodian's key, unrelated to source order."),
    Column("status", TEXT, LEDGER, "How the record ended: released, quarantined, failed or waiting."),
    Column("reason", TEXT, LEDGER, "Why it was not released."),
    Column("attempts", INT, LEDGER, "Times it went through Boomerang; 0 where it did not."),
    Column("level", DOUBLE, BOTH, "Share of the noise schedule that was run, in (0, 1]. A setting, not a guarantee."),
    Column("t_boom", INT, BOTH, "The step of the schedule that this level stands for."),
    Column("log_snr", DOUBLE, BOTH, "Natural log of signal to noise at that step; comparable across models."),
    Column("sampler", TEXT, BOTH, "How the reverse process was run from there."),
    Column("steps", INT, BOTH, "Network calls for each image."),
    Column("clip_similarity", SCORE, BOTH, "CLIP similarity to the original, exact. Higher is closer."),
    Column("lpips", SCORE, BOTH, "LPIPS distance from the original, exact. Lower is closer."),
    Column("identity_distance", SCORE, LEDGER, "Least of 1 - cosine between face descriptors of original and output."),
    Column("model_digest", TEXT, BOTH, "SHA-256 over the model's files."),
    Column("config_fingerprint", TEXT, BOTH, "SHA-256 over every setting that changes pixels."),
    Column("code_version", TEXT, LEDGER, "Version of this program."),
    Column("shard", INT, LEDGER, "Number of the shard."),
    Column("started", pa.timestamp("us", "UTC"), LEDGER, "When its batch was begun."),
    Column("seconds", DOUBLE, LEDGER, "Its share of its batch's time."),
    Column("model", TEXT, BOTH, "The diffusion model that made the image."),
    Column("faces", INT, LEDGER, "Faces detected on the output; null where not asked for."),
    Column("sha256", TEXT, BOTH, "SHA-256 of the encoded image."),
    Column("bytes", pa.int64(), BOTH, "Size of the encoded image."),
    Column("width", INT, BOTH, "Pixels across."),
    Column("height", INT, BOTH, "Pixels down."),
    Column("label", TEXT, BOTH, "Label, copied from the source unchanged; empty if none is carried."),
    Column("caption", TEXT, BOTH, "Caption, copied from the source unchanged; empty if none is carried."),
    Column("carried", TEXT, LEDGER, "Further columns for the manifest (``source.carry``), as JSON."),
    Column("restricted", TEXT, LEDGER, "Columns that stay in the ledger (``source.restricted``), as JSON."),
    Column("subject", TEXT, LEDGER, "The person shown, as named by ``source.subject``."),
    Column("earlier", TEXT, LEDGER, "Attempts before this one, as JSON: level, scores, reason."),
    Column("kept", pa.bool_(), LEDGER, "Published by an earlier release, and taken over from there."),
    Column("group", TEXT, LEDGER, "Keyed id of the group whose mean was sampled; null without groups."),
    Column("group_size", INT, LEDGER, "Originals in the mean; null without groups."),
    Column("file", TEXT, MANIFEST, "Path of the image, relative to this folder."),
    Column("member", TEXT, MANIFEST, "Tar member or Parquet row; empty where the image is a file of its own."),
    Column("format", TEXT, MANIFEST, "Encoding: png, jpeg or webp."),
    Column("k", INT, MANIFEST, "Originals, at least, whose mean the image is a local sample of; not without groups."),
    Column("clip_similarity_bin", TEXT, MANIFEST, "CLIP similarity, as a range of width 0.1. Higher is closer."),
    Column("lpips_bin", TEXT, MANIFEST, "LPIPS distance, as a range of width 0.1. Lower is closer."),
)

LEDGER_SCHEMA = pa.schema([(column.name, column.type) for column in COLUMNS if LEDGER in column.tables])

LATER_COLUMNS = ("group", "group_size")  # that ledgers of earlier versions do not have

# Columns of every manifest, in order; those that are carried from the source stand before ``level``, scores at the end.
IMAGE_COLUMNS = ("output_id", "file", "member", "sha256", "bytes", "width", "height", "format", "label", "caption")
METHOD_COLUMNS = ("level", "t_boom", "log_snr", "sampler", "steps", "model", "model_digest", "config_fingerprint")
GROUP_COLUMNS = ("k",)  # after those, in manifests of groups
NULLABLE_COLUMNS = frozenset(["member", "label", "caption"])
SCORE_COLUMNS = ("clip_similarity", "lpips")  # what a manifest may publish, exactly or as ``_bin``

_TYPES = {column.name: column.type for column in COLUMNS}
MANIFEST_TYPES = {name: _TYPES[name] for name in (*IMAGE_COLUMNS, *METHOD_COLUMNS)}
GROUP_TYPES = {name: _TYPES[name] for name in GROUP_COLUMNS}
SCORE_TYPES = {name: _TYPES[name] for name in (*SCORE_COLUMNS, *(f"{name}{BIN_SUFFIX}" for name in SCORE_COLUMNS))}
OWN_TYPES = MANIFEST_TYPES | GROUP_TYPES | SCORE_TYPES  # of all columns of a manifest that are not from the source
MANIFEST_MEANINGS = {c.name: c.meaning for c in COLUMNS if MANIFEST in c.tables}

# No manifest has one of these, and no column of such a name is carried from the source.
PRIVATE_COLUMNS = frozenset(
    [*(c.name for c in COLUMNS if MANIFEST not in c.tables), f"identity_distance{BIN_SUFFIX}", "seed", "embedding"]
)


def read_metric_models(schema: pa.Schema) -> dict[str, str]:
    """Return the model behind each metric column, from the metadata of a ledger's or a manifest's schema."""
    models = json.loads((schema.metadata or {}).get(b"metric_models", b"{}"))
    return {metric: str(model) for metric, model in models.items()}
