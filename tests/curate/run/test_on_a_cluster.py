"""Three Ray nodes on this machine: what one lacks is said before any work, and one may be lost midway."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from uhr.manifests.manifest import Manifest

NODES = ("head", "second", "third")
STAGE = """

class Slow(FrameStage):
    name = "slow"
    adds = (Column("slow", pa.bool_(), "whether it was"),)

    class Params(Config):
        seconds: float
        notes: str

    def weights(self):
        return {"brake": "~/brake.bin"}

    def annotate(self, frame):
        import os

        Path(self.params.notes, os.environ.get("UHR_TEST_NODE", "here")).touch()
        time.sleep(self.params.seconds)
        return {"slow": True}
"""


@pytest.fixture(scope="module")
def homes(tmp_path_factory) -> Path:
    """A home folder for each node; that of the third has no weights, and an old version of numba."""
    folder = tmp_path_factory.mktemp("homes")
    for name in NODES:
        (folder / name).mkdir()
        (folder / name / "brake.bin").write_bytes(b"weights")
    (folder / "third" / "brake.bin").unlink()
    old = folder / "third" / "numba-0.0.1.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: numba\nVersion: 0.0.1\n")
    return folder


@pytest.fixture(scope="module")
def cluster(homes, object_store_server, hub_server) -> Iterator[Any]:
    """`ray.cluster_utils.Cluster` of three nodes with one CPU each, by name in `nodes`. They may use S3 and
    the hub.
    """
    import ray
    from ray._raylet import Config
    from ray.cluster_utils import Cluster

    search = os.environ.get("PYTHONPATH", "")
    quick = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 3,
    }
    # ray.init("local") of an earlier test leaves the mode `token`, in the environment and in what Ray has
    # read from it; the homes of the nodes have no token, and a process in this mode would refuse their calls
    environment = pytest.MonkeyPatch()
    environment.setenv("RAY_AUTH_MODE", "disabled")
    Config.initialize("")
    running = Cluster()
    running.nodes = {}

    def join(name: str, home: Path, **options: Any) -> Any:
        return running.add_node(
            num_cpus=1,
            object_store_memory=80_000_000,
            node_name=name,
            env_vars={
                "AWS_ENDPOINT_URL": object_store_server.endpoint,
                "AWS_ACCESS_KEY_ID": "tests",
                "AWS_SECRET_ACCESS_KEY": "tests",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
                "UHR_TEST_NODE": name,
                "HF_ENDPOINT": hub_server.address,
                "HF_HUB_DISABLE_XET": "1",
                "HOME": str(home),
                "PYTHONPATH": f"{home}:{search}",
            },
            **options,
        )

    running.join = join
    try:
        for name in NODES:
            options = {"_system_config": quick, "include_dashboard": False} if name == "head" else {}
            running.nodes[name] = join(name, homes / name, **options)
        yield running
    finally:
        ray.shutdown()
        running.shutdown()
        environment.undo()
        Config.initialize("")


@pytest.fixture
def three(cluster, homes) -> Any:
    """The cluster with three machines that can run every preset, whatever an earlier test has lost."""
    shutil.rmtree(homes / "third" / "numba-0.0.1.dist-info", ignore_errors=True)
    for number in range(len(NODES) - len(cluster.list_all_nodes())):
        cluster.join(f"other-{number}", homes / "head")
    return cluster


@pytest.fixture
def command(warm_curation) -> Callable[..., tuple[int, str, str]]:
    """Run a command in a process of its own, after the statement `first`: exit code, output, errors.

    In this process Ray may have taken up the mode `token`, and then no actor starts on the cluster.
    """

    def call(*arguments: object, first: str = "pass") -> tuple[int, str, str]:
        code = f"import sys; {first}; from uhr.cli import main; sys.exit(main(sys.argv[1:]))"
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = warm_curation.run(["-c", code, *arguments], env=env)
        return done.returncode, done.stdout, done.stderr

    return call


OTHER_JOB = """
import sys, time, ray
ray.init(sys.argv[1], log_to_driver=False)

@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
class Busy:
    def ready(self):
        return True

busy = [Busy.remote(), Busy.remote()]
ray.get([each.ready.remote() for each in busy])
print("busy", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def other_job(address: str) -> Iterator[None]:
    """Another job of the cluster, which has two of its CPUs."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER_JOB, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout.readline() == "busy\n"
        yield
    finally:
        process.communicate("")


@pytest.fixture
def words(images, tmp_path, outside, homes, monkeypatch) -> list[object]:
    """The command, without OUT and engine. An image takes 0.2 s."""
    module = tmp_path / "elsewhere" / outside / "__init__.py"
    module.write_text(module.read_text() + STAGE)
    monkeypatch.setenv("HOME", str(homes / "head"))
    (tmp_path / "notes").mkdir()
    pipeline = tmp_path / "slow.yaml"
    entry = f"{{stage: '{outside}:Slow', seconds: 0.2, notes: '{tmp_path / 'notes'}'}}"
    pipeline.write_text(f"preset: quickstart\nstages: {{slow: {entry}}}\nunit: 2\n")
    return ["curate", "run", pipeline, "--source", images]


@pytest.mark.ray
def test_what_one_machine_lacks_ends_the_run_before_any_work_and_a_lost_machine_changes_nothing(
    cluster, homes, words, command, uhr, tmp_path
):
    out, notes = tmp_path / "out", tmp_path / "notes"
    on_cluster = [*words, "--out", out, "--address", cluster.address, "--workers", 2]

    def refused(first: str = "pass") -> str:
        code, _, errors = command(*on_cluster, first=first)
        assert code == 1
        assert not any(notes.iterdir()), "an image was measured"
        return errors.splitlines()[-1]

    said = refused()
    assert "machine third: numba is 0.0.1, and " in said
    assert said.endswith("where the run was started: install the same version there")
    shutil.rmtree(homes / "third" / "numba-0.0.1.dist-info")
    said = refused()
    assert (
        "machine third: stage 'outside_stages:Slow' cannot run: the weights '~/brake.bin' do not exist"
        in said
    )
    (homes / "third" / "brake.bin").write_bytes(b"others")
    assert "machine third: the weights outside_stages:Slow/brake has other content" in refused()
    (homes / "third" / "brake.bin").write_bytes(b"weights")
    with other_job(cluster.address):
        said = refused("from uhr.runtime.cluster import preflight; preflight.FREE_SECONDS = 0.5")
    assert "the run needs 2 CPUs, and other jobs of the Ray cluster have left 1: fewer --workers" in said

    lost: list[str] = []

    def lose_one() -> None:
        while not lost and time.monotonic() < end:
            busy = [name for name in NODES[1:] if (notes / name).exists()]
            if busy and len(list((out / "units").glob("unit-*"))) >= 2:
                cluster.remove_node(cluster.nodes[busy[0]], allow_graceful=False)
                lost.append(busy[0])
            time.sleep(0.02)

    end = time.monotonic() + 120
    watch = threading.Thread(target=lose_one)
    watch.start()
    code, printed, errors = command(*on_cluster)
    watch.join()
    assert code == 0, errors
    assert lost, "no machine was lost"
    assert "17 files: 8 kept, 5 rejected, 4 failed" in printed
    calm = tmp_path / "calm"
    assert uhr(*words, "--out", calm, "--engine", "local", "--workers", 0)[0] == 0
    one, other = Manifest.open(out), Manifest.open(calm)
    assert one.id == other.id
    assert one.table().to_pylist() == other.table().to_pylist()


TASTED = """

class Tasted(FrameStage):
    name = "tasted"
    adds = (Column("taste", pa.string(), "what the weights say"),)

    def weights(self):
        return {"model": "org/name"}

    def open(self):
        from uhr.models.scores.weights import Weights

        self.taste = (Weights.parse("org/name").fetch() / "model.safetensors").read_text()

    def annotate(self, frame):
        return {"taste": self.taste}
"""


@pytest.mark.ray
def test_each_machine_fetches_weights_of_the_hub_once_whatever_number_of_workers_needs_them(
    three, hub, homes, images, command, outside, tmp_path, monkeypatch
):
    """The run is started on the machine `head`, whose cache has them."""
    monkeypatch.setenv("HOME", str(homes / "head"))
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    module = tmp_path / "elsewhere" / outside / "__init__.py"
    module.write_text(module.read_text() + TASTED)
    pipeline = tmp_path / "taste.yaml"
    pipeline.write_text(f"stages: [header, {{stage: '{outside}:Tasted'}}]\nrules: {{}}\nunit: 1\n")
    hub.repositories = {"org/name": {"config.json": b"{}", "model.safetensors": b"sweet"}}
    words = ("curate", "run", pipeline, "--source", images, "--address", three.address, "--workers", 2)
    caches = {each / ".cache/huggingface" for each in homes.iterdir()}
    done = command(
        *(*words, "--out", tmp_path / "out"),
        first="from huggingface_hub import snapshot_download as get; get('org/name')",
    )
    assert done[0] == 0, done[2]
    assert {row["taste"] for row in Manifest.open(tmp_path / "out").table().to_pylist()} - {None} == {"sweet"}
    lacking = [each for each in caches if each.parts[-3] != "head" and each.exists()]
    assert lacking, "a machine that an earlier test lost was replaced by one with the home of head"
    assert hub.downloads("model.safetensors") == 1 + len(lacking)

    for each in lacking:
        shutil.rmtree(each)
    hub.status = 401
    code, _, errors = command(*words, "--out", tmp_path / "other")
    assert code == 1
    said = errors.splitlines()[-1]
    assert "the hub refuses 'org/name@cccc" in said
    assert said.startswith("uhr: machine ")


@pytest.mark.ray
def test_source_and_out_in_a_store_need_no_folder_that_the_machines_share(
    three, images, s3, command, uhr, tmp_path
):
    client = boto3.client("s3")
    for name in ("1.jpg", "trip/0.png", "flat.png"):
        client.upload_file(str(images / name), s3.bucket, f"images/{name}")
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        for name in ("3.jpg", "5.jpg", "5.txt", "truncated.jpg"):
            shard.add(images / name, name)
    client.upload_file(str(tmp_path / "s.tar"), s3.bucket, "shards/s-00.tar")
    trees = {
        "images": {"kind": "s3", "path": f"s3://{s3.bucket}/images"},
        "shards": {"kind": "webdataset", "path": f"s3://{s3.bucket}/shards/s-{{00..00}}.tar"},
    }
    words = ("curate", "run", "quickstart", "--set", f"sources={json.dumps(trees)}", "--set", "unit=2")
    out = f"s3://{s3.bucket}/out"
    code, printed, errors = command(*words, "--out", out, "--address", three.address, "--workers", 1)
    assert code == 0, errors
    assert "6 files: 4 kept, 1 rejected, 1 failed" in printed
    assert len(s3.puts("/units/unit-")) == 3
    calm = tmp_path / "calm"
    assert uhr(*words, "--out", calm, "--engine", "local", "--workers", 0)[0] == 0
    assert Manifest.open(out).id == Manifest.open(calm).id


@pytest.mark.ray
def test_what_one_machine_fetches_into_a_store_is_read_by_the_others(
    three, images, s3, command, tmp_path, http_site
):
    site = http_site.Site()
    names = ("1.jpg", "3.jpg", "5.jpg", "7.jpg", "flat.png")
    site.images = {f"/{name}": (images / name).read_bytes() for name in names}
    (tmp_path / "list.txt").write_text("\n".join(f"{site.address}/{name}" for name in names))
    tree = {"kind": "urls", "path": str(tmp_path / "list.txt"), "http": {"private": True}}
    sets = ("--set", f"sources={json.dumps({'web': tree})}", "--set", "unit=1")
    out = f"s3://{s3.bucket}/fetched-out"
    words = ("curate", "run", "quickstart", *sets, "--out", out, "--address", three.address)
    code, printed, errors = command(*words, "--workers", 2)
    assert code == 0, errors
    assert "5 files: 4 kept, 1 rejected" in printed
    assert {path: n for path, n in site.requests.items() if path != "/robots.txt"} == {
        f"/{name}": 1 for name in names
    }
    left = boto3.client("s3").list_objects_v2(Bucket=s3.bucket, Prefix="fetched-out/")["Contents"]
    assert not [each["Key"] for each in left if "/fetched/" in each["Key"] or "/units/" in each["Key"]]
    manifest = Manifest.open(out)
    for row in manifest.table(where="status = 'kept'").to_pylist():
        assert manifest.source.open(row).read() == site.images[f"/{row['uri'].rpartition('/')[2]}"]
    assert set(site.requests.values()) <= {1, 2, 3}, "only robots.txt is read on each machine"
    site.stop()


LATE = """

class Model(BatchStage):
    name = "model"
    needs = ("width",)
    adds = (Column("by", pa.string(), "the machine"),)
    resources = Resources(num_gpus=0, batch_size=1, actors=(1, 3))

    class Params(Config):
        until: str

    def score(self, rows, views):
        import os

        end = time.monotonic() + 100
        while not Path(self.params.until).exists() and time.monotonic() < end:
            time.sleep(0.05)
        return {"by": [os.environ.get("UHR_TEST_NODE", "here")] * len(rows)}
"""


@pytest.mark.ray
def test_a_machine_that_joins_later_is_checked_before_it_gets_work(three, homes, images, tmp_path, outside):
    module = tmp_path / "elsewhere" / outside / "__init__.py"
    imports = "import FrameStage, SetStage"
    module.write_text(module.read_text().replace(imports, f"{imports}, BatchStage, Resources") + LATE)
    (homes / "late").mkdir()
    old = homes / "late" / "numba-0.0.1.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: numba\nVersion: 0.0.1\n")
    pipeline = tmp_path / "late.yaml"
    checked = tmp_path / "checked"
    model = f"{{stage: '{outside}:Model', until: '{checked}'}}"
    pipeline.write_text(f"stages: [header, {model}]\nrules: {{}}\nunit: 1\n")
    out = tmp_path / "out"
    # two machines for the CPUs and the first actor; a second actor takes the third one; the next one waits
    command = ("curate", "run", pipeline, "--source", images, "--out", out, "--address", three.address)
    running = subprocess.Popen(
        [sys.executable, "-m", "uhr", *map(str, command), "--workers", "1"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while running.poll() is None and not list((out / "units").glob("unit-*")):
        time.sleep(0.02)
    late = three.join("late", homes / "late")
    assert running.stderr is not None
    errors = ""
    for line in running.stderr:
        errors += line
        if "machine late" in line:
            checked.touch()  # until then no image is scored
    running.wait()
    three.remove_node(late, allow_graceful=False)
    assert running.returncode == 0, errors
    assert errors.count("machine late: numba is 0.0.1, and ") == 1
    assert "install the same version there; it gets no work" in errors
    machines = {row["by"] for row in Manifest.open(out).table().to_pylist()} - {None}
    assert machines
    assert "late" not in machines
