"""The command line as people use it: every command on a tiny release, and one clear line for whatever is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from anonymizer.backbones import load_backbone
from anonymizer.storage import run_lock
from anonymizer.storage.layout import Release
from flows.cli import main
from tests.support.environment import without_prefect
from tests.support.releases import GARBAGE, HEX, begin, folder_of, manifest, one_shard, people, run, settings, tree

Cli = Callable[..., Result]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return folder_of(people(tmp_path / "in", 5), {"bad.jpg": GARBAGE})


@pytest.fixture
def release(tmp_path: Path, source: Path) -> Release:
    return run(settings(source, tmp_path / "out"))


def options(model: Path, *more: str) -> list[str]:
    sets = ["metrics.clip=none", "metrics.lpips=none", "boomerang.steps=2", "run.shard_size=2", *more]
    return ["--model", str(model), *(word for one in sets for word in ("--set", one))]


def one_line(result: Result, status: int = 2) -> str:
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith("\n")
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_scorer_that_cannot_score_such_small_pictures_is_refused_before_anything_is_written(
    tmp_path: Path, source: Path, cli: Cli, tiny_model: Path, command: str
) -> None:
    said = one_line(cli(command, "--source", source, "--output", tmp_path / "out", "--model", tiny_model,
                        "--set", "metrics.clip=none"))  # fmt: skip
    assert "metrics.lpips" in said and "cannot look at 8 x 8 pictures" in said
    assert not (tmp_path / "out" / "restricted" / "plan.json").exists()


def test_a_folder_becomes_a_release(
    tmp_path: Path, source: Path, cli: Cli, tiny_model: Path, prefect_home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out [bold]"
    arguments = ["run", "--source", source, "--output", out, "--level", "0.3", *options(tiny_model)]
    done = cli(*arguments)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "Released 5 of 6 pictures at level 0.3" in done.stdout
    assert "not_an_image: 1" in done.stdout
    assert str(out / "public") in done.stdout
    assert len(manifest(Release.at(str(out)))) == 5
    before = tree(out)

    again = cli(*arguments)
    assert "Nothing to do, this release is complete: 5 of 6 pictures" in again.stdout
    as_json = cli(*arguments, "--json")
    assert (as_json.exit_code, as_json.stderr) == (0, "")
    counts = json.loads(as_json.stdout)
    assert (counts["read"], counts["released"], counts["failed"], counts["shards"]) == (6, 5, 1, 3)
    assert tree(out) == before
    assert one_line(cli(*arguments, "--set", "boomerang.level=0.5")).startswith("error: output.uri")
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def test_a_config_file_does_the_same_as_options(
    tmp_path: Path, source: Path, cli: Cli, tiny_model: Path, prefect_home: Path
) -> None:
    (tmp_path / "c.yaml").write_text(
        f"source: {{uri: '{source}'}}\noutput: {{uri: '{tmp_path / 'out'}'}}\nboomerang: {{level: 0.9, steps: 2}}\n"
        f"model: {{id: '{tiny_model}'}}\nmetrics: {{clip: none, lpips: none}}\n"
    )
    done = cli("run", tmp_path / "c.yaml", "--level", "0.2", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["released"] == 5
    assert set(manifest(Release.at(str(tmp_path / "out")))["level"].to_pylist()) == {0.2}


def test_a_run_that_releases_nothing_fails(tmp_path: Path, cli: Cli, tiny_model: Path, prefect_home: Path) -> None:
    source = folder_of(tmp_path / "in", {"a.jpg": GARBAGE, "b.jpg": b""})
    done = cli("run", "--source", source, "--output", tmp_path / "out", *options(tiny_model), "--json")
    assert done.exit_code == 1
    assert done.stdout == "" and not (tmp_path / "out/public").exists()
    assert done.stderr.startswith("error: release: nothing is published, since no picture could be released: of 2 ")
    assert "2 failed (1 empty, 1 not_an_image)" in done.stderr
    assert done.stderr.count("\n") == 1


def test_plan_shows_the_plan_and_writes_nothing(
    tmp_path: Path, source: Path, cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    arguments = ["plan", "--source", source, "--output", tmp_path / "out", "--level", "0.4", *options(tiny_model)]
    done = cli(*arguments)
    assert (done.exit_code, done.stderr) == (0, "")
    for part in (
        "Plan for 6 records",
        "t_boom 400 of 1000",
        "log-SNR",
        "2 steps",
        "3 of up to 2",
        "nothing was written",
    ):
        assert part in done.stdout
    told = json.loads(cli(*arguments, "--json").stdout)
    assert (told["records"], told["shards"], told["t_boom"], told["steps"]) == (6, 3, 400, 2)
    assert told["estimated_seconds"] > 0
    assert told["ceilings"]["linkage_rank1"]["gallery"] == 5  # one cannot be decoded
    assert "links at most" in done.stdout and "tells a member" in done.stdout and "not covered" in done.stdout
    assert "Plan for 6 records" in cli(*arguments, "-q").stdout
    found = {field["name"]: (field["found"], field["becomes"]) for field in told["fields"]}
    assert found["file name, path, size and time"] == ("each file", "restricted (ledger)")
    assert found["other metadata of pictures"][0] == "0 of 5 pictures"
    assert "What becomes of what is in the source" in done.stdout
    assert re.search("file name, path, size and time +each file +restricted \\(ledger\\)", done.stdout)
    assert tree(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_plan_of_a_release_that_was_begun_shows_what_is_left(
    tmp_path: Path, source: Path, cli: Cli, tiny_model: Path
) -> None:
    arguments = ["--source", source, "--output", tmp_path / "out", "--level", "0.4", *options(tiny_model)]
    config = settings(
        source, tmp_path / "out", metrics={"clip": "none", "lpips": "none"}, model={"id": str(tiny_model)}
    )
    begin(config, load_backbone(config.model))
    one_shard(config, 0)
    before = tree(tmp_path)
    changed = ["--set", "run.batch_size=2"]
    told = json.loads(cli("plan", *arguments, *changed, "--json").stdout)
    assert (told["records"], told["done"]) == (6, 2)
    assert "2 of 6 done" in cli("plan", *arguments).stdout
    other = one_line(cli("plan", *arguments, "--set", "output.image=jpeg"))
    assert "was begun with output.image" in other
    assert other == one_line(cli("run", *arguments, "--set", "output.image=jpeg"))
    assert tree(tmp_path) == before


@pytest.mark.slow
def test_settings_that_reveal_more_than_pictures_are_cautioned(
    tmp_path: Path, source: Path, cli: Cli, tiny_model: Path, prefect_home: Path
) -> None:
    given_away = ["output.public_scores=exact", "output.size=original"]
    arguments = ["--source", source, "--output", tmp_path / "out", *options(tiny_model, *given_away)]
    for command in ("plan", "run"):
        shown = cli(command, *arguments).stdout
        assert "Caution: output.public_scores exact: a score is a fact about an original" in shown
        assert "Caution: output.size original: width and height of each original are published" in shown
        assert len(json.loads(cli(command, *arguments, "--json").stdout)["cautions"]) == 3
    plain = cli("plan", *arguments[:2], "--output", tmp_path / "new", *options(tiny_model)).stdout
    assert plain.count("Caution") == 1  # the first release of a series can be joined with others under its key


def test_status_shows_the_state_of_a_release(tmp_path: Path, source: Path, cli: Cli) -> None:
    assert "it is not a release" in one_line(cli("status", tmp_path / "out"))
    config = settings(source, tmp_path / "out")
    begin(config)
    assert "0 of 6 done" in cli("status", tmp_path / "out").stdout
    one_shard(config, 0)
    midway = cli("status", tmp_path / "out")
    assert "2 of 6 done" in midway.stdout
    assert "1 of 3 committed" in midway.stdout
    assert "unfinished: run the same command again" in midway.stdout
    told = json.loads(cli("status", tmp_path / "out", "--json").stdout)
    assert (told["read"], told["planned"], told["shards"], told["planned_shards"], told["public"]) == (
        2,
        6,
        1,
        3,
        False,
    )
    with run_lock.exclusive_run(config.output.uri):  # in this process; a lock is the same to any other
        assert "a run is working on it" in cli("status", tmp_path / "out").stdout
    one_shard(config, 1)
    one_shard(config, 2)
    assert "not yet assembled" in cli("status", tmp_path / "out").stdout
    run(config)
    assert "complete" in cli("status", tmp_path / "out").stdout
    assert json.loads(cli("status", tmp_path / "out", "--json").stdout)["public"] is True


def test_inspect_shows_a_release_and_one_of_its_pictures(release: Release, cli: Cli) -> None:
    out = release.root.path
    shown = json.loads(cli("inspect", out, "--json").stdout)
    assert (shown["released"], shown["level"], shown["t_boom"]) == (5, 0.4, 400)
    row = manifest(release).to_pylist()[2]
    assert json.loads(cli("inspect", out, row["output_id"], "--json").stdout) == row
    assert row["sha256"] in cli("inspect", out, row["output_id"]).stdout
    assert "not in the manifest" in one_line(cli("inspect", out, "0" * 32))
    one = {name: str(value) for name, value in row.items() if value is not None}
    assert one["log_snr"] not in cli("inspect", out, row["output_id"]).stdout
    for words in ([out], [out, row["output_id"]]):
        said = cli("inspect", *words).stdout
        assert f"{row['log_snr']:+.2f}" in said
        assert "None" not in said
    assert "caption" not in cli("inspect", out, row["output_id"]).stdout  # nobody asked for one
    assert "0.4: t_boom 400, log-SNR" in cli("inspect", out).stdout
    release.public.remove()
    assert "no public/manifest.parquet: see `anonymizer status" in one_line(cli("inspect", out))


def test_inspect_and_status_name_things_alike(release: Release, cli: Cli) -> None:
    names = {}
    for command in ("status", "inspect"):
        shown = cli(command, release.root.path).stdout.splitlines()
        assert shown[0].split() == ["Release", release.root.path]
        names[command] = {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in shown[1:] if "  " in line}
    assert names["status"]["released"] == names["inspect"]["released"] == "5"
    for name in ("records", "shards", "quarantined", "failed"):
        assert name in names["status"]
    assert set(json.loads(cli("inspect", release.root.path, "--json").stdout)) >= {
        "released",
        "columns",
        "score_models",
    }


def test_inspect_shows_where_outputs_differ(release: Release, cli: Cli) -> None:
    table = manifest(release)
    levels = pa.array([0.4, 0.4, 0.4, 0.4, 0.6])
    pq.write_table(table.set_column(table.column_names.index("level"), "level", levels), release.manifest.path)
    assert "level" not in json.loads(cli("inspect", release.root.path, "--json").stdout)
    assert "differs: see the manifest" in cli("inspect", release.root.path).stdout


@pytest.mark.parametrize(
    "damage", [lambda d: b"", lambda d: d[:-30], lambda d: b"x" * len(d), lambda d: d[:9] + d[40:]]
)
def test_inspect_of_a_damaged_manifest_is_one_line(release: Release, cli: Cli, damage: Any) -> None:
    path = Path(release.manifest.path)
    path.write_bytes(damage(path.read_bytes()))
    assert "public/manifest.parquet is damaged" in one_line(cli("inspect", release.root.path), status=1)


def test_inspect_of_another_table_is_one_line(release: Release, cli: Cli) -> None:
    pq.write_table(pa.table({"a": [1]}), release.manifest.path)
    assert "or of another version" in one_line(cli("inspect", release.root.path), status=1)


def test_models_lists_what_comes_with_the_package(cli: Cli) -> None:
    listed = json.loads(cli("models", "--json").stdout)
    assert {"bundled:clip-mini"} <= {model["name"] for model in listed}
    assert all(model["about"] and model["bytes"] > 100_000 for model in listed)
    for model in listed:
        assert model["name"] in cli("models").stdout
        assert cli("models", model["name"]).stdout.startswith(("#", "---"))
    assert "--model FOLDER" in cli("models").stdout
    assert "model 'cats': not bundled: known: " in one_line(cli("models", "cats"))


def test_help_and_version(cli: Cli) -> None:
    for name in ([], *([name] for name in main.commands)):
        shown = cli(*name, "--help")
        assert shown.exit_code == 0
        assert shown.stdout.startswith("Usage: ")
    assert cli("--version").exit_code == 0


def test_nothing_is_cut_off_in_the_list_of_commands(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = cli("--help").stdout.partition("Commands:")[2]
    assert "..." not in listed
    for name in main.commands:
        assert re.search(rf"^  {name} +[A-Z].*\.$", listed, re.MULTILINE)


@pytest.mark.parametrize("words", [["models"], ["models", "faces-64"], ["inspect", "nowhere"]])
def test_looking_things_up_needs_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from flows.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: print('HEAVY', sorted({'torch', 'prefect', 'diffusers', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("HEAVY []")


# -- bad input --------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[list[str], str]] = {
    "no arguments": (["run"], "config: none given: name a CONFIG.yaml, or give --source and --output"),
    "no output": (["run", "--source", "IN"], "config: none given"),
    "missing source": (["run", "--source", "none", "--output", "out"], "source.uri 'none': no such file or folder"),
    "empty source": (["run", "--source", "EMPTY", "--output", "out"], "no files in it"),
    "source of unknown format": (["run", "--source", "IN/bad.jpg", "--output", "out"], "a file of unknown format"),
    "unclassified column": (["run", "--source", "MINE/list.csv", "--output", "out"], "nobody has classified, 'name'"),
    "plan of unclassified": (["plan", "--source", "MINE/list.csv", "--output", "out"], "nobody has classified, 'name'"),
    "missing config": (["run", "none.yaml"], "config: no file 'none.yaml'"),
    "config is a folder": (["run", "IN"], "is a directory"),
    "source as config": (["run", "IN"], "config: 'IN' is a directory: if it holds the pictures, give it as --source"),
    "source as config of plan": (["plan", "IN/"], "is a directory: if it holds the pictures, give it as --source"),
    "Parquet file as config": (
        ["plan", "a.parquet"],
        "config: 'a.parquet' is not a YAML file: if it holds the pictures",
    ),
    "address as config": (["plan", "s3://a:b@c/d"], "config: an address is not a YAML file: if it holds the pictures"),
    "password in an address": (["run", "--source", "s3://a:b@c/", "--output", "o"], "source.uri holds a password"),
    "source as a section": (["run", "GOOD", "--set", "source=IN"], "source: is a section, got 'IN': write source.uri"),
    "level that is true": (["run", "GOOD", "--set", "boomerang.level=true"], "boomerang.level must be a number"),
    "config is no YAML": (["run", "IN/bad.jpg"], "config: "),
    "unknown key": (["run", "GOOD", "--set", "run.batchsize=2"], "unknown key: did you mean 'batch_size'?"),
    "unknown option": (["run", "GOOD", "--levle", "0.4"], "No such option"),
    "unknown command": (["rnu"], "No such command"),
    "too many arguments": (["status", "a", "b"], "unexpected extra argument"),
    "missing argument": (["status"], "Missing argument"),
    "malformed set": (["run", "GOOD", "--set", "level"], "--set: got 'level': write it as section.key=value"),
    "set that is no YAML": (["run", "GOOD", "--set", "run.threads=["], "is not YAML"),
    "level 0": (["run", "GOOD", "--level", "0"], "boomerang.level must be in (0, 1], got 0"),
    "level that is no number": (["run", "GOOD", "--level", "much"], "is not a valid float"),
    "level nan": (["run", "GOOD", "--level", "nan"], "boomerang.level must be in (0, 1], got nan"),
    "samples 3": (["run", "GOOD", "--set", "boomerang.samples=3"], "boomerang.samples must be 1 in a release, got 3"),
    "unknown model": (["run", "GOOD", "--model", "bundled:cats"], "unknown bundled model 'bundled:cats': known: "),
    "missing scoring weights": (["run", "GOOD", "--set", "metrics.lpips=alex:none.pth"], "metrics.lpips: no file"),
    "plan without scoring weights": (
        ["plan", "GOOD", "--set", "metrics.lpips=alex:none.pth"],
        "metrics.lpips: no file",
    ),
    "plan of unknown scores": (["plan", "GOOD", "--set", "metrics.clip=resnet"], "metrics.clip: 'resnet': write MODEL"),
    "model folder that is not there": (["run", "GOOD", "--model", "none/"], "model.id 'none/': no such folder"),
    "missing model folder": (["run", "GOOD", "--model", "./none"], "no such folder, and not a hub id"),
    "folder that is no model": (["run", "GOOD", "--model", "EMPTY"], "not a usable diffusers folder"),
    "hub model without revision": (["run", "GOOD", "--model", "a/b"], "model.revision: missing for hub model 'a/b'"),
    "wrong dtype": (["run", "GOOD", "--set", "model.dtype=int8"], "model.dtype: Input should be 'float32'"),
    "dtype of another device": (["run", "GOOD", "--set", "model.dtype=float16"], "not usable on a CPU"),
    "wrong device": (["run", "GOOD", "--set", "model.device=warp"], "model.device: 'warp' cannot be used"),
    "output inside source": (["run", "GOOD", "--output", "IN/out"], "lies inside the source"),
    "source inside output": (["run", "GOOD", "--output", "."], "holds the source"),
    "output is a file": (["run", "GOOD", "--output", "c.yaml"], "is a file: name a folder"),
    "output of others": (["run", "GOOD", "--output", "MINE"], "is not empty and no release"),
    "unknown protocol": (["run", "GOOD", "--output", "nosuch://x/y"], "cannot be opened"),
    "plan without source": (["plan", "--source", "none", "--output", "out"], "no such file or folder"),
    "plan of foreign output": (["plan", "GOOD", "--output", "MINE"], "is not empty and no release"),
    "demo at level 0": (["demo", "--output", "out", "--level", "0"], "boomerang.level must be in (0, 1]"),
    "demo on others' files": (["demo", "--output", "MINE"], "exists and was not made by a demo"),
    "demo of too few": (["demo", "--output", "out", "--pictures", "3"], "is not in the range 12<=x<=1000"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_no_trace(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    source = folder_of(people(tmp_path / "IN", 1), {"bad.jpg": b"\xff\xd8\t"})
    (tmp_path / "EMPTY").mkdir()
    folder_of(tmp_path / "MINE", {"diary.txt": b"dear", "list.csv": b"image,name\ndiary.txt,Ada\n"})
    good = f"source: {{uri: '{source}'}}\noutput: {{uri: out}}\nmetrics: {{clip: none, lpips: none}}\n"
    (tmp_path / "c.yaml").write_text(f"{good}model: {{device: cpu}}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")  # nothing must get as far as needing a server
    before = tree(tmp_path)
    words, text = BAD[case]
    assert text in one_line(cli(*(word.replace("GOOD", "c.yaml") for word in words)))
    assert tree(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_a_malformed_key_is_refused_first_and_not_printed(
    tmp_path: Path, source: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANONYMIZER_KEY", "not-a-secret-but-nearly")
    for command in ("run", "plan"):
        line = one_line(cli(command, "--source", source, "--output", tmp_path / "out"))
        assert "ANONYMIZER_KEY: not a key" in line
        assert "nearly" not in line


def test_no_command_prints_the_usage(cli: Cli) -> None:
    shown = cli()
    assert shown.exit_code == 2
    assert "Usage: " in shown.output


def test_ctrl_c_is_one_line_with_the_next_step(
    tmp_path: Path, source: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **rest: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.cli.release.run_release", interrupted)
    done = cli("run", "--source", source, "--output", tmp_path / "out")
    assert done.exit_code == 130
    assert done.stderr == "stopped: run the same command again to finish what is left\n"


@pytest.mark.slow
def test_a_run_without_a_prefect_server_is_quiet_and_leaves_nothing_running(
    tmp_path: Path, source: Path, tiny_model: Path
) -> None:
    environment = without_prefect(PREFECT_HOME=str(tmp_path / "prefect"), ANONYMIZER_KEY=HEX)
    command = [sys.executable, "-m", "flows.cli", "run", "--source", str(source), "--output", str(tmp_path / "out")]
    done = subprocess.run([*command, *options(tiny_model)], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Released 5 of 6 pictures" in done.stdout
    marker = str(tmp_path / "prefect").encode()
    running = [p for p in Path("/proc").glob("[0-9]*/environ") if marker in _environment(p)]
    assert running == []


def _environment(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # gone in between, or someone else's
        return b""
