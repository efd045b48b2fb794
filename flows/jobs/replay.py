"""What the custodian can verify with models and originals at hand: scores measured again, pictures drawn again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
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
from anonymizer.records import Entry, Record
from anonymizer.release import audit_sample, plan
from anonymizer.release.audit_sample import AuditSample
from anonymizer.release.plan import resolve_config
from anonymizer.release.verify_restricted import check_restricted
from anonymizer.storage.layout import Release
from flows.jobs.release import backbone_of, in_fresh_thread, scorer_of

# A score is measured before a picture is rounded to bytes, or packed by JPEG and WebP; afterwards it differs a little.
SCORE_TOLERANCE = {"png": 0.02, "jpeg": 0.1, "webp": 0.1}
PIXEL_TOLERANCE = 2 / 255  # mean difference of pixels that another processor may make


DEFAULT_RESCORED = 8  # pictures, where nobody says how many


def verify_release(release: Release, rescore: int | None, replay: int) -> Iterator[Finding]:
    """The checks of both halves, then as many scores and pictures again as are asked for.

    What was asked for and cannot be done is a failure; ``rescore`` of none does what it can.
    """
    try:
        config = resolve_config(release)
    except (AnonymizerError, OSError, ValueError) as problem:
        yield failed("settings", f"restricted/: {problem}")
        return
    key = load_key(config.key_env)
    found = list(check_restricted(release, config, key))
    yield from found
    trusted = not any(finding.result == "fail" and finding.check == "ledger" for finding in found)
    if config.source.fit == "tiles":  # which are kept at no one size, and scored as squares
        for check, asked in (("scores", rescore), ("replay", replay)):
            yield (failed if asked else noted)(check, "nothing measured or drawn again: not supported in tiles")
        return
    most = max(DEFAULT_RESCORED if rescore is None else rescore, replay)
    if not trusted or not release.ledger.exists() or not most:
        return
    missing = failed if rescore or replay else noted
    try:
        size, rng = backbone_of(config.model).size, np.random.default_rng()
        shown = audit_sample.draw_sample(release, config.source, size, most, rng)
        if again := DEFAULT_RESCORED if rescore is None else rescore:
            yield from in_fresh_thread(lambda: list(_check_scores(config, shown, again)))
        if replay:
            yield from in_fresh_thread(lambda: list(_check_replay(release, config, key, shown, replay)))
    except SourceError:
        yield missing("originals", "are gone: nothing was measured or drawn again")
    except AnonymizerError as problem:
        yield missing("originals", f"nothing was measured or drawn again: {problem}")


def _check_scores(config: RunConfig, shown: AuditSample, most: int) -> Iterator[Finding]:
    """Scores of a sample, measured on what lies in the public half."""
    scorer = scorer_of(config.metrics, str(backbone_of(config.model).device))
    n = min(most, len(shown))
    measured = scorer.score(scorer.embed(shown.originals.images[:n]), shown.outputs[:n])
    allowed, off = SCORE_TOLERANCE[config.output.image], 0
    for row, again in zip(shown.ledger[:n], measured, strict=True):
        pairs = [(row[name], getattr(again, name)) for name in ("clip_similarity", "lpips")]
        off += any(old is not None and (new is None or not abs(old - new) <= allowed) for old, new in pairs)
    wrong = [f"{off} of {n} scores are not those in the ledger (beyond {allowed:g})"] if off else []
    yield from pass_or_fail("scores", wrong, f"{n} measured again, within {allowed:g} of the ledger")


def _check_replay(
    release: Release, config: RunConfig, key: CustodianKey, shown: AuditSample, most: int
) -> Iterator[Finding]:
    """Pictures of a sample, drawn again from their originals with the custodian's key."""
    if key.check_value is None or key.check_value != plan.read(release).key_check:
        yield failed("replay", "nothing drawn again: the custodian's key that made this release is not at hand")
        return
    model = backbone_of(config.model)
    boomerang = Boomerang(model, config.boomerang.sampler, config.boomerang.steps)
    same = close = other = gone = 0
    for i, row in enumerate(shown.ledger[:most]):
        if row["config_fingerprint"] != config.at_level(row["level"]).fingerprint(model.digest):
            gone += 1
            continue
        noise = KeyedNoise([key.noise_key(row["source_hmac"], row["config_fingerprint"])])
        x0 = shown.originals.images[i : i + 1].to(model.device)
        said = encode_conditions(model, [conditioning_text(config.model, _record_of(row), model)])
        output = boomerang.sample(x0, row["level"], noise, said).cpu()[0]
        shape = shown.originals.dimensions[i]
        data = image_codec.encode(output, shape, config.output.image, config.output.quality, config.output.size).data
        if hashlib.sha256(data).hexdigest() == row["sha256"]:
            same += 1
        elif float((output - shown.outputs[i]).abs().mean()) <= PIXEL_TOLERANCE and config.output.size == "model":
            close += 1
        else:
            other += 1
    if drawn := same + close + other:
        wrong = [f"{other} of {drawn} pictures come out otherwise"] if other else []
        also = f", {close} but for rounding" if close else ""
        yield from pass_or_fail("replay", wrong, f"{same} drawn again to the byte{also}")
    if gone:
        yield noted("replay", f"{gone} were drawn with another model or other settings, for an earlier release")


def _record_of(row: Mapping[str, Any]) -> Record:
    """A record as the ledger remembers it, without its picture."""
    return Record(
        Entry(row["record_id"], row["source_uri"]),
        label=row["label"],
        caption=row["caption"],
        columns=from_json(row["carried"]),
        restricted=from_json(row["restricted"]),
    )
