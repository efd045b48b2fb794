"""Assumptions under which a ceiling holds for a release: of its own settings, and of pictures that it keeps."""

from __future__ import annotations

from dataclasses import replace

import pyarrow.compute as pc

from anonymizer.config import RunConfig
from anonymizer.policy.ceilings import find_broken_assumptions, find_caveats
from anonymizer.records import Plan, Status
from anonymizer.release import plan as planning
from anonymizer.release.history import predecessors
from anonymizer.release.ledger import Ledger
from anonymizer.storage.layout import Release, SealKey


def find_broken(config: RunConfig, key: SealKey, plan: Plan) -> list[str]:
    """Return why no ceiling holds for a release: nothing of an original but its noised picture may be known.

    A picture that is kept from an earlier release was drawn with that one's settings, and what was published with it
    there is known to attackers as well.
    """
    reasons = find_broken_assumptions(config)
    if config.previous is None:
        return reasons
    for release in _before(config.previous, key):
        reasons += [f"previous: {reason}" for reason in find_broken_assumptions(planning.read_config(release))]
        rows = Ledger.open(release).scan(("config_fingerprint",), Status.RELEASED)
        if any(pc.any(pc.not_equal(table["config_fingerprint"], plan.fingerprint)).as_py() for _, table in rows):
            reasons.append("previous: pictures that are kept were drawn with other settings")
    return list(dict.fromkeys(reasons))


def list_caveats(config: RunConfig, key: SealKey) -> tuple[str, ...]:
    """Return what the ceilings of a release do not cover, by its settings and by those of what it keeps."""
    caveats = find_caveats(config)
    if config.previous is not None:
        for release in _before(config.previous, key):
            caveats += [f"previous: {caveat}" for caveat in find_caveats(planning.read_config(release))]
    return tuple(dict.fromkeys(caveats))


def _before(uri: str, key: SealKey) -> list[Release]:
    before = replace(Release.at(uri), key=key)
    return [before, *predecessors(before)]
