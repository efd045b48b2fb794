"""Settings of a source: where the originals are, and which columns are read with them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from anonymizer.config.base import Int, Section, Uri, ensure, is_words
from anonymizer.config.model import ModelConfig
from anonymizer.storage.address import is_network, parse_address

PictureKind = Annotated[
    str, ensure(is_words, "must say in a few words what is on the pictures, got {!r}"), AfterValidator(str.strip)
]


class Limits(Section):
    """Bounds on what is decoded; a record beyond them fails with a typed reason."""

    max_bytes: Int = Field(64 * 2**20, gt=0, description="bytes of one encoded picture")
    max_pixels: Int = Field(100_000_000, gt=0, description="width x height of one picture")
    max_frames: Int = Field(1000, gt=0, description="frames of an animation; the first one is used")


class SourceConfig(Section):
    """Where the originals are, and which columns are read with them."""

    uri: Uri = Field(description="folder, file or prefix; any fsspec URI")
    format: Literal["auto", "folder", "webdataset", "parquet", "listing"] = Field(
        "auto", description="auto (by what lies there), folder, webdataset, parquet, or listing (CSV, JSONL)"
    )
    image: str = Field("image", description="column of a Parquet file or listing that holds the picture or its path")
    id: str | None = Field(None, description="column that names a record; without it, file and row do")
    label: str | None = Field(None, description="'folder', or the column or key to carry as label; none by default")
    caption: str | None = Field(None, description="column or key to carry as caption; none by default")
    carry: tuple[str, ...] = Field((), description="further columns to carry into the manifest")
    drop: tuple[str, ...] = Field((), description="columns to drop; '*' for all that are not named")
    restricted: tuple[str, ...] = Field((), description="columns to store in the ledger only")
    subject: str | None = Field(
        None,
        description="'folder', or the column that identifies a person, stored in the ledger for erasure",
    )
    allow: tuple[
        Annotated[
            Uri,
            ensure(
                lambda entry: is_network(entry) or parse_address(entry),
                "must be the absolute path or URI of a folder, the address of a web host, or an IP address or network, "
                "got {!r}",
            ),
        ],
        ...,
    ] = Field(
        (),
        description="what rows may name besides files in the table's own folder: absolute folders, prefixes "
        "(s3://bucket/pictures), web hosts (https://host); and private addresses (10.1.0.0/16) to which names of web "
        "hosts may lead",
    )
    where: dict[str, str] = Field({}, description="keep only rows whose column has this value (Parquet, listing)")
    fit: Literal["crop", "pad", "tiles"] = Field(
        "crop", description="crop or pad any other shape to the model's square; or keep it, in overlapping tiles"
    )
    kind: PictureKind | None = Field(
        None, description="what is on the pictures, in your own words; a calibration holds for one kind"
    )
    limits: Limits = Limits()

    @property
    def square_fit(self) -> Literal["crop", "pad"]:
        """The fit for networks that take squares only, such as an attacker's."""
        return "crop" if self.fit == "crop" else "pad"


def check_condition_columns(model: ModelConfig, source: SourceConfig) -> None:
    """Raise ValueError unless the source reads each column that the model is conditioned on."""
    settings = ("label", "caption")
    columns = {*source.carry, *source.restricted} - set(settings)
    columns |= {name for name in settings if getattr(source, name) is not None}
    for name in model.prompt_fields:
        if name not in columns:
            step = f"set source.{name}" if name in settings else "name the column in source.carry or source.restricted"
            raise ValueError(f"model.prompt: {{{name}}} is not read from the source: {step}")
    if model.condition == "label" and source.label is None:
        raise ValueError("model.condition: label, and source.label is not set: say where the label stands")
