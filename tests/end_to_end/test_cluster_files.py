"""The files of docs/cluster.md: the sbatch file is run with substitutes, others are read, costs computed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from uhr.manifests.manifest import Manifest

ROOT = Path(__file__).parents[2]
SUBSTITUTES = {
    "scontrol": """
        if [ "$1" = show ]; then echo first; echo second; else echo "$@" >> "$RECORD"; fi""",
    # the cluster: node 0, until it is ended
    "srun": """
        while [ "${1#--}" != "$1" ]; do shift; done
        SLURM_NODEID=0 exec "$@\"""",
    "ray": """
        echo "ray $@" >> "$RECORD"; exec sleep 600""",
    # `python3` without Ray: the token is made, and all nodes have joined
    "python3": """
        if [ "$1" = -c ]; then exec "$PYTHON" "$@"; fi; cat > /dev/null""",
    "uhr": """
        [ -n "$RAY_AUTH_TOKEN" ] || exit 9
        echo "uhr $@" >> "$RECORD"
        exec "$PYTHON" -m uhr "${@:1:7}" --engine local --workers 1""",
}
SLOW = """
import os
import time
import pyarrow as pa
from uhr.curate.stage import FrameStage
from uhr.manifests.schema import Column

class Slow(FrameStage):
    name = "slow"
    adds = (Column("slow", pa.bool_(), "whether it was"),)

    def annotate(self, frame):
        time.sleep(0.4)
        with open(os.environ["RECORD"] + ".images", "a") as record:
            record.write(frame.uri + chr(10))
        return {"slow": True}
"""


@pytest.fixture
def job(tmp_path, documents):
    """The sbatch file, in an environment as Slurm's."""
    block = next(block for block in documents.blocks() if block.name == "curate.sbatch")
    script = tmp_path / "curate.sbatch"
    script.write_text(block.text)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in SUBSTITUTES.items():
        file = programs / name
        file.write_text(f"#!/bin/bash\n{body}\n")
        file.chmod(0o755)
    source = tmp_path / "images"
    source.mkdir()
    for number in range(8):
        array = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(array).save(source / f"{number}.png")
    (tmp_path / "slow_stage.py").write_text(SLOW)
    pipeline = tmp_path / "slow.yaml"
    pipeline.write_text("stages: [header, decode, 'slow_stage:Slow']\nrules: {}\nunit: 1\n")
    env = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "RECORD": str(tmp_path / "record"),
        "PIPELINE": str(pipeline),
        "SOURCE": str(source),
        "OUT": str(tmp_path / "out"),
        "SLURM_JOB_NODELIST": "first,second",
        "SLURM_JOB_ID": "4711",
        "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "4",
    }

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(script)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return start


def test_the_sbatch_file_stops_cleanly_before_the_limit_and_goes_on_when_it_is_requeued(job, tmp_path):
    out, record = tmp_path / "out", tmp_path / "record"
    process = job()
    end = time.monotonic() + 120
    while len(list((out / "units").glob("unit-*"))) < 2:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130, printed
    assert "interrupted; nothing is half-written" in printed
    lines = record.read_text().splitlines()
    assert lines[-1] == "requeue 4711"
    head = next(line for line in lines if line.startswith("ray "))
    assert "--head --port=24711 " in head
    assert any(line.startswith("uhr curate run ") and "--address first:24711" in line for line in lines)
    done = {path.name: path.stat().st_mtime_ns for path in (out / "units").glob("unit-*")}
    assert 2 <= len(done) < 8

    process = job()
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed
    assert "8 files: 8 kept" in printed
    measured = (tmp_path / "record.images").read_text().splitlines()
    assert len(set(measured)) == 8
    assert len(measured) <= 9, "only the image at which it was stopped is measured again"
    assert record.read_text().count("requeue") == 1
    assert Manifest.open(out).info.counts["kept"] == 8


def test_the_options_of_the_shown_commands_exist(documents):
    from ray.scripts.scripts import start

    text = next(block for block in documents.blocks() if block.name == "curate.sbatch").text
    known = {option for parameter in start.params for option in parameter.opts}
    used = set(re.findall(r"--[a-z-]+", " ".join(re.findall(r"(?:ray start|common=).*", text))))
    assert len(used) >= 6
    assert used <= known
    assert shutil.which("bash")
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_the_kuberay_job_starts_a_command_that_exists_on_the_ray_of_this_project(documents):
    import ray

    text = next(block for block in documents.blocks() if block.name == "curate.rayjob.yaml").text
    tree = yaml.safe_load(text)
    assert (tree["apiVersion"], tree["kind"]) == ("ray.io/v1", "RayJob")
    cluster = tree["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    containers = [each for group in groups for each in group["template"]["spec"]["containers"]]
    assert len({container["image"] for container in containers}) == 1
    for container in containers:
        assert container["resources"]["requests"] == container["resources"]["limits"]
    words = shlex.split(tree["spec"]["entrypoint"])
    assert words[:4] == ["uhr", "curate", "run", "multiaspect-4k"]
    from uhr.curate.config import preset_names

    assert words[3] in preset_names()
    assert all(word.startswith("s3://") for word in (words[5], words[7]))


def test_the_container_file_installs_what_the_project_declares(documents):
    import tomllib

    text = next(block for block in documents.blocks() if block.name == "Containerfile").text
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    instructions = [line.split()[0] for line in lines]
    assert instructions[0] == "FROM"
    assert set(instructions) <= {"FROM", "RUN", "COPY", "USER", "WORKDIR"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extra,) = re.findall(r"/opt/uhr\[(\w+)\]", text)
    assert extra in project["optional-dependencies"]
    version = re.search(r"FROM python:([\d.]+)", text)[1]
    least = re.search(r">=\s*([\d.]+)", project["requires-python"])[1]
    assert tuple(map(int, version.split("."))) >= tuple(map(int, least.split(".")))


def test_the_costs_are_those_of_the_measured_rates(documents):
    measured = (ROOT / "benchmarks/results/engines.md").read_text()
    headers = float(re.search(r"header-only.*\| ([\d,]+) images/s", measured)[1].replace(",", "")) / 2
    seconds, pictures = re.search(r"Ray ([\d.]+) s, ([\d,]+) pictures", measured).groups()
    pixels = float(pictures.replace(",", "")) / float(seconds) / 2
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in documents.table("costs").splitlines()[2:]
    ]
    assert len(rows) == 2
    for row, rate in zip(rows, (headers, pixels), strict=True):
        assert float(row[1].replace(",", "")) == round(rate, 1)
        for cell, images in zip(row[2:], (1e6, 1e7, 1e8), strict=True):
            digits = len(cell.partition(".")[2])
            assert float(cell.replace(",", "")) == round(images / rate / 3600, digits)
