"""A data set in the working directory brings modules and settings of its own: none of them is imported or read."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import dotenv
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from anonymizer.errors import ConfigError
from flows.runtime import task_runners, working_directory
from tests.support import ROOT
from tests.support.environment import without_prefect
from tests.support.releases import folder_of, picture, settings

HOSTILE = """
import os
with open(os.environ["MARKS"], "a") as marks:
    marks.write(f"{__name__}\\n")
raise SystemExit("hostile code ran")
"""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a data set that brings a module for every name that Python could import."""
    folder = tmp_path / "data set"
    folder.mkdir()
    names = {*sys.stdlib_module_names, *packages_distributions()} - {"anonymizer", "metrics", "flows", "tests"}
    for name in names:
        if name.isidentifier():
            (folder / f"{name}.py").write_text(HOSTILE)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MARKS", str(tmp_path / "marks"))
    monkeypatch.delenv(working_directory.SAFE_PATH, raising=False)
    return folder


@pytest.mark.slow
def test_no_module_in_the_working_directory_is_imported_by_a_run(
    hostile: Path, tmp_path: Path, tiny_model: Path
) -> None:
    script = tmp_path / "anonymizer"  # as an installed console script: its own folder is on the path
    script.write_text("from flows.cli import main\nmain()\n")
    folder_of(hostile / "photos", {"1.png": picture(1)})
    environment = without_prefect(PREFECT_HOME=str(tmp_path / "prefect"), PYTHONPATH=str(ROOT))
    command = [sys.executable, str(script), "run", "--source", "photos", "--output", "out"]
    more = [f"model.id={tiny_model}", "metrics.clip=none", "metrics.lpips=none", "model.device=cpu"]
    done = subprocess.run(
        [*command, *(word for text in more for word in ("--set", text)), "--quiet"],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert not (tmp_path / "marks").exists(), (tmp_path / "marks").read_text()
    assert done.returncode == 0, done.stderr
    assert (hostile / "out" / "public" / "manifest.parquet").exists()


def sys_path() -> list[str]:
    return [os.path.realpath(entry or os.curdir) for entry in sys.path]


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["ray", "dask"])
def test_no_worker_of_a_cluster_has_the_working_directory_on_its_path(
    runner: str, hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    working_directory.distrust()
    config = settings("photos", tmp_path / "out", f"run.runner={runner}", "run.workers=1", "model.device=cpu")
    if runner == "ray":
        with task_runners.ray_runner(config):
            import ray

            found = ray.get(ray.remote(sys_path).remote())
    else:
        with task_runners.dask_runner(config) as made:
            from distributed import Client

            with Client(made.address, **made.client_kwargs) as client:
                (found,) = client.run(sys_path).values()
    assert os.path.realpath(hostile) not in found
    assert not (tmp_path / "marks").exists()


@pytest.mark.parametrize("file", [*ROOT.glob("anonymizer/**/*.py"), *ROOT.glob("metrics/**/*.py"),
                                  *ROOT.glob("flows/**/*.py"), *ROOT.glob("benchmarks/**/*.py")],
                         ids=lambda file: str(file.relative_to(ROOT)))  # fmt: skip
def test_every_child_of_the_program_is_started_without_the_working_directory(file: Path) -> None:
    source = file.read_text()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.List | ast.Tuple) and node.elts and ast.unparse(node.elts[0]) == "sys.executable":
            assert len(node.elts) > 1 and ast.unparse(node.elts[1]) == "'-P'", f"{file.name}:{node.lineno}"
    if any(isinstance(node, ast.ImportFrom | ast.Import) and "multiprocessing" in ast.unparse(node)
           for node in ast.walk(tree)):  # fmt: skip
        assert "working_directory.distrust()" in source


# -- settings of Prefect ----------------------------------------------------------------------------------------------

KEYS = st.sampled_from(["PREFECT_API_URL", "prefect_api_url", "Prefect_Logging_Config_Path", "PREFECT_HOME", "OTHER"])
LINES = st.builds(
    "{}{}{}{}{}={}".format,
    st.sampled_from(["", " ", "\t", "export ", "export   "]), st.sampled_from(["", "'"]), KEYS,
    st.sampled_from(["", "'"]), st.sampled_from(["", " ", "\t"]), st.text(max_size=8),
)  # fmt: skip


@hypothesis_settings(suppress_health_check=list(HealthCheck), deadline=None)
@given(st.lists(LINES | st.text(max_size=20), max_size=5), st.sampled_from(["\n", "\r\n", "\r"]))
def test_a_dotenv_that_prefect_would_read_is_refused(tmp_path: Path, lines: list[str], end: str) -> None:
    text = end.join(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        Path(".env").write_bytes(text.encode("utf-8", "surrogateescape" if text.isascii() else "replace"))
        read = dotenv.dotenv_values(stream=io.StringIO(text))
        if any(key.lower().startswith("prefect") for key in read):
            with pytest.raises(ConfigError, match=r"^working directory: \.env there holds settings of Prefect"):
                working_directory.distrust()
        elif "prefect" not in text.lower():
            working_directory.distrust()


@pytest.mark.parametrize(
    ("name", "text", "refused"),
    [
        ("prefect.toml", '[api]\nurl = "http://elsewhere.example/api"\n', True),
        ("prefect.toml", "no toml", True),
        ("prefect.toml", "", False),
        ("pyproject.toml", '[tool.prefect]\napi.url = "http://elsewhere.example/api"\n', True),
        ("pyproject.toml", 'tool.prefect.home = "x"\n', True),
        ("pyproject.toml", "no toml", True),
        ("pyproject.toml", 'tool = "x"\n', True),
        ("pyproject.toml", '[project]\ndependencies = ["prefect"]\n[tool.ruff]\nline-length = 120\n', False),
        (".env", "OTHER=1\n", False),
    ],
)
def test_settings_of_prefect_in_the_working_directory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, refused: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)
    if refused:
        with pytest.raises(ConfigError, match=rf"^working directory: {name} there holds settings of Prefect"):
            working_directory.distrust()
    else:
        working_directory.distrust()
    assert os.environ[working_directory.SAFE_PATH] == "1"


def test_a_plot_is_drawn_by_its_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: module://hostile\n")
    code = (
        "import matplotlib\n"
        "from anonymizer.report import curves\n"
        "usetex = []\n"
        "plot = lambda c: usetex.append(matplotlib.rcParams['text.usetex']) or F()\n"
        "curves._plot_risk = curves._plot_utility = plot\n"
        "class F:\n"
        "    def savefig(self, *a, **k): usetex.append(matplotlib.rcParams['text.usetex'])\n"
        "from anonymizer.storage.path import StoragePath\n"
        "assert matplotlib.rcParams['text.usetex']\n"
        "curves.write_curves(StoragePath.from_uri('plots'), None)\n"
        "print(set(usetex))\n"
    )
    command = [sys.executable, "-P", "-c", code]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "{False}\n"
