"""One run at a time works on a release: a lock on a disk, a lease on an object store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from anonymizer.errors import OutputError
from anonymizer.storage import lease, run_lock
from anonymizer.storage.layout import Release


@pytest.fixture
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWAL_SECONDS", 0.1)
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.5)


def test_a_second_run_on_the_same_output_is_refused(bucket: str, short_intervals: None) -> None:
    script = (
        "import sys; from anonymizer.storage import lease, run_lock; lease.RENEWAL_SECONDS = .1\n"
        f"with run_lock.exclusive_run({bucket!r}): print('in', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin and process.stdout
    with process:
        assert process.stdout.readline() == b"in\n"
        with pytest.raises(OutputError, match="another run is working on it"), run_lock.exclusive_run(bucket):
            pass
        process.kill()  # and renews nothing any more
    with run_lock.exclusive_run(bucket), run_lock.exclusive_run(bucket):
        assert Release.at(bucket).lock.exists()
    assert not Release.at(bucket).lock.exists()


def test_a_run_on_a_disk_is_seen_by_other_processes_while_it_holds_the_lock(tmp_path: Path) -> None:
    release = Release.at(str(tmp_path / "out"))
    script = f"from anonymizer.storage import run_lock as r; print(r.is_running(r.Release.at({release.root.path!r})))"

    def seen_by_another_process() -> str:
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()

    assert seen_by_another_process() == "False"
    with run_lock.exclusive_run(release.root.path), run_lock.exclusive_run(release.root.path):
        assert seen_by_another_process() == "True"
    assert seen_by_another_process() == "False"
