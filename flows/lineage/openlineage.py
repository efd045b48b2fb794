"""The events of a run in OpenLineage's own classes and two facets of ours, and how they are sent."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attr
import pyarrow as pa
import pyarrow.parquet as pq
import requests
from fsspec.implementations.local import LocalFileSystem
from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    DatasetFacet,
    OutputDatasetFacet,
    RunFacet,
    error_message_run,
    output_statistics_output_dataset,
    schema_dataset,
)
from openlineage.client.facets import FacetsConfig
from openlineage.client.transport import Transport
from openlineage.client.transport.file import FileConfig, FileTransport
from openlineage.client.transport.http import ApiKeyTokenProvider, HttpConfig, HttpTransport, TokenProvider
from openlineage.client.uuid import generate_new_uuid

from anonymizer.config import RunConfig
from anonymizer.errors import ReportableError
from anonymizer.release import plan
from anonymizer.release.ledger import Ledger
from anonymizer.storage.layout import AUDIT, Release
from anonymizer.storage.path import StoragePath

PRODUCER = f"urn:anonymizer:{version('anonymizer')}"
TIMEOUT = 5.0  # seconds, to connect, and for each answer
TRIES = 2
COUNTS = ("read", "released", "quarantined", "failed", "waiting", "images")  # in the facet of a run


@attr.define
class AnonymizationRunFacet(RunFacet):
    """How outputs were drawn, and what became of the records; see docs/lineage.md."""

    level: float
    t_boom: int
    log_snr: float
    sampler: str
    steps: int
    model: str
    model_digest: str
    config_fingerprint: str
    read: int
    released: int
    quarantined: int
    failed: int
    waiting: int
    images: int
    gate: str

    @staticmethod
    def _get_schema() -> str:
        return "urn:anonymizer:facet:anonymization:v1#/$defs/AnonymizationRunFacet"


@attr.define
class RiskDatasetFacet(DatasetFacet):
    """The public summary of how far the release can be attacked; see docs/lineage.md."""

    result: str
    pictures_attacked: int | None = None
    confidence: float | None = None
    answers: dict[str, dict[str, Any]] | None = None
    formal_guarantee: str | None = None
    reading: str | None = None

    @staticmethod
    def _get_schema() -> str:
        return "urn:anonymizer:facet:risk:v1#/$defs/RiskDatasetFacet"


@dataclass(frozen=True)
class Facets:
    """Facets of the run, of its output dataset, and of what was written there."""

    run: dict[str, RunFacet] = field(default_factory=dict)
    output: dict[str, DatasetFacet] = field(default_factory=dict)
    written: dict[str, OutputDatasetFacet] = field(default_factory=dict)


class RunEvents:
    """The events of one run. Each method sends one, and returns a line for each thing that went wrong."""

    def __init__(self, config: RunConfig, destination: str, job: str, uri: str) -> None:
        self.config, self.destination, self.job, self.uri = config, destination, job, uri
        self.run_id = str(generate_new_uuid())

    def send_start(self) -> list[str]:
        return self._send(RunState.START, Facets())

    def send_complete(self, gate: str) -> list[str]:
        facets, problems = self._facets(gate)
        return problems + self._send(RunState.COMPLETE, facets)

    def send_failure(self, error: BaseException, gate: str) -> list[str]:
        """Send the kind of error, with its text where that never names a record."""
        name = type(error).__name__
        text = f"{name}: {error}" if isinstance(error, ReportableError) else name
        # Before a gate decides, there may be no whole release to describe.
        facets, problems = (Facets(), []) if gate == "none" else self._facets(gate)
        message = error_message_run.ErrorMessageRunFacet(text, "python", producer=PRODUCER)
        state = RunState.FAIL if isinstance(error, Exception) else RunState.ABORT
        return problems + self._send(state, Facets(facets.run | {"errorMessage": message}))

    def _facets(self, gate: str) -> tuple[Facets, list[str]]:
        """Return the facets of the release; none, and a line, where it cannot be read."""
        try:
            release = Release.at(self.uri)
            run = {"anonymizer_anonymization": _anonymization_facet(release, gate)}
            manifest = pq.ParquetFile(pa.BufferReader(release.manifest.read()))
            is_audit = self.job == "audit"
            return Facets(
                run=dict[str, RunFacet](run),
                output={
                    "schema": _schema_facet(manifest.schema_arrow),
                    "anonymizer_risk": _risk_facet(
                        release.audit_summary if is_audit else release.public_or_candidate / AUDIT
                    ),
                },
                written={} if is_audit else {"outputStatistics": _statistics_facet(release, manifest)},
            ), []
        except Exception as error:  # whatever it is, the run is not to end with it
            return Facets(), [f"lineage: the last event says nothing of the release ({type(error).__name__})"]

    def _send(self, state: RunState, facets: Facets) -> list[str]:
        reason = ""
        for _ in range(TRIES):
            try:
                _send_event(self.destination, self._event(state, facets))
                return []
            except Exception as error:  # of a server, a disk or OpenLineage's own settings
                reason = _explain(error)
        return [
            f"lineage.to: did not take the {state.value} event of this run ({reason}), which changes nothing else: "
            "check that the server or file can be reached"
        ]

    def _event(self, state: RunState, facets: Facets) -> RunEvent:
        public = dataset_name(f"{self.uri.rstrip('/')}/public")
        inputs = [] if self.job == "erase" else [dataset_name(self.config.source.uri)]
        if self.job == "audit":
            inputs.append(public)
        elif self.config.previous is not None:  # outputs may be reused from there
            inputs.append(dataset_name(f"{self.config.previous.rstrip('/')}/public"))
        return RunEvent(
            eventTime=datetime.now(UTC).isoformat(timespec="milliseconds"),
            producer=PRODUCER,
            eventType=state,
            run=Run(self.run_id, facets.run),
            job=Job(self.config.lineage.namespace, self.job),
            inputs=[InputDataset(namespace, name) for namespace, name in inputs],
            outputs=[OutputDataset(*public, facets.written, facets=facets.output)],
        )


def dataset_name(uri: str) -> tuple[str, str]:
    """Return namespace and name as in OpenLineage: ("s3://bucket", "folder"), or ("file", "/folder") on a disk."""
    innermost = uri.rpartition("::")[2]  # of a chain of file systems, the one that it lies on
    scheme, remote, rest = innermost.partition("://")
    if not remote or scheme in LocalFileSystem.protocol:
        return "file", StoragePath.from_uri(innermost).path
    host, _, path = rest.partition("?")[0].partition("/")  # what follows a "?" may be a signature
    return f"{scheme}://{host.rpartition('@')[2] if scheme in ('http', 'https') else host}", path or "/"


def _anonymization_facet(release: Release, gate: str) -> AnonymizationRunFacet:
    the_plan = plan.read(release)
    counts = Ledger.open(release).summarize()
    settings = ("level", "t_boom", "log_snr", "sampler", "steps", "model", "model_digest")
    return AnonymizationRunFacet(
        **{name: getattr(the_plan, name) for name in settings},
        **{name: getattr(counts, name) for name in COUNTS},
        config_fingerprint=the_plan.fingerprint,
        gate=gate,
        producer=PRODUCER,
    )


def _schema_facet(schema: pa.Schema) -> schema_dataset.SchemaDatasetFacet:
    fields = [schema_dataset.SchemaDatasetFacetFields(column.name, str(column.type), fields=None) for column in schema]
    return schema_dataset.SchemaDatasetFacet(fields, producer=PRODUCER)


def _statistics_facet(
    release: Release, manifest: pq.ParquetFile
) -> output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet:
    """Return how many pictures are handed out, and in how many bytes and files, documents included."""
    folder = release.public_or_candidate
    folder.fs.invalidate_cache()
    sizes = [file["size"] for file in folder.fs.find(folder.path, detail=True).values()]
    return output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
        rowCount=manifest.metadata.num_rows, size=sum(sizes), fileCount=len(sizes), producer=PRODUCER
    )


def _risk_facet(audit: StoragePath) -> RiskDatasetFacet:
    if not audit.exists():
        return RiskDatasetFacet("not measured", producer=PRODUCER)
    summary = json.loads(audit.read())
    fields = ("pictures_attacked", "confidence", "answers", "formal_guarantee", "reading")
    return RiskDatasetFacet("measured", **{name: summary[name] for name in fields}, producer=PRODUCER)


def _send_event(destination: str, event: RunEvent) -> None:
    client = OpenLineageClient(transport=_transport(destination))
    # Whatever is set up for other programs here: neither environment variables nor a repository's address.
    client.config.facets = FacetsConfig()
    try:
        client.emit(event)
    finally:
        client.close()


def _transport(destination: str) -> Transport:
    if destination.startswith(("http://", "https://")):
        return _http_transport(destination)
    path = StoragePath.from_uri(destination)
    if path.is_local:
        Path(path.path).parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path.path, os.O_WRONLY | os.O_CREAT, 0o600))
    return FileTransport(FileConfig(path.path if path.is_local else destination, append=True))


def _http_transport(url: str) -> HttpTransport:
    session = requests.Session()
    session.max_redirects = 0  # a redirect would make of an event a request for a page, and lose it in silence
    key = os.environ.get("OPENLINEAGE_API_KEY")
    return HttpTransport(
        HttpConfig(
            url,
            endpoint=os.environ.get("OPENLINEAGE_ENDPOINT", "api/v1/lineage"),
            timeout=TIMEOUT,
            auth=ApiKeyTokenProvider({"apiKey": key}) if key else TokenProvider({}),
            session=session,
            retry={"total": 0, "status_forcelist": ()},  # tries are ours, and not logged
        )
    )


def _explain(error: Exception) -> str:
    """Return what went wrong, without an address."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    cause = error.__cause__ or error
    return f"HTTP {status}" if status else getattr(cause, "strerror", None) or type(cause).__name__
