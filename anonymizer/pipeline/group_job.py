"""A release of groups: members are joined before sampling, and each output is drawn from the mean of its group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from anonymizer.errors import IntegrityError, RecordError
from anonymizer.noise import Noise
from anonymizer.pipeline.release_job import ReleaseItem, ReleaseJob
from anonymizer.policy.gates import nearest
from anonymizer.records import Decision, Entry, Reason, Record, Scores, Status
from anonymizer.release import grouped
from anonymizer.release.ledger import LedgerRow

MAX_WAITING_BYTES = 2**28  # of pictures in groups that wait for others of their size


@dataclass(slots=True)
class GroupItem(ReleaseItem):
    """The members of one group, joined: ``picture`` is (m, 3, H, W), and ``record`` is that of any of them.

    One output belongs to the item itself, and all members share it; with ``is_dealt`` each member has one of its own.
    """

    members: Sequence[ReleaseItem] = ()
    is_dealt: bool = False

    @property
    def drawn(self) -> Sequence[ReleaseItem]:
        return self.members if self.is_dealt else (self,)

    def fail(self, reason: str | None) -> None:
        """End the group, and all that is drawn from it, without an output."""
        self.output, self.decision = None, Decision(Status.FAILED, reason)
        for member in self.members:
            member.output, member.decision = None, self.decision


class GroupJob(ReleaseJob):
    """The stages of a release of groups of ``boomerang.k`` or more; ``entries`` are all of the shard."""

    max_waiting_bytes = MAX_WAITING_BYTES

    def __init__(self, *settings: Any, entries: Sequence[Entry]) -> None:
        super().__init__(*settings)
        self.k, self.groups = self.config.boomerang.k, self.config.groups
        self.by = self.groups.columns(self.config.source)
        self.sizes = Counter(entry.group for entry in entries)
        finished = self.writer.reopened_rows
        self.sampled = set() if finished is None else set(finished["group"].to_pylist())  # before this retry

    def decode(self, record: Record) -> ReleaseItem:
        """Decode a member, and fail one whose columns could not be generalised: it leaves before the mean is taken."""
        item = super().decode(record)
        if item.decision is None:
            try:
                for name in self.groups.generalise:
                    grouped.as_number(record.columns.get(name))
            except RecordError as error:
                item.fail(error.reason)
        return item

    def begin(self, items: Iterable[ReleaseItem]) -> Iterator[ReleaseItem]:
        """Yield groups that are whole, ready to be sampled, and records that ended before or wait for a group."""
        arrived: dict[str, list[ReleaseItem]] = {}
        for item in items:
            name = item.record.entry.group
            if name is None:
                yield from self._leave_over([item])
                continue
            arrived.setdefault(name, []).append(item)
            if len(arrived[name]) == self.sizes[name]:
                yield from self._join(name, arrived.pop(name))

    def _join(self, name: str, items: Sequence[ReleaseItem]) -> Iterator[ReleaseItem]:
        """Yield the group of those that can be used, where they are enough, and the others as they are."""
        usable = {item.source_hmac: item for item in items if item.decision is None}  # copies of a picture count once
        if len(usable) < self.k or name in self.sampled:
            usable.clear()
        yield from self._leave_over([item for item in items if usable.get(item.source_hmac) is not item])
        if usable:
            yield self._group(name, {digest: item for digest, item in usable.items() if digest})

    def _leave_over(self, items: Iterable[ReleaseItem]) -> Iterator[ReleaseItem]:
        for item in items:
            if item.decision is None:
                item.decision = Decision(Status.WAITING, Reason.TOO_FEW_ALIKE)
            yield item

    def _group(self, name: str, usable: Mapping[str, ReleaseItem]) -> GroupItem:
        contents = grouped.contents(self.key, name, usable.keys(), self.groups.outputs)
        members = [usable[digest] for digest in contents]
        records = [member.record for member in members]
        subjects = [record.subject for record in records] if self.groups.by_subject(self.config.source) else []
        if not grouped.is_alike(records, self.by) or not grouped.is_distinct(subjects):
            raise IntegrityError(
                "plan: the members of a group differ in a column of groups.by, or are one person: their columns were "
                "changed since it was planned: begin anew in another output"
            )
        ranges = {
            column: grouped.format_range([r.columns[column] for r in records]) for column in self.groups.generalise
        }
        for member in members:
            member.record = replace(member.record, columns={**member.record.columns, **ranges})
        picture = members[0].picture
        assert picture is not None
        group = GroupItem(
            record=members[0].record,
            picture=replace(picture, tensor=torch.stack([m.picture.tensor for m in members if m.picture])),
            conditioning_text=members[0].conditioning_text,
            members=members,
            is_dealt=self.groups.outputs == "each",
        )
        for one, content in zip(group.drawn, contents.values(), strict=False):  # all alike where they share one
            one.content, one.earlier = content, group.earlier
        self._begin_attempt(group, 0)
        return group

    def output_id(self, item: ReleaseItem, fingerprint: str) -> str:
        return grouped.output_id(self.key, item.content, fingerprint)

    def sample(self, x0: torch.Tensor, level: float, noise: Noise, condition: object) -> torch.Tensor:
        """Return the outputs (B * n, 3, H, W) of groups ``x0`` (B, m, 3, H, W), n of each."""
        z0 = self.boomerang.mean(x0)
        n = x0.shape[1] if self.groups.outputs == "each" else 1
        return self.boomerang.sample_latent(z0.repeat_interleave(n, 0), level, noise, condition)

    def score(self, batch: Sequence[ReleaseItem], x0: torch.Tensor, outputs: torch.Tensor) -> None:
        """Score each output against all members of its group: the nearest one counts, for each score by itself."""
        rows: list[list[list[Scores]]] = []  # by member, by number of the output, by group
        columns = outputs.unflatten(0, (len(batch), -1)).unbind(1)
        for members in x0.unbind(1):
            reference = self.scorer.embed(members)
            rows.append([list(self.scorer.score(reference, column)) for column in columns])
        for number in range(len(columns)):
            pairs = zip(*(member[number] for member in rows), strict=True)
            for item, scores in zip(batch, pairs, strict=True):
                item.drawn[number].scores = nearest(scores)

    def rows(self, item: ReleaseItem) -> list[LedgerRow]:
        """Return the rows of a group's members, or that of a record that came into none."""
        if not isinstance(item, GroupItem):
            return super().rows(item)
        size = len(item.members)
        if not item.is_dealt:
            item.seconds /= size
        rows = [self.row(member, member if item.is_dealt else item) for member in item.members]
        columns = {"group": item.record.entry.group, "group_size": size}
        return [row | (columns if row["output_id"] else {}) for row in rows]
