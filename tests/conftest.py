"""Fixtures that several packages share."""

import gc
import importlib.util
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings

# no deadline: a busy machine is no failure. `make test` tries the same examples in every run, so that
# a commit is not judged by chance; HYPOTHESIS_PROFILE=explore draws new ones
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=40)
settings.register_profile("explore", deadline=None, max_examples=200)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
# tiny tensors are slower on two threads than on one, many times so where something else uses the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
# with a handler, what is logged is not printed
logging.getLogger().addHandler(logging.NullHandler())
# bitsandbytes calls torch.compile when it is imported, which imports Inductor: a fifth of all imports
os.environ["TORCHDYNAMO_DISABLE"] = "1"


SHORT = ("base", "contracts", "manifests", "pixels", "structure")
"""Folders of short files. They come last, so that all processes end at about the same time."""

TOGETHER = (
    ("test_demo.py", "test_planted_faults.py", "test_readme_commands.py"),
    ("test_full_disk.py", "test_modes.py"),
    ("test_browse_page.py", "test_report_page.py", "test_compare_page.py"),
)
"""Files that share what takes long to make, such as a browser: each group runs in one process."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of short files last."""
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.relative_to(here).parts[0] in SHORT)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Divide tests among processes by files (`--dist loadfile`), but leave those of `TOGETHER` together."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return next((group[0] for group in TOGETHER if file.rpartition("/")[2] in group), file)

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    """Let torch compile again after the imports. Leave what they made, millions of objects, out of every
    later collection of garbage."""
    del os.environ["TORCHDYNAMO_DISABLE"]
    gc.collect()
    gc.freeze()
    # modules that are imported later make it as expensive again: a tenth of a test's time
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory) -> Path:
    """A tiny FLUX.1 checkpoint: diffusers folder, real classes, random weights. Read only."""
    from uhr.models.zoo import make_tiny

    return make_tiny("tiny-flux1", tmp_path_factory.mktemp("model") / "tiny flux1", seed=0)


@pytest.fixture(scope="session")
def tiny_f16(tiny_flux, tmp_path_factory) -> Path:
    """`tiny_flux` with an F16 VAE, as UltraFlux's checkpoints declare it."""
    folder = shutil.copytree(tiny_flux, tmp_path_factory.mktemp("f16") / "tiny-flux1-f16")
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "stride": 2}))
    return folder


@pytest.fixture(scope="session")
def tiny_flux2(tmp_path_factory) -> Path:
    """A tiny FLUX.2 [klein] checkpoint: diffusers folder, real classes, random weights. Read only."""
    from uhr.models.zoo import make_tiny

    return make_tiny("tiny-flux2", tmp_path_factory.mktemp("model2") / "tiny flux2", seed=0)


@pytest.fixture(scope="session")
def copier() -> Any:
    """`loaded.copier`: a maker of copies of a component, in less time than it takes to build one."""
    return _beside("loaded").copier


@pytest.fixture(scope="session")
def loaded() -> Any:
    """`loaded.Loaded`: components that tests have loaded before, for `copied_models`."""
    from uhr.models.loading.checks import load_whole

    return _beside("loaded").Loaded(load_whole)


@pytest.fixture
def copied_models(loaded) -> Iterator[None]:
    """Models that were loaded before are copied, in a quarter of the time. For tests of other things."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uhr.models.loading.model.load_whole", loaded)
        yield


@pytest.fixture
def logged() -> Iterator[list[logging.LogRecord]]:
    """Every record that is logged during the test, also by loggers that pass nothing on to the root."""
    found: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record)

    handler, root = Keep(), logging.getLogger()
    others = [each for each in root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    loggers = [root, *(each for each in others if not each.propagate)]
    for logger in loggers:
        logger.addHandler(handler)
    yield found
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.fixture(scope="session")
def forge() -> ModuleType:
    """`forge.py` beside this file: images as bytes, in every format, mode and orientation."""
    return _beside("forge")


@pytest.fixture(scope="session")
def http_site() -> ModuleType:
    """`http_site.py` beside this file: a server of images that misbehaves on request."""
    return _beside("http_site")


@pytest.fixture(scope="session")
def hub_server() -> Iterator[Any]:
    """`hub_site.Hub`, running."""
    running = _beside("hub_site").Hub()
    yield running
    running.stop()


@pytest.fixture
def hub(hub_server) -> Any:
    """The same, without repositories and requests."""
    hub_server.clear()
    return hub_server


@pytest.fixture
def uhr(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command as a user would type it: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        from uhr.cli import main

        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return call


@pytest.fixture(scope="session")
def damage() -> ModuleType:
    """`damage.py` beside this file: image files cut, zeroed, overwritten, or with megabytes of metadata."""
    return _beside("damage")


@pytest.fixture(scope="session")
def tiff_files() -> ModuleType:
    """`tiff_files.py` beside this file: TIFFs of any layout."""
    return _beside("tiff_files")


@pytest.fixture(scope="session")
def gpu() -> ModuleType:
    """`pretend_gpu.py` beside this file: a GPU that is not there."""
    return _beside("pretend_gpu")


@pytest.fixture(scope="session")
def documents() -> ModuleType:
    """`documents.py` beside this file: README.md and docs/*.md in blocks and tables."""
    return _beside("documents")


@pytest.fixture(scope="session")
def warm_folder(tmp_path_factory) -> Path:
    """Where the servers of `processes.py` listen, for all pytest processes of one run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def warm_curation(warm_folder) -> Iterator[Any]:
    """`processes.Warm`: starts processes that have imported what curation needs."""
    server = _beside("processes").Warm("curation", warm_folder)
    yield server
    server.close()


@pytest.fixture(scope="session")
def warm(warm_folder) -> Iterator[Any]:
    """`processes.Warm`: starts processes that have also imported torch, diffusers and peft."""
    server = _beside("processes").Warm("everything", warm_folder)
    yield server
    server.close()


@pytest.fixture
def warm_workers(warm) -> Iterator[None]:
    """Worker processes of this process, and of its actors on Ray, start from the server of `warm`."""
    with warm.workers():
        yield


@pytest.fixture
def warm_curation_workers(warm_curation) -> Iterator[None]:
    """The same, from the server of `warm_curation`."""
    with warm_curation.workers():
        yield


@pytest.fixture(scope="session")
def object_store_server() -> Iterator[Any]:
    """`object_store.ObjectStoreServer`, running."""
    server = _beside("object_store").ObjectStoreServer()
    yield server
    server.stop()


@pytest.fixture
def s3(object_store_server, monkeypatch, tmp_path) -> Any:
    """The same, with credentials for it in the environment and one empty bucket, `s3.bucket`."""
    import boto3
    import s3fs
    from botocore.retries.standard import ExponentialBackoff

    # what is tried again is tried at once
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0.01)
    settings = {
        "AWS_ENDPOINT_URL": object_store_server.endpoint,
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    object_store_server.bucket = f"bucket-{uuid.uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=object_store_server.bucket)
    object_store_server.requests.clear()
    # a file system that s3fs keeps would remember another test's environment
    s3fs.S3FileSystem.clear_instance_cache()
    yield object_store_server
    object_store_server.fault = lambda method, path: None


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[Any]:
    """`browser.Browser`, running: one for all tests of pages, which are skipped without a browser."""
    module = _beside("browser")
    program = module.find()
    if program is None:
        pytest.skip("needs a browser: apt-get install chromium")
    running = module.Browser(program, tmp_path_factory.mktemp("browser"))
    yield running
    running.close()


@pytest.fixture
def chat(monkeypatch) -> Iterator[Any]:
    """`chat_server.ChatServerHere`, running; no key of the user's is sent to it."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    running = _beside("chat_server").ChatServerHere()
    yield running
    running.stop()


def _beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
