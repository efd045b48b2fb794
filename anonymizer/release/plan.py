"""Planning: which records there are, how they are cut into shards, and what the run will do to them."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch

from anonymizer import config as configuration
from anonymizer.backbones import Backbone
from anonymizer.backbones.conditioning import encode_conditions, placeholder_condition, refuse_unused_guidance
from anonymizer.boomerang import Boomerang
from anonymizer.config import RunConfig
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.data import usage_marker
from anonymizer.data.sources import open_source
from anonymizer.errors import ConfigError, CustodianKeyError, IntegrityError, OutputError
from anonymizer.records import Entry, Plan, Reason
from anonymizer.release import event_log
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath

DETERMINISTIC_SAMPLERS = ("ddim", "dpm++", "unipc")
MAX_LOG_SNR = 4.0  # beyond it the noise is under 14 % of the signal, and what comes back is the original


def build_plan(config: RunConfig, backbone: Backbone, key: CustodianKey, records: int) -> Plan:
    """The plan of a run.

    ConfigError for a level so low that it would release the originals, or chosen for another model.
    """
    boomerang = Boomerang(backbone, config.boomerang.sampler, config.boomerang.steps)
    t_boom = boomerang.t_boom(config.boomerang.level)
    _refuse_too_low(config.boomerang.level, boomerang, t_boom)
    _refuse_uncalibrated_model(config, backbone)
    refuse_unused_guidance(config.model, backbone)
    return Plan(
        source=str(StoragePath.from_uri(config.source.uri)),
        output=config.output.uri,
        records=records,
        shards=-(-records // config.run.shard_size),
        shard_size=config.run.shard_size,
        level=config.boomerang.level,
        t_boom=t_boom,
        T=backbone.T,
        log_snr=boomerang.log_snr(t_boom),
        sampler=config.boomerang.sampler,
        steps=len(boomerang.grid(t_boom)) - 1,
        model=config.model.public_name,
        model_digest=backbone.digest,
        fingerprint=config.fingerprint(backbone.digest),
        escalated=tuple(config.at_level(level).fingerprint(backbone.digest) for level in config.policy.escalate),
        key_check=key.check_value,
        threads=torch.get_num_threads(),
        id=secrets.token_hex(8),
    )


def _refuse_too_low(level: float, boomerang: Boomerang, t_boom: int) -> None:
    if (log_snr := boomerang.log_snr(t_boom)) > MAX_LOG_SNR:
        T = boomerang.backbone.T
        lowest = next(t for t in range(t_boom, T + 1) if boomerang.log_snr(t) <= MAX_LOG_SNR or t == T) / T
        raise ConfigError(
            f"boomerang.level: {level:g} adds next to no noise with this model (t_boom {t_boom} of {T}, log-SNR "
            f"{log_snr:+.1f}) and would release the originals: choose {math.ceil(lowest * 1000) / 1000:g} or more"
        )


def _refuse_uncalibrated_model(config: RunConfig, backbone: Backbone) -> None:
    chosen = config.boomerang.chosen
    if chosen is not None and chosen.belongs_to.model_digest != backbone.digest:
        raise ConfigError(
            f"model.id: the calibration was made with {chosen.belongs_to.model!r} (SHA-256 "
            f"{chosen.belongs_to.model_digest[:12]!r}), not {config.model.public_name!r} ({backbone.digest[:12]!r}): "
            "use that, or calibrate anew"
        )


def list_cautions(config: RunConfig, plan: Plan) -> list[str]:
    """What whoever hands the release out should know of its settings."""
    found = []
    if plan.log_snr > 0:
        found.append(
            f"log-SNR {plan.log_snr:+.2f}: more of an original's signal is kept than noise is added: expect people "
            "to be recognised"
        )
    if config.boomerang.chosen is not None and not config.boomerang.chosen.identified:
        found.append(
            "boomerang.level was chosen without knowing who is on which picture: if people have several, the promise "
            "about risk may not hold; calibrate with identity"
        )
    if config.source.label is not None and config.source.label == config.source.subject:
        found.append("source.label is source.subject: what the source calls each person is published as a label")
    if config.source.fit == "tiles":
        found.append("source.fit tiles: width and height of each original are published with its output")
        found.append(
            "a level hides less in tiles: of a picture k times as large as the model, coarse structure is left as at a "
            "log-SNR that is 2 ln k higher (docs/models.md)"
        )
    if config.model.has_record_condition:
        what = (
            f"columns in model.prompt ({', '.join(config.model.prompt_fields)})"
            if config.model.prompt_fields
            else "each class"
        )
        found.append(
            f"the model is told {what}: what that says of a person is drawn into the output, whatever the level and "
            "whether it is published or not; attackers who know the method are audited without it"
        )
    if config.boomerang.sampler in DETERMINISTIC_SAMPLERS:
        found.append(
            f"boomerang.sampler {config.boomerang.sampler}: takes no noise on the way back, and leaves outputs nearer "
            "to their originals than the paper's own at the same level (docs/paper-results.md)"
        )
    if config.boomerang.sampler in ("lcm", "tcd"):
        found.append(f"boomerang.sampler {config.boomerang.sampler}: fits models only that were distilled for it")
    if config.output.public_scores == "exact":
        found.append(
            "output.public_scores exact: a score is a fact about an original, and whoever holds a candidate can compare"
        )
    if config.output.size == "original":
        found.append("output.size original: width and height of each original are published with its output")
    return found


def estimate_seconds(config: RunConfig, backbone: Backbone, plan: Plan) -> float:
    """Seconds of sampling for the whole plan, from one timed network call on a batch; of one tile for each picture."""
    size = min(config.run.initial_batch_size, max(plan.records, 1))
    with torch.inference_mode():
        zt = backbone.encode(torch.zeros(size, 3, backbone.size, backbone.size))
        said = encode_conditions(backbone, [placeholder_condition(config.model)] * size)
        backbone.predict(zt, plan.t_boom, said)  # the first call also prepares
        begun = time.monotonic()
        backbone.predict(zt, plan.t_boom, said).z0.sum().item()
    return (time.monotonic() - begun) * plan.steps * -(-plan.records // size)


def count_records(config: RunConfig) -> int:
    """Records in the source, listed without reading a picture."""
    return sum(1 for _ in _list_entries(config))


def _list_entries(config: RunConfig) -> Iterator[Entry]:
    return usage_marker.refuse_marked_entries("source.uri", open_source(config.source).entries())


def write_or_resume(config: RunConfig, backbone: Backbone, key: CustodianKey, release: Release) -> Plan:
    """List the source into ``restricted/plan/``, or take up the plan of a run that was begun before."""
    if release.plan.exists():
        return _resume(config, backbone, key, release)
    if release.public.exists():
        raise OutputError(
            f"output.uri {config.output.uri!r}: has a public/ that no plan accounts for: choose another output"
        )
    build_plan(config, backbone, key, 0)  # refuses what it refuses before anything is written
    release.restricted.make_private_folder()
    release.shard_plans.remove()  # of a run that was stopped while planning
    records = 0
    for shard, entries in enumerate(_chunks(_list_entries(config), config.run.shard_size)):
        write_entries(release, shard, entries)
        records += len(entries)
    plan = build_plan(config, backbone, key, records)
    release.config.write(configuration.dump(config).encode())
    release.plan.write(json.dumps(asdict(plan), indent=2).encode())  # last: the plan stands when this file does
    event_log.record(release, "planned", records=records, shards=plan.shards, fingerprint=plan.fingerprint)
    return plan


def read(release: Release) -> Plan:
    if not release.plan.exists():
        what = "it was erased" if release.event_log.exists() else "it is not a release, or only its public half"
        raise OutputError(f"release {str(release.root)!r}: no restricted/plan.json: {what}")
    try:
        told = json.loads(release.plan.read())
        return Plan(**told | {"escalated": tuple(told["escalated"])})
    except (ValueError, TypeError, KeyError):
        raise IntegrityError(
            f"release {str(release.root)!r}: restricted/plan.json is damaged, or of another version: restore it"
        ) from None


def read_config(release: Release) -> RunConfig:
    """The settings in ``restricted/config.yaml``, as they are written there."""
    try:
        text = release.config.read().decode()
    except (OSError, UnicodeDecodeError):
        raise IntegrityError(
            f"release {str(release.root)!r}: restricted/config.yaml is missing or damaged: restore it"
        ) from None
    return configuration.build(configuration.parse(text, "restricted/config.yaml"))


def resolve_config(release: Release) -> RunConfig:
    """What a release was made with; a source on a disk by its whole path, wherever this is asked."""
    the_plan = read(release)  # says what is missing where this is no release
    settings = read_config(release)
    if not StoragePath.from_uri(settings.source.uri).is_local:
        return settings
    return settings.model_copy(update={"source": settings.source.model_copy(update={"uri": the_plan.source})})


def write_entries(release: Release, shard: int, entries: Sequence[Entry]) -> None:
    release.shard_plan(shard).write_uncommitted(json.dumps([_entry_to_json(e) for e in entries]).encode())


def read_entries(release: Release, shard: int) -> list[Entry]:
    return [_entry_from_json(item) for item in json.loads(release.shard_plan(shard).read())]


# What may change while a run is unfinished: where it runs and how fast, how the restricted half is kept, and
# waivers, which are the only way past a policy; the model's weights are in the fingerprint.
CHANGEABLE_SETTINGS = (
    "output.uri",
    "source.uri",
    "model.id",
    "model.revision",
    "model.device",
    "model.allow_pickle",
    "key_env",
    "signing_key_env",
    "run.",
    "restricted.",
    "lineage.",
    "policy.waivers",
)
RESUME_HINT = "use the settings in its restricted/config.yaml to finish it, or choose another output"


def _resume(config: RunConfig, backbone: Backbone, key: CustodianKey, release: Release) -> Plan:
    plan = read(release)
    asked = build_plan(config, backbone, key, plan.records)
    output = f"output.uri {config.output.uri!r}"
    if asked.key_check != plan.key_check:
        raise CustodianKeyError(
            f"{config.key_env}: not the key that {output} was begun with: set that one, or choose another output"
        )
    begun = read_config(release)
    for name in configuration.known_keys():
        was, now = configuration.get_setting(begun, name), configuration.get_setting(config, name)
        if was != now and not name.startswith(CHANGEABLE_SETTINGS):
            raise OutputError(
                f"{output}: was begun with {name} {_format_setting(was)}, not {_format_setting(now)}: {RESUME_HINT}"
            )
    if begun.boomerang.chosen != config.boomerang.chosen:
        raise OutputError(f"{output}: was begun with boomerang.level chosen in another way: {RESUME_HINT}")
    if asked.source != plan.source:
        raise OutputError(f"{output}: was begun with another source.uri: {RESUME_HINT}")
    if asked.fingerprint != plan.fingerprint:
        raise OutputError(f"{output}: was begun with another model than {config.model.id!r}: {RESUME_HINT}")
    return plan


def _format_setting(value: Any) -> str:
    if isinstance(value, dict | tuple):
        return json.dumps(value, default=lambda one: one.model_dump(mode="json", exclude_none=True))
    return "none" if value is None else repr(value)


def _chunks(entries: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    iterator = iter(entries)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _entry_to_json(entry: Entry) -> dict[str, Any]:
    return {k: v for k, v in asdict(entry).items() if v is not None}


def _entry_from_json(item: dict[str, Any]) -> Entry:
    return Entry(**(item | {"problem": Reason(item["problem"])} if "problem" in item else item))
