"""A folder of images and stages that write down on which of them they were called."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from uhr.curate.config import load
from uhr.curate.in_store import RunInStore
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.run import job
from uhr.curate.run.job import CurationRequest
from uhr.manifests.manifest import Manifest
from uhr.manifests.sources.folder import Folder
from uhr.runtime.inline import InlineRunner
from uhr.runtime.pool import Pool

STAGES = '''
import os
import pyarrow as pa
from uhr.base.config import Config
from uhr.curate.stage import BatchStage, Child, ExpandStage, FrameStage, Resources
from uhr.manifests.schema import Column
from uhr.models.scores.images import View

class Params(Config):
    log: str
    factor: float = 1.0
    fail: str = ""

def called(stage, name):
    with open(stage.params.log, "a") as file:
        print(type(stage).__name__, name, file=file)

class Red(FrameStage):
    name = "red"
    adds = (Column("red", pa.float64(), "mean of red"),)
    Params = Params

    def annotate(self, frame):
        called(self, frame.uri)
        red = frame.rgb[..., 0].mean()
        if self.params.fail and red < 60:
            raise ValueError("too dark")
        return {"red": red * self.params.factor}

class Odd(FrameStage):
    """Has no value for most images."""

    name = "odd"
    needs = ("red",)
    adds = (Column("odd", pa.string(), "said of bright images"),)
    Params = Params

    def annotate(self, frame):
        called(self, frame.uri)
        return {"odd": "bright" if frame.row["red"] > 200 else None}

class Said(FrameStage):
    """Depends on the caption beside the image."""

    name = "said"
    needs = ("caption",)
    adds = (Column("said", pa.int64(), "length of the caption"),)
    Params = Params

    def annotate(self, frame):
        called(self, frame.uri)
        return {"said": len(frame.row.get("caption") or "")}

class Weighs(FrameStage):
    """Has weights."""

    name = "weighs"
    adds = (Column("weighs", pa.int64(), "bytes of the weights"),)

    class Params(Params):
        path: str

    def weights(self):
        return {"model": self.params.path}

    def annotate(self, frame):
        called(self, frame.uri)
        return {"weighs": os.path.getsize(self.params.path)}

class Blue(BatchStage):
    name = "blue"
    adds = (Column("blue", pa.float64(), "mean of blue"),)
    views = {"small": View(shortest=8)}
    resources = Resources(num_gpus=0, batch_size=4)
    Params = Params

    def score(self, rows, views):
        for row in rows:
            called(self, row["uri"] if row.get("box") is None else f"{row['uri']}{row['box']}")
        return {"blue": [view[..., 2].double().mean().item() for view in views["small"]]}

class Again(Red):
    name = "again"
    needs = ("red_rank",)
    adds = (Column("again", pa.float64(), "mean of red"),)

    def annotate(self, frame):
        return {"again": frame.rgb[..., 0].mean()}

class Halves(ExpandStage):
    name = "halves"
    adds = (Column("half", pa.int64(), "which"),)
    Params = Params

    def expand(self, frame):
        called(self, frame.uri)
        if self.params.fail and frame.rgb[..., 0].mean() > 180:
            raise ValueError("too bright")
        width, height = frame.header.width // 2, frame.header.height
        return [Child((at * width, 0, width, height), {"half": at}) for at in (1, 0)]
'''


class Interrupted(Exception):
    pass


@dataclasses.dataclass(frozen=True)
class Stops:
    """A pool whose run is interrupted after some tasks."""

    tasks: int

    def runner(self, limits: object) -> Any:
        done = itertools.count(1)

        class Runner(InlineRunner):
            def run(runner, *arguments: Any) -> Iterator[tuple[int, int]]:
                for task in super().run(*arguments):
                    yield task
                    if next(done) == self.tasks:
                        raise Interrupted

        return Runner()


class Lab:
    """A folder of images and runs over it, each in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source, self.log = folder, folder / "images", folder / "calls.txt"
        self.source.mkdir(parents=True)
        self._numbers = itertools.count()

    def image(self, name: str, value: int, caption: str | None = None) -> None:
        pixels = np.full((12, 16, 3), value, np.uint8)
        pixels[:, :, 2] = np.arange(16) * 10
        Image.fromarray(pixels).save(self.source / f"{name}.png")
        if caption is not None:
            (self.source / f"{name}.txt").write_text(caption)

    def touch(self, name: str) -> None:
        path = self.source / f"{name}.png"
        os.utime(path, ns=(1, path.stat().st_mtime_ns + 10**9))

    def request(self, tree: dict[str, Any], **options: Any) -> CurationRequest:
        number = next(self._numbers)
        file = self.folder / f"pipeline-{number}.yaml"
        file.write_text(yaml.safe_dump({"name": "p", "preview": 8, "unit": 3, **tree}))
        source = Folder.at(self.source)
        plan = CurationPlan.of(load(str(file)), given=source.columns)
        out = options.pop("out", self.folder / f"out-{number}")
        return CurationRequest(plan, source, out, **{"pool": Pool("local", 0), **options})

    def run(self, tree: dict[str, Any], **options: Any) -> Manifest:
        self.log.write_text("")
        return job.run(self.request(tree, **options), str).manifest

    def in_store(self, address: str, tree: dict[str, Any], **options: Any) -> Manifest:
        self.log.write_text("")
        return RunInStore(address).run(self.request(tree, **options), str).manifest

    def begin(self, tree: dict[str, Any], tasks: int, address: str | None = None, **options: Any) -> Path:
        """Run until some tasks of the first pass are done; the folder."""
        self.log.write_text("")
        request = self.request(tree, pool=Stops(tasks), **options)
        with contextlib.suppress(Interrupted):
            if address is None:
                job.run(request, str)
            else:
                RunInStore(address).run(request, str)
        return request.out

    @staticmethod
    def content(manifest: Manifest) -> tuple[Any, ...]:
        """Rows, previews and funnel, without what names the folder."""
        rows = manifest.table().to_pylist()
        previews = manifest.previews({row["sample_id"] for row in rows})
        return rows, previews, [rule.model_dump() for rule in manifest.info.rules], manifest.info.counts

    def calls(self) -> dict[str, set[str]]:
        """The images of each stage that was called, each once."""
        lines = [line.split(" ", 1) for line in self.log.read_text().splitlines()]
        counted = Counter(map(tuple, lines))
        assert set(counted.values()) <= {1}, "a stage was called twice for one image"
        found: dict[str, set[str]] = {}
        for stage, name in lines:
            found.setdefault(stage, set()).add(name.replace(".png", ""))
        return found

    def pipeline(self, *stages: str, rules: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
        log = str(self.log)
        own = [{"stage": f"reused_stages:{stage}", "name": stage.lower(), "log": log} for stage in stages]
        for entry in own:
            entry.update(params.get(entry["name"], {}))
        return {"stages": ["header", "geometry", "decode", *own], "rules": rules or {}}


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("stages")
    (folder / "reused_stages.py").write_text(STAGES)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        # it takes longer than the run
        patch.setattr("uhr.manifests.report.write_report", lambda manifest, out: out.touch() or out)
        yield


@pytest.fixture(scope="module")
def lab_at(stages) -> Callable[[Path], Lab]:
    """Make an empty `Lab` in a folder."""
    return Lab


@pytest.fixture
def lab(stages, tmp_path) -> Lab:
    """A `Lab` with six images."""
    lab = Lab(tmp_path / "lab")
    for number in range(6):
        lab.image(f"i{number}", 40 * number, f"number {number}" if number % 2 else None)
    return lab
