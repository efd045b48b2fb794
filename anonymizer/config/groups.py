"""Settings of groups: each output is a local sample of the mean of k alike originals of k different people."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from anonymizer.config.base import Section
from anonymizer.config.model import ModelConfig
from anonymizer.config.source import SourceConfig

LABEL, CAPTION = "label", "caption"  # names of these columns in ``groups.by``, whatever the source calls them


class GroupsConfig(Section):
    """How originals are grouped where ``boomerang.k`` is 2 or more."""

    outputs: Literal["one", "each"] = Field(
        "one", description="one output for each group, or one for each member; siblings can then be clustered"
    )
    by: tuple[str, ...] | None = Field(
        None,
        description="columns that are equal within a group, so that they stay true of its outputs; null: the label",
    )
    features: Literal["pixels", "clip", "latent"] = Field(
        "pixels", description="what originals are compared by: pixels, clip (the scorer's), or the model's latent"
    )
    distinct: Literal["auto", "subject", "record"] = Field(
        "auto", description="members are different people by source.subject (auto: where it is set), or records"
    )
    leftover: Literal["quarantine", "merge"] = Field(
        "quarantine", description="those left over wait for more that are alike, or join the nearest group"
    )
    generalise: dict[str, Literal["range"]] = Field(
        {}, description="carried columns that differ within a group -> range: published as a range around all values"
    )

    def columns(self, source: SourceConfig) -> tuple[str, ...]:
        """Return the columns that are equal within a group."""
        if self.by is not None:
            return self.by
        return (LABEL,) if source.label is not None else ()

    def by_subject(self, source: SourceConfig) -> bool:
        """Return whether members differ by ``source.subject``; if not, each record counts as a person."""
        return self.distinct == "subject" or (self.distinct == "auto" and source.subject is not None)


def describe_promise(k: int) -> str:
    """Return in one sentence what groups of ``k`` promise, and what they do not."""
    return (
        f"no output can be linked to one of the {k} originals of its group better than by guessing, 1 in {k}; that "
        "hides neither that somebody is in the release, nor a member from an attacker who knows all others of the "
        "group, nor what the group shares"
    )


def check_groups(groups: GroupsConfig, source: SourceConfig, model: ModelConfig) -> None:
    """Raise ValueError for settings with which an output would tell of one member of its group."""
    equal = set(groups.columns(source))
    readable = {*source.carry, *source.restricted}
    readable |= {name for name in (LABEL, CAPTION) if getattr(source, name) is not None}
    for name in sorted(equal - readable):
        raise ValueError(
            f"groups.by: {name!r} is not read from the source: name it in source.restricted or source.carry"
        )
    for name in sorted(set(groups.generalise) - set(source.carry)):
        raise ValueError(f"groups.generalise: {name!r} is not carried: name it in source.carry, or leave it out")
    published = [name for name in (LABEL, CAPTION) if getattr(source, name) is not None] + [*source.carry]
    for name in published:
        if name not in equal and name not in groups.generalise:
            where = f"source.{name}" if name in (LABEL, CAPTION) else "source.carry"
            raise ValueError(
                f"{where}: {name!r} may differ within a group, and would tell of one member: name it in groups.by, "
                "generalise it (groups.generalise), or keep it from the release (source.restricted, source.drop)"
            )
    for name in (*model.prompt_fields, *([LABEL] if model.condition == LABEL else [])):
        if name not in equal:
            raise ValueError(
                f"model: is conditioned on {name!r}, which may differ within a group: name it in groups.by"
            )
    if groups.distinct == "subject" and source.subject is None:
        raise ValueError(
            "groups.distinct: subject, and source.subject is not set: say who is on a picture, or use auto"
        )
    if source.fit == "tiles":
        raise ValueError("source.fit: tiles have no mean of several pictures: use crop or pad with groups")
