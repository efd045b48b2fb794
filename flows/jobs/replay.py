"""Verification with models and originals: scores are measured again, images are sampled again."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from anonymizer.attest.verify.findings import Finding, failed, noted, pass_or_fail
from anonymizer.backbones.conditioning import conditioning_text, encode_conditions
from anonymizer.boomerang import Boomerang
from anonymizer.config import RunConfig
from anonymizer.crypto.custodian_key import CustodianKey, load_key
from anonymizer.data import image_codec
from anonymizer.data.passthrough_columns import from_json
from anonymizer.errors import AnonymizerError, SourceError
from anonymizer.noise import KeyedNoise
from anonymizer.policy.gates import nearest
from anonymizer.records import Entry, Record, Scores
from anonymizer.release import adoption, audit_sample, grouped, plan
from anonymizer.release.audit_sample import AuditSample
from anonymizer.release.plan import resolve_config
from anonymizer.release.verify_restricted import check_restricted
from anonymizer.storage.layout import Release
from flows.jobs.models import backbone_of
from flows.jobs.redaction import in_fresh_thread
from flows.jobs.release import scorer_of

# Scores were measured before images were rounded to bytes, or packed by JPEG and WebP, which changes them a little.
SCORE_TOLERANCE = {"png": 0.02, "jpeg": 0.1, "webp": 0.1}
PIXEL_TOLERANCE = 2 / 255  # mean difference of pixels on another processor
DEFAULT_RESCORED = 8


def verify_release(release: Release, rescore: int | None, replay: int) -> Iterator[Finding]:
    """Check both halves, then measure and sample again as many images as requested.

    A request that cannot be fulfilled is a failure; ``rescore`` of None measures ``DEFAULT_RESCORED`` if possible.
    """
    try:
        release, config, key = _open_sealed(release)
    except (AnonymizerError, OSError, ValueError) as problem:
        yield failed("settings", f"restricted/: {problem}")
        return
    if adoption.lacks_seals(release):
        yield noted("seals", "made by an earlier version, without them: add them with --seal, or no run can follow it")
    findings = list(check_restricted(release, config, key))
    yield from findings
    if config.source.fit == "tiles":  # images have no one size and were scored as squares
        for check, requested in (("scores", rescore), ("replay", replay)):
            yield (failed if requested else noted)(check, "nothing measured or drawn again: not supported in tiles")
        return
    if release.sealing_key is None:  # nothing tells that originals are those of the release
        for check, requested in (("scores", rescore), ("replay", replay)):
            reason = f"nothing measured or drawn again: originals are known by the custodian's key ({config.key_env})"
            yield (failed if requested else noted)(check, reason)
        return
    is_trusted = not any(finding.result == "fail" and finding.check == "ledger" for finding in findings)
    scored = DEFAULT_RESCORED if rescore is None else rescore
    if not is_trusted or not release.ledger.exists() or not max(scored, replay):
        return
    report = failed if rescore or replay else noted
    try:
        size, rng = backbone_of(config.model).size, np.random.default_rng()
        records = max(scored, replay) * config.boomerang.k  # of groups, enough for so many outputs
        sample = audit_sample.draw_sample(release, config.source, size, records, rng)
        if sample.missing:
            count = f"{sample.unread} are gone and {sample.changed} are other pictures than were released"
            yield report("originals", f"{count}, of {len(sample) + sample.missing}: not measured")
        outputs = _list_outputs(sample)
        if not outputs:
            yield report("originals", "no group has all of its members here: nothing was measured or drawn again")
        elif scored:
            first = dict(islice(outputs.items(), scored))
            yield from in_fresh_thread(lambda: list(_check_scores(config, sample, first)))
        if outputs and replay:
            some = dict(islice(outputs.items(), replay))
            yield from in_fresh_thread(lambda: list(_check_replay(config, key, sample, some)))
    except SourceError:
        yield report("originals", "are gone: nothing was measured or drawn again")
    except AnonymizerError as problem:
        yield report("originals", f"nothing was measured or drawn again: {problem}")


def _open_sealed(release: Release) -> tuple[Release, RunConfig, CustodianKey]:
    """Return a release with its key, if that is at hand, and its settings: where it is sealed, those that were sealed.

    Models are loaded and sources read by these settings, which others could have rewritten.
    """
    config, key_check = resolve_config(release), plan.read(release).key_check
    names = (config.key_env, RunConfig.model_fields["key_env"].default)  # the first one stands in an unsealed file
    key = next((key for key in map(load_key, names) if key.check_value == key_check), load_key(config.key_env))
    if not adoption.lacks_seals(release) and key.check_value == key_check:
        release = Release(release.root, key)
        config = resolve_config(release)
    return release, config, key


def _list_outputs(sample: AuditSample) -> dict[int, list[int]]:
    """Return the position of each output of a sample -> those of the originals that it was drawn from.

    Outputs of groups with members that are not in the sample are left out.
    """
    members: dict[str | int, list[int]] = {}
    for i, row in enumerate(sample.ledger):
        members.setdefault(row["group"] or i, []).append(i)
    whole = [group for group in members.values() if len(group) == (sample.ledger[group[0]]["group_size"] or 1)]
    by_id = {sample.ledger[i]["output_id"]: (i, group) for group in whole for i in group}  # members may share one
    return dict(by_id.values())


def _check_scores(config: RunConfig, sample: AuditSample, outputs: Mapping[int, Sequence[int]]) -> Iterator[Finding]:
    """Measure scores of public images again, against all originals that each is of, and compare with the ledger."""
    scorer = scorer_of(config.metrics, str(backbone_of(config.model).device))
    pairs = [(i, member) for i, members in outputs.items() for member in members]
    reference = scorer.embed(sample.originals.images[[member for _, member in pairs]])
    measured: dict[int, list[Scores]] = {}
    for (i, _), scores in zip(pairs, scorer.score(reference, sample.outputs[[i for i, _ in pairs]]), strict=True):
        measured.setdefault(i, []).append(scores)
    tolerance, off, n = SCORE_TOLERANCE[config.output.image], 0, len(outputs)
    for i, of_members in measured.items():
        row, scores = sample.ledger[i], nearest(of_members)
        columns = [(row[name], getattr(scores, name)) for name in ("clip_similarity", "lpips")]
        off += any(old is not None and (new is None or not abs(old - new) <= tolerance) for old, new in columns)
    wrong = [f"{off} of {n} scores are not those in the ledger (beyond {tolerance:g})"] if off else []
    yield from pass_or_fail("scores", wrong, f"{n} measured again, within {tolerance:g} of the ledger")


def _check_replay(
    config: RunConfig, key: CustodianKey, sample: AuditSample, outputs: Mapping[int, Sequence[int]]
) -> Iterator[Finding]:
    """Sample images again from their originals with the custodian's key and compare bytes, then pixels."""
    model, output = backbone_of(config.model), config.output
    boomerang = Boomerang(model, config.boomerang.sampler, config.boomerang.steps)
    counts: Counter[str] = Counter()
    for i, members in outputs.items():
        row = sample.ledger[i]
        if row["config_fingerprint"] != config.at_level(row["level"]).fingerprint(model.digest):
            counts["earlier"] += 1
            continue
        positions = {sample.ledger[member]["source_hmac"]: member for member in members}
        contents = {row["source_hmac"]: row["source_hmac"]}
        if row["group"] is not None:
            contents = grouped.contents(key, row["group"], positions.keys(), config.groups.outputs)
        noise = KeyedNoise([key.noise_key(contents[row["source_hmac"]], row["config_fingerprint"])])
        z0 = boomerang.mean(sample.originals.images[[positions[digest] for digest in contents]][None].to(model.device))
        condition = encode_conditions(model, [conditioning_text(config.model, _record_of(row), model)])
        image = boomerang.sample_latent(z0, row["level"], noise, condition).cpu()[0]
        dimensions = sample.originals.dimensions[i]
        data = image_codec.encode(image, dimensions, output.image, output.quality, output.size).data
        if hashlib.sha256(data).hexdigest() == row["sha256"]:
            counts["same"] += 1
        elif float((image - sample.outputs[i]).abs().mean()) <= PIXEL_TOLERANCE and output.size == "model":
            counts["close"] += 1
        else:
            counts["other"] += 1
    if sampled := counts["same"] + counts["close"] + counts["other"]:
        wrong = [f"{counts['other']} of {sampled} pictures come out otherwise"] if counts["other"] else []
        rounded = f", {counts['close']} but for rounding" if counts["close"] else ""
        yield from pass_or_fail("replay", wrong, f"{counts['same']} drawn again to the byte{rounded}")
    if counts["earlier"]:
        yield noted(
            "replay", f"{counts['earlier']} were drawn with another model or other settings, for an earlier release"
        )


def _record_of(row: Mapping[str, Any]) -> Record:
    """Return the record of a ledger's row, without its image."""
    return Record(
        Entry(row["record_id"], row["source_uri"]),
        label=row["label"],
        caption=row["caption"],
        columns=from_json(row["carried"]),
        restricted=from_json(row["restricted"]),
    )
