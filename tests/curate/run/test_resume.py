"""A run that is killed at any moment and started again ends like one that was not, and repeats no unit."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from uhr.base.locks.run_lock import is_held
from uhr.curate.run.status import status_of
from uhr.manifests.info import is_manifest
from uhr.manifests.manifest import Manifest

# an image takes at least 20 ms, so that there is a middle of the run to be killed in
PIPELINE = """
preset: quickstart
stages: {{"{outside}:Slow": {{seconds: {seconds}}}}}
unit: 2
"""
SLOW = """

class Slow(FrameStage):
    name = "slow"
    adds = (Column("slow", pa.bool_(), "whether it was"),)

    class Params(Config):
        seconds: float

    def annotate(self, frame):
        time.sleep(self.params.seconds)
        return {"slow": True}
"""


DEATHS = {
    "in the commit": ("uhr.manifests.writer", "write_json"),
    "before the report": ("uhr.curate.run.job", "_finish"),
    "in the report": ("uhr.manifests.report", "write_report"),
    "before clearing up": ("uhr.base.run_folder.RunFolder", "clear"),
    "while clearing up": ("pathlib.Path", "unlink"),
}
"""Where a run is killed, which is too short a moment to be met from outside: as it calls this function."""

DIES = """
import os, pkgutil, signal, sys
from pathlib import Path
from uhr.cli import main
import uhr.curate.run.job

module, name, out = sys.argv[1:4]

def die(path=None, *words, **options):
    if module != "pathlib.Path":
        os.kill(os.getpid(), signal.SIGKILL)
    unlink(path, *words, **options)
    # the first of the units is gone, the others exist
    if path.parent == Path(out, "units") and path.name.startswith("unit-"):
        os.kill(os.getpid(), signal.SIGKILL)

unlink = Path.unlink
setattr(pkgutil.resolve_name(module), name, die)
sys.exit(main(sys.argv[4:]))
"""


class Run:
    """The same command again and again, as a process of its own."""

    def __init__(
        self, processes: Any, tmp_path: Path, source: Path, outside: str, engine: str, seconds: float = 0.02
    ) -> None:
        package = tmp_path / "elsewhere" / outside / "__init__.py"
        package.write_text(package.read_text() + SLOW)
        self.pipeline = tmp_path / "slow.yaml"
        self.pipeline.write_text(PIPELINE.format(outside=outside, seconds=seconds))
        self.path = str(package.parent.parent)
        self.source, self.engine, self.processes = source, engine, processes

    def words(self, out: Path) -> list[str]:
        options = ["--source", self.source, "--out", out, "--engine", self.engine, "--workers", 2]
        return ["curate", "run", str(self.pipeline), *map(str, options)]

    def start(self, out: Path) -> Any:
        env = {**os.environ, "PYTHONPATH": self.path}
        return self.processes.start(
            ["-m", "uhr", *self.words(out)], env=env, new_session=True, warm_workers=True
        )

    def kill_when(self, out: Path, moment: Callable[[], bool], patience: float = 90) -> bool:
        """SIGKILL as soon as `moment()`; return False if the run ended before. Its workers end with it."""
        process = self.start(out)
        end = time.monotonic() + patience
        while process.poll() is None and not moment():
            assert time.monotonic() < end, "the moment never came"
            time.sleep(0.001)
        killed = process.poll() is None
        if killed:
            process.kill()
        process.wait(20)
        return killed

    def die_at(self, out: Path, moment: str) -> int:
        """Run until `moment` of `DEATHS`; the exit code."""
        arguments = ["-c", DIES, *DEATHS[moment], str(out), *self.words(out)]
        env = {**os.environ, "PYTHONPATH": self.path}
        return self.processes.run(arguments, timeout=120, env=env, warm_workers=True).returncode

    def actors(self) -> list[psutil.Process]:
        """The processes of Ray's actors that do this run's units."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("PYTHONPATH", "").startswith(self.path)
                if ours and "UnitActor" in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue  # it has ended since it was listed
        return found

    def finish(self, out: Path) -> str:
        process = self.start(out)
        assert process.wait(120) == 0, process.stderr()
        return process.stdout()


def parts(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every finished unit."""
    found = {}
    for path in (out / "units").glob("unit-*.parquet"):
        status = path.stat()
        found[path.name] = (status.st_ino, status.st_mtime_ns)
    return found


def content(out: Path) -> tuple[str, list[dict]]:
    manifest = Manifest.open(out)
    return manifest.id, manifest.table().to_pylist()


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    paths = [folder, *folder.rglob("*")]
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns, p.stat().st_size) for p in paths}


def moments(out: Path, seed: int) -> dict[str, Callable[[], bool]]:
    """Named states of OUT, and one drawn time."""
    units = out / "units"
    late = time.monotonic() + random.Random(seed).uniform(0.2, 4)
    return {
        "while listing": (units / "lock").exists,
        "after the plan": (units / "plan.json").exists,
        "after some units": lambda: len(parts(out)) >= 3,
        "at any time": lambda: time.monotonic() > late,
    }


def _present(out: Path) -> dict[str, bool]:
    """Which results of a run exist: the manifest, the report, and some or all of the units."""
    return {
        "samples": any((out / "samples").glob("part-*.parquet")),
        "manifest": is_manifest(out),
        "report": (out / "report.html").exists(),
        "all units": len(parts(out)) == 9,
        "plan": (out / "units" / "plan.json").exists(),
    }


def test_killed_at_each_moment_of_its_end_a_run_goes_on_from_there(warm_curation, tmp_path, images, outside):
    run = Run(warm_curation, tmp_path, images, outside, "local", seconds=0)
    out = tmp_path / "out"
    units, now = dict.fromkeys(("all units", "plan"), True), {}
    expected = {
        "in the commit": {"samples": True, "manifest": False, "report": False, **units},
        "before the report": {"samples": True, "manifest": True, "report": False, **units},
        "in the report": {"samples": True, "manifest": True, "report": False, **units},
        "before clearing up": {"samples": True, "manifest": True, "report": True, **units},
    }
    for moment, expected_files in expected.items():
        assert run.die_at(out, moment) == -signal.SIGKILL, moment
        assert _present(out) == expected_files, moment
        assert not now or parts(out) == now, f"a finished unit was touched after {moment}"
        now = parts(out)
        assert status_of(out)["state"] == ("committed" if expected_files["manifest"] else "stopped")
    assert run.die_at(out, "while clearing up") == -signal.SIGKILL
    assert len(parts(out)) < 9
    assert (out / "units" / "lock").exists()
    before = Manifest.open(out).id
    printed = run.finish(out)
    assert not (out / "units").exists()
    assert "17 files: 8 kept, 5 rejected, 4 failed" in printed
    calm = tmp_path / "calm"
    run.finish(calm)
    assert content(out) == content(calm)
    assert Manifest.open(out).id == before


def test_a_run_killed_again_and_again_ends_like_one_that_was_not(warm_curation, tmp_path, images, outside):
    run = Run(warm_curation, tmp_path, images, outside, "local")
    calm, out = tmp_path / "calm", tmp_path / "out"
    run.finish(calm)
    killed = []
    before: dict[str, tuple[int, int]] = {}
    for name in moments(out, 0):
        if run.kill_when(out, moments(out, 1)[name]):
            killed.append(name)
        now = parts(out)
        if now:
            assert {unit: now[unit] for unit in before} == before, f"a finished unit was touched after {name}"
        before = now
    assert {"after the plan", "after some units"} <= set(killed)
    print(f"killed {len(killed)} times ({', '.join(killed)}), {len(before)} of 9 units were kept")
    printed = run.finish(out)
    assert content(out) == content(calm)
    assert (out / "report.html").exists()
    assert not (out / "units").exists()
    assert "17 files: 8 kept, 5 rejected, 4 failed" in printed


@pytest.mark.ray
def test_on_ray_a_killed_run_goes_on_and_a_killed_actor_is_replaced(warm_curation, tmp_path, images, outside):
    run = Run(warm_curation, tmp_path, images, outside, "ray", seconds=0.3)
    calm, out = tmp_path / "calm", tmp_path / "out"
    assert run.kill_when(out, lambda: len(parts(out)) >= 2)
    before = parts(out)
    process = run.start(out)
    while len(parts(out)) == len(before):
        assert process.poll() is None
        time.sleep(0.01)
    run.actors()[0].kill()
    print(f"the driver was killed after {len(before)} of 9 units, an actor after {len(parts(out))}")
    assert before.items() <= parts(out).items()
    assert process.wait(120) == 0, process.stderr()
    run.engine = "local"
    run.finish(calm)
    assert content(out) == content(calm)


def test_a_finished_run_says_so_and_touches_nothing(uhr, images, tmp_path):
    words = ("curate", "run", "quickstart", "--source", images, "--out", tmp_path / "out", "--workers", 0)
    assert uhr(*words)[0] == 0
    before = tree(tmp_path / "out")
    code, printed, _ = uhr(*words, "--engine", "local")
    assert code == 0
    assert "is already finished, with the same pipeline and files; nothing was done" in printed
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "half done"])
def test_other_files_or_another_pipeline_want_another_folder(
    warm_curation, uhr, images, tmp_path, outside, finished
):
    out = tmp_path / "out"
    words = ["curate", "run", "quickstart", "--source", images, "--out", out, "--workers", 0]
    if finished:
        assert uhr(*words)[0] == 0
    else:
        run = Run(warm_curation, tmp_path, images, outside, "local")
        words[2] = run.pipeline
        assert run.kill_when(out, lambda: len(parts(out)) >= 2)
    code, _, errors = uhr(*words, "--set", "rules.entropy=entropy > 5")
    assert code == 1
    assert "with another pipeline: write to another folder: uhr curate run" in errors
    assert "--workers 0 --set 'rules.entropy=entropy > 5'" in errors
    assert f"--out '{tmp_path}/out-2'" in errors or f"--out {tmp_path}/out-2" in errors
    (images / "1.jpg").touch()
    code, _, errors = uhr(*words)
    assert code == 1
    assert "files" in errors
    assert "out-2" in errors
    assert errors.count("\n") - errors.count("list:") == 1


def test_only_one_run_at_a_time_works_in_a_folder(warm_curation, uhr, images, tmp_path, outside):
    run = Run(warm_curation, tmp_path, images, outside, "local", seconds=0.5)
    out = tmp_path / "out"
    first = run.start(out)
    try:
        while len(parts(out)) < 1:
            assert first.poll() is None
            time.sleep(0.01)
        assert is_held(out / "units")
        seen = status_of(out)
        assert seen["state"] == "running"
        assert 1 <= seen["units_done"] < seen["units"] == 9
        assert seen["kept"] + seen["rejected"] + seen["failed"] == seen["rows_done"] <= seen["rows"] == 17
        (segment,) = seen["segments"]
        assert (segment["tasks"], segment["rows"]) == (seen["units_done"], seen["rows_done"])
        assert set(seen["faults"]) <= {"truncated", "not an image", "empty file", "broken link"}
        assert (segment["rows_per_minute"] is None) == (segment["seconds_left"] is None)
        code, _, errors = uhr(*run.words(out))
        assert code == 1
        assert f"another run is at work in {out}: wait for it, or stop it" in errors
        assert first.poll() is None
    finally:
        first.kill()
        first.wait(20)
    assert not is_held(out / "units")
    assert status_of(out)["state"] == "stopped"


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(warm_curation, tmp_path, images, outside):
    run = Run(warm_curation, tmp_path, images, outside, "local", seconds=0.3)
    out = tmp_path / "out"
    process = run.start(out)
    while len(parts(out)) < 1:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    printed = process.stdout() + process.stderr()
    assert "interrupted" in printed.splitlines()[-1]
    assert "Traceback" not in printed
    before = parts(out)
    run.kill_when(out, lambda: len(parts(out)) > len(before))
    assert before.items() <= parts(out).items()
