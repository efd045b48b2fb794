"""``croissant.json``: a machine-readable description of a release (Croissant 1.1 with the RAI vocabulary).

Its only input are the public facts. Licence, address, creator and citation are left out, though Croissant asks for
some of them: only the publisher can state them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from anonymizer.data.image_codec import MEDIA_TYPES, SUFFIXES
from anonymizer.report.facts import PublicFacts
from anonymizer.storage.layout import MANIFEST

PAPER = "https://arxiv.org/abs/2210.12100"
KEYWORDS = ("image", "synthetic", "diffusion", "boomerang")
TERMS = (
    *("annotation", "arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "excludes", "extract"),
    *("field", "fileObject", "fileProperty", "fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath"),
    *("key", "md5", "parentField", "path", "readLines", "recordSet", "references", "regex", "repeated", "replace"),
    *("samplingRate", "sdVersion", "separator", "source", "subField", "transform", "unArchive"),
)
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    **{term: f"cr:{term}" for term in TERMS},
}
# By the word for a column's type; all others are text.
DATA_TYPES = {"integer": "sc:Integer", "number": "sc:Float", "true or false": "sc:Boolean"}
PARQUET = "application/x-parquet"
PART_FILES = {"webdataset": ("application/x-tar", "data/*.tar"), "parquet": (PARQUET, "data/*.parquet")}
FILES_ID, RECORDS_ID = "files", "pictures"
MANIFEST_SOURCE: dict[str, Any] = {"fileObject": {"@id": MANIFEST}}
FILES_SOURCE: dict[str, Any] = {"fileSet": {"@id": FILES_ID}}


def build_croissant(facts: PublicFacts) -> bytes:
    """Return the file; the same facts give the same bytes."""
    document = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": facts.title,
        "description": _description(facts),
        "conformsTo": ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"],
        "citation": PAPER,
        "datePublished": facts.date.isoformat(),
        "keywords": [*KEYWORDS],
        "isLiveDataset": False,
        **{f"rai:{name}": value for name, value in _rai_fields(facts).items()},
        "distribution": [*_list_files(facts)],
        "recordSet": [_record_set(facts)],
    }
    return json.dumps(document, indent=2).encode()


def _description(facts: PublicFacts) -> str:
    summary = {0: "No picture was released", 1: f"1 picture, redrawn from {facts.origin}"}.get(
        facts.released, f"{facts.released:,} pictures, each redrawn from {facts.origin}"
    )
    target = "each" if facts.k == 1 else "each mean"
    return (
        f"{summary}. The originals are not part of this release: noise was added to {target}, and a diffusion model "
        f"drew a new picture from what was left (Boomerang local sampling, {PAPER}). A level is a setting, not a "
        "guarantee: it says how much noise was added, not whether a person can be found again. Licence, address, "
        "creator and citation are the publisher's to state; this file states none."
    )


def _rai_fields(facts: PublicFacts) -> dict[str, str | list[str]]:
    """Return the terms of the RAI vocabulary that the facts answer."""
    copied = ", ".join(facts.passthrough)
    settings = "; ".join(f"{x.name}: {x.value}" + (f" ({x.note})" if x.note else "") for x in facts.settings)
    return {
        "dataCollection": f"Each picture was drawn by a diffusion model from {facts.origin} that the publisher held. "
        "How the originals were collected is the publisher's to say.",
        "dataCollectionType": ["Secondary Data analysis"],
        "dataCollectionRawData": "The originals, which stay with the publisher.",
        "dataCollectionMissingData": f"{facts.read - facts.records:,} of {facts.read:,} records that were read are "
        "not released. A value is empty where the source had none, or where the publisher chose to carry none.",
        "dataPreprocessingProtocol": [facts.processing[0]],
        "dataManipulationProtocol": f"Boomerang local sampling ({PAPER}). {settings}. Where a picture was drawn in "
        "another way, its row says so.",
        "dataAnnotationProtocol": [
            f"Copied from the source unchanged: {copied}. They were made for the originals, and do not follow "
            "the model's changes."
            if copied
            else "No label, caption or other column was copied from the source."
        ],
        "personalSensitiveInformation": [
            "Pictures may still show people, redrawn. The risk is measured by an audit; this file reports none.",
            *([f"What was copied from the source may itself be personal: {copied}."] if copied else []),
        ],
        "dataLimitations": facts.limits,
        "dataBiases": [
            "Not measured here. Expect those of the originals, and those of the pictures that taught the model."
        ],
        "dataUseCases": [
            "Training and testing where the originals cannot be handed out, once it was checked that the pictures "
            "serve the task at hand."
        ],
        "dataSocialImpact": "Meant to expose the people on the originals less than the originals would.",
        "dataReleaseMaintenancePlan": f"Releases are distinguished by the SHA-256 of {MANIFEST}. "
        "Maintenance, and for how long, is the publisher's to state.",
    }


def _list_files(facts: PublicFacts) -> Iterator[dict[str, Any]]:
    yield {
        "@type": "cr:FileObject",
        "@id": MANIFEST,
        "name": MANIFEST,
        "description": "One row for each picture.",
        "contentUrl": MANIFEST,
        "contentSize": f"{facts.manifest_bytes} B",
        "encodingFormat": PARQUET,
        "sha256": facts.manifest_sha256,
    }
    if facts.released:
        kind, pattern = PART_FILES.get(facts.layout) or (MEDIA_TYPES[facts.image], f"images/*/*{SUFFIXES[facts.image]}")
        about = "The pictures; the manifest has the SHA-256 of each."
        yield {"@type": "cr:FileSet", "@id": FILES_ID, "name": FILES_ID, "description": about, "encodingFormat": kind,
               "includes": pattern}  # fmt: skip


def _record_set(facts: PublicFacts) -> dict[str, Any]:
    """Return the columns of the manifest and, if they can be joined, the images."""
    sources = {column.name: {"source": _column_source(MANIFEST_SOURCE, column.name)} for column in facts.columns}
    joined = _joined_sources(facts) if facts.released and facts.has_joined_images else {}
    sources |= joined
    fields = [(c.name, c.about, DATA_TYPES.get(c.type, "sc:Text")) for c in facts.columns]
    if joined:  # no column is called image
        fields.append(("image", "The picture.", "sc:ImageObject"))
    return {
        "@type": "cr:RecordSet",
        "@id": RECORDS_ID,
        "name": RECORDS_ID,
        "description": "One record for each picture.",
        "key": {"@id": f"{RECORDS_ID}/output_id"},
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{RECORDS_ID}/{quote(name, safe='')}",
                "name": name,
                "description": about,
                "dataType": kind,
                **sources[name],
            }
            for name, about, kind in fields
        ],
    }


def _joined_sources(facts: PublicFacts) -> dict[str, Any]:
    """Return the sources of id and image that join rows to images; mlcroissant transforms sources, not references."""
    id_column = _column_source(MANIFEST_SOURCE, "output_id")
    if facts.layout == "parquet":
        image = _column_source(FILES_SOURCE, "image") | {"transform": {"jsonPath": "bytes"}}
        output_id = {"source": id_column, "references": _column_source(FILES_SOURCE, "output_id")}
    else:
        image = FILES_SOURCE | {"extract": {"fileProperty": "content"}}
        by_name = {"extract": {"fileProperty": "filename"}, "transform": {"regex": "^([0-9a-f]+)"}}
        output_id = {"source": FILES_SOURCE | by_name, "references": id_column}
    return {"output_id": output_id, "image": {"source": image}}


def _column_source(files: dict[str, Any], name: str) -> dict[str, Any]:
    return files | {"extract": {"column": name}}
