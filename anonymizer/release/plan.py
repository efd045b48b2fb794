"""Planning a release: list the records, divide them into shards, and fix what the run will do to them."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import torch
from pydantic import TypeAdapter

from anonymizer import config as configuration
from anonymizer.backbones import Backbone
from anonymizer.backbones.conditioning import encode_conditions, placeholder_condition, refuse_unused_guidance
from anonymizer.boomerang import Boomerang
from anonymizer.config import RunConfig
from anonymizer.crypto import seal
from anonymizer.crypto.custodian_key import CustodianKey, load_key
from anonymizer.data import usage_marker
from anonymizer.data.sources import open_source
from anonymizer.errors import ConfigError, CustodianKeyError, IntegrityError, OutputError
from anonymizer.records import Entry, Plan, Reason
from anonymizer.release import event_log
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath, absolute_uri
from anonymizer.storage.prefetch import chunked

DEFAULT_KEY_ENV: str = RunConfig.model_fields["key_env"].default
MAX_SHARDS = 10**6
MAX_LOG_SNR = 4.0  # beyond it the noise is under 14 % of the signal, and what comes back is the original


def build_plan(config: RunConfig, backbone: Backbone, key: CustodianKey, records: int) -> Plan:
    """Return the plan of a run.

    Raises ConfigError for a level so low that it would release the originals, or chosen for another model, and for a
    sampler that draws no noise on its way back without a reason.
    """
    boomerang = Boomerang(backbone, config.boomerang.sampler, config.boomerang.steps)
    t_boom = boomerang.t_boom(config.boomerang.level)
    _refuse_too_low(config.boomerang.level, boomerang, t_boom)
    _refuse_uncalibrated_model(config, backbone)
    _refuse_deterministic(config)
    refuse_unused_guidance(config.model, backbone)
    return Plan(
        source=str(StoragePath.from_uri(config.source.uri)),
        output=absolute_uri(config.output.uri),
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
        accept_deterministic=config.boomerang.accept_deterministic,
    )


def _refuse_too_low(level: float, boomerang: Boomerang, t_boom: int) -> None:
    if (log_snr := boomerang.log_snr(t_boom)) > MAX_LOG_SNR:
        T = boomerang.backbone.T
        lowest = next(t for t in range(t_boom, T + 1) if boomerang.log_snr(t) <= MAX_LOG_SNR or t == T) / T
        raise ConfigError(
            f"boomerang.level: {level:g} adds next to no noise with this model (t_boom {t_boom} of {T}, log-SNR "
            f"{log_snr:+.1f}) and would release the originals: choose {math.ceil(lowest * 1000) / 1000:g} or more"
        )


def _refuse_deterministic(config: RunConfig) -> None:
    if config.boomerang.is_deterministic and config.boomerang.accept_deterministic is None:
        raise ConfigError(
            f"boomerang.sampler: {config.boomerang.sampler!r} draws no noise on its way back, and of its outputs far "
            "more can be linked to their originals at the same level (docs/audit-results.md): choose sde-dpm++ or "
            "ddpm, or give the reason as boomerang.accept_deterministic, which is published"
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
    """Return what the publisher should know of the settings."""
    sampler, chosen, model = config.boomerang.sampler, config.boomerang.chosen, config.model
    is_tiled = config.source.fit == "tiles"
    condition = f"columns in model.prompt ({', '.join(model.prompt_fields)})" if model.prompt_fields else "each class"
    cautions = {
        f"log-SNR {plan.log_snr:+.2f}: more of an original's signal is kept than noise is added: expect people to be "
        "recognised": plan.log_snr > 0,
        "boomerang.level was chosen without knowing who is on which picture: if people have several, the promise about "
        "risk may not hold; calibrate with identity": chosen is not None and not chosen.identified,
        "boomerang.k: without source.subject every record counts as a person, and a group may hold several of one": (
            config.boomerang.k > 1 and not config.groups.by_subject(config.source)
        ),
        "source.label is source.subject: what the source calls each person is published as a label": (
            config.source.label is not None and config.source.label == config.source.subject
        ),
        "source.fit tiles: width and height of each original are published with its output": is_tiled,
        "a level hides less in tiles: of a picture k times as large as the model, coarse structure is left as at a "
        "log-SNR that is 2 ln k higher (docs/models.md)": is_tiled,
        f"the model is told {condition}: what that says of a person is drawn into the output, whatever the level and "
        "whether it is published or not; attackers who know the method are audited without it": (
            model.has_record_condition
        ),
        f"boomerang.sampler {sampler}: draws no noise on its way back, and of its outputs far more can be linked to "
        "their originals than of the paper's own at the same level (docs/audit-results.md)": (
            config.boomerang.is_deterministic
        ),
        f"boomerang.sampler {sampler}: fits models only that were distilled for it": sampler in ("lcm", "tcd"),
        "output.public_scores exact: a score is a fact about an original, and whoever holds a candidate can compare": (
            config.output.public_scores == "exact"
        ),
        "output.size original: width and height of each original are published with its output": (
            config.output.size == "original"
        ),
        "previous: none is named: other releases of the same originals under this key and these settings have the same "
        "ids and pictures, and whoever holds two of them can join their columns (docs/privacy.md)": (
            config.previous is None and plan.key_check is not None and config.boomerang.k == 1
        ),
        "boomerang.k: nobody can be erased from a release of groups yet, and none can follow it; another release of "
        "the same people, or of most of them, has other groups, and what both tell of a person adds up "
        "(docs/groups.md)": (config.boomerang.k > 1),
    }
    return [text for text, applies in cautions.items() if applies]


def estimate_seconds(config: RunConfig, backbone: Backbone, plan: Plan) -> float:
    """Return the seconds of sampling for the whole plan, from one timed network call; one tile for each image."""
    size = min(config.run.initial_batch_size, max(plan.records, 1))
    with torch.inference_mode():
        zt = backbone.encode(torch.zeros(size, 3, backbone.size, backbone.size))
        condition = encode_conditions(backbone, [placeholder_condition(config.model)] * size)
        backbone.predict(zt, plan.t_boom, condition)  # the first call also prepares
        begin = time.monotonic()
        backbone.predict(zt, plan.t_boom, condition).z0.sum().item()
    return (time.monotonic() - begin) * plan.steps * -(-plan.records // size)


def count_records(config: RunConfig) -> int:
    """Return the number of records in the source, listed without reading an image."""
    return sum(1 for _ in list_entries(config))


def list_entries(config: RunConfig) -> Iterator[Entry]:
    """Yield the records of the source in its order, without reading an image."""
    return usage_marker.refuse_marked_entries("source.uri", open_source(config.source).entries())


Divide = Callable[[RunConfig, Backbone, CustodianKey, Release, Iterator[Entry]], Iterator[list[Entry]]]


def divide_in_order(
    config: RunConfig, backbone: Backbone, key: CustodianKey, release: Release, entries: Iterator[Entry]
) -> Iterator[list[Entry]]:
    """Yield the entries of each shard, ``run.shard_size`` at a time."""
    return chunked(entries, config.run.shard_size)


def write_or_resume(
    config: RunConfig, backbone: Backbone, key: CustodianKey, release: Release,
    inherit: Callable[[RunConfig, Release], Mapping[str, str]] = lambda config, release: {},
    add_ceilings: Callable[[Plan], Plan] = lambda plan: plan,
    divide: Divide = divide_in_order,
) -> Plan:  # fmt: skip
    """List the source into ``restricted/plan/`` and write the plan, or return that of an unfinished run.

    ``inherit`` writes what comes from earlier releases, which the plan then names (``history.carry_forward``).
    ``add_ceilings`` fills in a plan's ceilings, before anything is written.
    ``divide`` yields the entries of each shard (``group_planning.divide`` with groups).

    Raises OutputError or CustodianKeyError where a run was begun with other settings or another key.
    """
    release = replace(release, key=key)
    if release.plan.exists():
        plan = resume(config, backbone, key, release)
        if not release.is_published:  # a published release stays as it is
            write_config(release, plan.id, config)  # with what may have changed, for workers that read it there
        return plan
    if release.public.exists():
        raise OutputError(
            f"output.uri {config.output.uri!r}: has a public/ that no plan accounts for: choose another output"
        )
    first = add_ceilings(build_plan(config, backbone, key, 0))  # raises what it raises before anything is written
    plan_id = first.id
    release.restricted.make_private_folder()
    release.shard_plans.remove()  # of a run that was interrupted while planning
    write_config(release, plan_id, config)
    inherited, sizes = inherit(config, release), list[int]()
    for shard, entries in enumerate(divide(config, backbone, key, release, list_entries(config))):
        write_entries(release, plan_id, shard, entries)
        sizes.append(len(entries))
    plan = replace(first, records=sum(sizes), shards=len(sizes))
    if config.boomerang.k > 1:
        plan = replace(plan, shard_records=tuple(sizes))
    write(release, plan, inherited)
    return plan


def write(release: Release, plan: Plan, inherited: Mapping[str, str] | None = None) -> None:
    """Write the plan, with the digests of what was taken over from earlier releases; valid once its file exists.

    ``inherited``: the digests of what was just written there, by name; None for those of what lies there.
    """
    if inherited is None:
        inherited = {path.name: _file_digest(path) for path in release.inherited if path.exists()}
    plan = replace(plan, inherited=inherited)
    fields = asdict(plan) | {"hmac": seal.PLACEHOLDER}
    if not plan.shard_records:
        del fields["shard_records"]
    release.plan.write(seal.apply(json.dumps(fields, indent=2).encode(), release.key, "plan"))
    event_log.record(
        release, "planned", records=plan.records, shards=plan.shards, fingerprint=plan.fingerprint, plan=plan.id,
        settings=_file_digest(release.config),
    )  # fmt: skip


def read(release: Release) -> Plan:
    """Return the plan of a release.

    Raises OutputError if there is none, IntegrityError if it is damaged, or if what it says was taken over from
    earlier releases is there no more, CustodianKeyError if the release was made with another key.
    """
    name = f"release {str(release.root)!r}"
    if not release.plan.exists():
        is_erased = event_log.is_erased(release)
        reason = "it was erased" if is_erased else "it is not a release, or only its public half"
        raise OutputError(f"{name}: no restricted/plan.json: {reason}")
    try:
        data = release.plan.read()
        fields = json.loads(data)
        fields.pop("hmac", None)
        plan = _plan_adapter().validate_json(json.dumps(fields), strict=True)
        if not 0 <= plan.shards <= max(plan.records, MAX_SHARDS):  # empty ones are left where people were erased
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise IntegrityError(f"{name}: restricted/plan.json is damaged, or of another version: restore it") from None
    if (key := release.sealing_key) is not None:
        if plan.key_check != key.check_value:
            raise CustodianKeyError(f"{name}: was not made with the custodian's key that is set: set that one")
        seal.check(data, release.key, "plan", "restricted/plan.json", seal.EARLIER_VERSION_HINT)
        _check_inherited(release, plan)
    return plan


@cache
def _plan_adapter() -> TypeAdapter[Plan]:
    """Return what validates plans, which takes longer to make than to use."""
    return TypeAdapter(Plan)


def open_with_key(uri: str) -> Release:
    """Return a release with the key that its settings name; without one where it was made without, and none is set.

    Raises CustodianKeyError if the key is another one than that of the release. Where a key is set, a plan
    without a key is refused, since an attacker may have written it.
    """
    release = Release.at(uri)
    key_check, names = read(release).key_check, {read_config(release).key_env, DEFAULT_KEY_ENV}
    keys = {name: key for name in sorted(names) if (key := load_key(name)).is_persistent}
    if key_check is None and not keys:
        return release
    for key in keys.values():
        if key.check_value == key_check:
            return Release(release.root, key)
    name = next(iter(keys), DEFAULT_KEY_ENV)
    hint = "set that one" if key_check else "unset it if the release was made without a key"
    raise CustodianKeyError(f"{name}: not the key that {uri!r} was made with: {hint}")


def _check_inherited(release: Release, plan: Plan) -> None:
    for path in release.inherited:
        if (_file_digest(path) if path.exists() else None) != plan.inherited.get(path.name):
            raise IntegrityError(f"restricted/{path.name}: is not what was there when the plan was made: restore it")


def _file_digest(path: StoragePath) -> str:
    return hashlib.sha256(path.read()).hexdigest()


def write_config(release: Release, plan_id: str | None, config: RunConfig) -> None:
    """Write the settings of a release, sealed for its plan by a comment at the end."""
    text = f"{configuration.dump(config)}# {seal.PLACEHOLDER}\n"
    data = seal.apply(text.encode(), release.key, f"{plan_id}/config")
    if release.config.exists() and release.config.read() == data:
        return
    if release.plan.exists():
        event_log.record(release, "settings", settings=hashlib.sha256(data).hexdigest())
    release.config.write(data)


def read_config(release: Release) -> RunConfig:
    """Return the settings in ``restricted/config.yaml``, as they are written there.

    Raises IntegrityError if they are not those that were written last.
    """
    config, data = _read_config(release)
    if release.sealing_key is not None:
        details = [event["details"] for event in event_log.read(release) if event["event"] in ("planned", "settings")]
        written = [detail["settings"] for detail in details if "settings" in detail]  # none by earlier versions
        if written[-1:] not in ([], [hashlib.sha256(data).hexdigest()]):
            raise IntegrityError("restricted/config.yaml: is not what was written last: restore it")
    return config


def _read_config(release: Release) -> tuple[RunConfig, bytes]:
    """Return settings that were written at some time, and their file."""
    try:
        data = release.config.read()
        text = data.decode()
    except (OSError, UnicodeDecodeError):
        raise IntegrityError(
            f"release {str(release.root)!r}: restricted/config.yaml is missing or damaged: restore it"
        ) from None
    if release.sealing_key is not None:
        seal.check(data, release.key, f"{read(release).id}/config", "restricted/config.yaml")
    return configuration.build(configuration.parse(text, "restricted/config.yaml")), data


def resolve_config(release: Release) -> RunConfig:
    """Return the settings of a release, with the absolute path of a local source."""
    plan, config = read(release), read_config(release)
    if not StoragePath.from_uri(config.source.uri).is_local:
        return config
    return config.model_copy(update={"source": config.source.model_copy(update={"uri": plan.source})})


def write_entries(release: Release, plan_id: str | None, shard: int, entries: Sequence[Entry]) -> None:
    """Write the planned records of a shard."""
    items = [entry_to_json(entry) for entry in entries]
    data = json.dumps({"entries": items, "hmac": seal.PLACEHOLDER}).encode()
    release.shard_plan(shard).write_uncommitted(seal.apply(data, release.key, f"{plan_id}/plan/{shard}"))


def read_entries(release: Release, plan: Plan, shard: int) -> list[Entry]:
    """Return the planned records of a shard. Raises IntegrityError if they are not what was planned."""
    path = release.shard_plan(shard)
    name = f"restricted/plan/{path.name}"
    try:
        data = path.read()
        seal.check(data, release.key, f"{plan.id}/plan/{shard}", name)
        document = json.loads(data)
        items = document if isinstance(document, list) else document["entries"]  # a list in earlier versions
    except (OSError, ValueError, KeyError, TypeError):
        raise IntegrityError(f"{name}: missing or damaged: restore it, or choose another output") from None
    return [entry_from_json(item) for item in items]


def entry_to_json(entry: Entry) -> dict[str, Any]:
    """Return the fields of an entry that are set."""
    return {name: value for name, value in asdict(entry).items() if value is not None}


def entry_from_json(item: Mapping[str, Any]) -> Entry:
    """Return the entry that ``entry_to_json`` was given."""
    problem = item.get("problem")
    return Entry(**{**item, "problem": None if problem is None else Reason(problem)})


# What may change while a run is unfinished: where it runs and how fast, how the restricted half is kept, and
# waivers, which are the only way past a policy; the model's weights are in the fingerprint.
CHANGEABLE_SETTINGS = (
    *("output.uri", "source.uri", "model.id", "model.revision", "model.device", "model.allow_pickle", "key_env"),
    *("signing_key_env", "run.", "restricted.", "lineage.", "trust", "policy.waivers", "policy.weaker_than_previous"),
)


def resume(config: RunConfig, backbone: Backbone, key: CustodianKey, release: Release) -> Plan:
    """Return the plan of an unfinished run with the same settings; writes nothing.

    Raises OutputError or CustodianKeyError where the run was begun with other settings or another key.
    """
    release = replace(release, key=key)
    output = f"output.uri {config.output.uri!r}"
    if read(Release(release.root)).key_check != key.check_value:
        raise CustodianKeyError(
            f"{config.key_env}: not the key that {output} was begun with: set that one, or choose another output"
        )
    plan, (begun, _) = read(release), _read_config(release)
    new_plan = build_plan(config, backbone, key, plan.records)
    for name in configuration.known_keys():
        before, now = configuration.get_setting(begun, name), configuration.get_setting(config, name)
        if before != now and not name.startswith(CHANGEABLE_SETTINGS):
            difference = f"{name} {_format_setting(before)}, not {_format_setting(now)}"
            break
    else:
        if begun.boomerang.chosen != config.boomerang.chosen:
            difference = "boomerang.level chosen in another way"
        elif new_plan.source != plan.source:
            difference = "another source.uri"
        elif new_plan.fingerprint != plan.fingerprint:
            difference = f"another model than {config.model.id!r}"
        else:
            return plan
    raise OutputError(
        f"{output}: was begun with {difference}: use the settings in its restricted/config.yaml to finish it, or "
        "choose another output"
    )


def _format_setting(value: Any) -> str:
    if isinstance(value, dict | tuple):
        return json.dumps(value, default=lambda model: model.model_dump(mode="json", exclude_none=True))
    return "none" if value is None else repr(value)
