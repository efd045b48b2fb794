"""Comparison of two policies: which rules of the earlier one the later one drops or loosens."""

from __future__ import annotations

from collections.abc import Iterator

from anonymizer.config import LeastAttackers, PolicyConfig

# Settings that allow nothing by themselves: a stronger level for an output that would be held back, and exceptions,
# each with a name and a reason of its own.
NOT_COMPARED = frozenset(["escalate", "waivers", "weaker_than_previous"])


def weaker_rules(earlier: PolicyConfig, later: PolicyConfig) -> list[str]:
    """Return a line for each rule of ``earlier`` that ``later`` drops or loosens, with both bounds."""
    minima, maxima = _minima(later), _maxima(later)
    lines = [_compare(rule, bound, minima.get(rule), -1) for rule, bound in _minima(earlier).items()]
    lines += [_compare(rule, bound, maxima.get(rule), 1) for rule, bound in _maxima(earlier).items()]
    return sorted([*filter(None, lines), *_weaker_evidence(earlier, later)])


def _minima(policy: PolicyConfig) -> dict[str, float]:
    """Return the bounds of which a lower one allows more."""
    bounds: dict[str, float | None] = {f"scores.{name}.min": bound.min for name, bound in policy.scores.items()}
    bounds |= {"min_released": policy.min_released or None, "approvals": policy.approvals or None}
    bounds |= {"groups.min_k": policy.groups.min_k}
    return {rule: bound for rule, bound in bounds.items() if bound is not None}


def _maxima(policy: PolicyConfig) -> dict[str, float]:
    """Return the bounds of which a higher one allows more."""
    bounds: dict[str, float | None] = {f"scores.{name}.max": bound.max for name, bound in policy.scores.items()}
    bounds |= {f"risk.{name}": bound.upper for name, bound in policy.risk.items()}
    bounds |= {f"ceilings.{name}": bound for name, bound in policy.ceilings.items()}
    bounds |= {"groups.max_leftover": policy.groups.max_leftover}
    bounds |= {name: getattr(policy, name) for name in ("audit_days", "max_quarantined", "max_failed")}
    return {rule: bound for rule, bound in bounds.items() if bound is not None}


def _compare(rule: str, earlier: float, later: float | None, sign: int) -> str | None:
    """Return a line if the later bound allows more; ``sign`` is 1 where a higher bound does."""
    if later is None:
        return f"{rule}: {earlier:g} before, none now"
    return f"{rule}: {earlier:g} before, {later:g} now" if sign * (later - earlier) > 0 else None


def _weaker_evidence(earlier: PolicyConfig, later: PolicyConfig) -> Iterator[str]:
    """Yield a line for each attack that need not be tried as it had to be, and each key that could not approve."""
    for attack in set(earlier.required_attacks) - set(later.required_attacks):
        yield f"audits.{attack}: asked for before, not now"
    if earlier.required_attacks and later.required_attacks:
        yield from _weaker_attackers(earlier.attackers, later.attackers)
    if earlier.approvals:
        for name in sorted(later.approvers):
            if later.approvers[name] not in earlier.approvers.values():
                yield f"approvers.{name}: may approve now, and could not before"


def _weaker_attackers(earlier: LeastAttackers, later: LeastAttackers) -> Iterator[str]:
    """Yield a line for each thing that the attackers of an audit need not have any more."""
    for feature in set(earlier.features) - set(later.features):
        yield f"attackers.features.{feature}: asked for before, not now"
    for name in ("sample", "pairs", "outputs", "averaged"):
        if line := _compare(f"attackers.{name}", getattr(earlier, name), getattr(later, name), -1):
            yield line
    if earlier.identity not in (None, later.identity):
        yield f"attackers.identity: {earlier.identity} before, {later.identity or 'any'} now"
