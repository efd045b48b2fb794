"""The finished ledger, read once: what reports, statement, public half and verification take from its rows."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack

import pyarrow as pa
import pyarrow.compute as pc

from anonymizer.config import RunConfig
from anonymizer.data.passthrough_columns import TypeInference
from anonymizer.errors import IntegrityError
from anonymizer.records import Plan, ShardSummary, Status
from anonymizer.release import grouped
from anonymizer.release.ledger import (
    ORIGINAL_COLUMNS,
    Ledger,
    combine_summaries,
    parse_shard,
    redo_hint,
    scratch_folder,
    staging_folder,
    summarize_shard,
)
from anonymizer.release.plan import read_entries
from anonymizer.schema import LEDGER_SCHEMA, METHOD_COLUMNS, SCORE_COLUMNS, read_metric_models
from anonymizer.storage.external_sort import ExternalSort
from anonymizer.storage.layout import Release

ID_AND_DIGEST = ("output_id", "sha256")
OUTPUT_COLUMNS = (
    *(*ID_AND_DIGEST, "status", "shard", "group", "bytes", "width", "height", "label", "caption", "carried"),
    *(*METHOD_COLUMNS, *SCORE_COLUMNS),
)
OUTPUT_SCHEMA = pa.schema([*(LEDGER_SCHEMA.field(name) for name in OUTPUT_COLUMNS), ("staging", pa.string())])


class FinishedLedger(AbstractContextManager["FinishedLedger"]):
    """Counts, digest, outputs in public order and sorted originals of a release whose shards are all committed.

    ``collect`` is called with the rows of each shard. Holds unlinked temporary files until it is closed. Raises
    IntegrityError where the rows do not account for every planned record exactly once, were made with other settings
    or scored by different models, or are no groups as the settings of ``config`` ask for.
    """

    def __init__(
        self,
        release: Release,
        plan: Plan,
        config: RunConfig,
        collect: Callable[[pa.Table], None] = lambda table: None,
    ) -> None:
        self.release, self.plan, self.config = release, plan, config
        self.metric_models: Mapping[str, str] | None = None
        self.score_columns: set[str] = set()  # of which some released row has a value
        self._types = TypeInference(config.source.carry)
        folder, digest = scratch_folder(release), hashlib.sha256()
        shards, reasons = list[ShardSummary](), Counter[str]()
        ledger = Ledger(release, plan)
        if missing := len(ledger.missing_shards()):
            raise IntegrityError(
                f"{missing} of {plan.shards} shards are not committed: run the same command again to finish them"
            )
        with ExitStack() as stack:
            self._outputs = stack.enter_context(ExternalSort((), "output_id", plan.records, folder))
            self._outputs.add(OUTPUT_SCHEMA.empty_table())
            self.originals = stack.enter_context(ExternalSort((), "source_hmac", plan.records, folder))
            for shard, data in ledger.read_files():
                digest.update(hashlib.sha256(data).hexdigest().encode())
                table = parse_shard(shard, data)
                shards.append(summarize_shard(shard, table))
                self._reconcile(shards[-1], table)
                reasons.update(table["reason"].drop_null().to_pylist())
                self._add(shard, table)
                collect(table)
            self.summary, self.digest = combine_summaries(shards, reasons), digest.hexdigest()
            if self.summary.read != plan.records:
                raise IntegrityError(
                    f"release: planned {plan.records} records, the ledger has {self.summary.read}: nothing is "
                    "published: restore restricted/plan.json, or choose another output"
                )
            self._stack = stack.pop_all()

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def passthrough_types(self) -> Mapping[str, pa.DataType]:
        """Type of each column that is carried from the source."""
        return self._types.types()

    def outputs(self, status: Status | None = None) -> Iterator[pa.Table]:
        """Yield each output once, of one status or all, in ``output_id`` order, a table for each partition."""
        for table in map(_merge_shared, self._outputs.tables()):
            yield table if status is None else table.filter(pc.equal(table["status"], status.value))

    def _add(self, shard: int, table: pa.Table) -> None:
        models = read_metric_models(table.schema)
        if self.metric_models not in (None, models):
            raise IntegrityError(f"shard {shard}: scored by other models than the rest: {redo_hint(shard)}")
        self.metric_models = models
        outputs = table.filter(grouped.has_output(table)).replace_schema_metadata()
        folders = pa.repeat(staging_folder(table), len(outputs))
        self._outputs.add(outputs.append_column("staging", folders).select(OUTPUT_SCHEMA.names))
        self.originals.add(table.select(ORIGINAL_COLUMNS).filter(table["source_hmac"].is_valid()))
        released = outputs.filter(pc.equal(outputs["status"], Status.RELEASED.value))
        self.score_columns |= {name for name in SCORE_COLUMNS if released[name].null_count < len(released)}
        self._types.update(released["carried"].to_pylist())

    def _reconcile(self, counts: ShardSummary, table: pa.Table) -> None:
        """Raise IntegrityError unless every planned record of a shard is there once, with an outcome."""
        shard, accounted = counts.shard, counts.released + counts.quarantined + counts.failed + counts.waiting
        if counts.read != accounted:
            raise IntegrityError(f"shard {shard}: read {counts.read}, accounted for {accounted}: nothing is published")
        planned = {entry.record_id: entry.group for entry in read_entries(self.release, self.plan, shard)}
        if counts.read != len(planned) or set(table["record_id"].to_pylist()) != planned.keys():
            raise IntegrityError(
                f"shard {shard}: planned {len(planned)} records, the ledger has {counts.read}, and they are not the "
                f"same: nothing is published: {redo_hint(shard)}"
            )
        fingerprints = table.filter(pc.invert(table["kept"]))["config_fingerprint"]
        if not set(fingerprints.to_pylist()) <= {self.plan.fingerprint, *self.plan.escalated}:
            raise IntegrityError(f"shard {shard}: made with other settings than planned: {redo_hint(shard)}")
        if (fault := grouped.find_fault(table, planned, self.config)) is not None:
            raise IntegrityError(f"shard {shard}: {fault}: {redo_hint(shard)}")


def _merge_shared(table: pa.Table) -> pa.Table:
    """Return each output once; members of a group may share one. Raises IntegrityError where they differ about it."""
    if table["group"].null_count == len(table):
        return table
    merged = table.group_by(table.column_names, use_threads=False).aggregate([]).sort_by("output_id")
    if len(pc.unique(merged["output_id"])) != len(merged):
        raise IntegrityError("release: records that share an output id differ about it: nothing is published")
    return merged.select(table.column_names)
