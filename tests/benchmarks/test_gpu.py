"""The benchmark that needs a large GPU, proven at tiny size on the CPU."""

import contextlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import aims, attention, samplers, shapes, step, vae
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.clock import Budget, Clock
from benchmarks.gpu.report import Row, Table, facts
from uhr.base.errors import UserError
from uhr.models.samplers import names_for

ABSENT = [
    *(
        "accelerate",
        "bitsandbytes",
        "boto3",
        "cv2",
        "datasets",
        "duckdb",
        "jinja2",
        "numba",
        "pandas",
        "peft",
    ),
    *("polars", "psutil", "pyarrow", "pyiqa", "pywt", "ray", "scipy", "sentencepiece", "skimage"),
    *("torchvision", "ultralytics"),
]
"""What this project or its models use elsewhere, and the benchmark does without."""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The whole benchmark in a process that finds nothing but torch, diffusers and what they need."""
    folder = tmp_path_factory.mktemp("gpu")
    code = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({ABSENT!r}))\n"
        f"sys.argv[1:] = ['--tiny', '--seconds', '0.2', '--out', {str(folder / 'table.md')!r}, "
        f"'--json', {str(folder / 'rows.json')!r}]\n"
        "runpy.run_module('benchmarks.gpu', run_name='__main__')\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "rows.json").read_text()), (folder / "table.md").read_text(), done.stdout


def test_every_sampler_of_the_registry_has_a_row_at_4k(report):
    rows = [row for row in report[0]["rows"] if row["part"] == "sampler"]
    assert {row["what"] for row in rows if row["size"] == "4K"} == set(names_for("flux1"))
    assert ("ultragen", "8K") in {(row["what"], row["size"]) for row in rows}


def test_a_row_has_finite_numbers_or_says_why_not(report):
    for row in report[0]["rows"]:
        numbers = [row[key] for key in ("seconds", "times", "tflops", "error") if row[key] is not None]
        assert all(math.isfinite(number) and number >= 0 for number in numbers), row
        assert (row["seconds"] is not None and row["seconds"] > 0) or row["how"].startswith("left out: "), row
        assert not row["failed"], row


def test_attention_and_steps_have_a_row_at_every_size(report):
    found = {(row["part"], row["what"], row["size"]) for row in report[0]["rows"]}
    for size in ("1K", "2K", "4K", "8K"):
        assert {
            ("attention", "forward", size),
            ("attention", "backward", size),
            ("step", "one call", size),
        } <= found


def test_the_table_is_the_same_on_paper_and_on_screen(report):
    tree, paper, screen = report
    for row in tree["rows"]:
        assert any(
            f"| {row['what']} | {row['size']} | {row['variant']} |" in line for line in paper.splitlines()
        )
        assert any(row["what"] in line and row["variant"] in line for line in screen.splitlines())


def test_the_two_back_ends_gave_the_same(report):
    """Of attention and of the VAE's, at 1K at least: on a busy machine 1K is slow, and 2K is left out."""
    found = [row for row in report[0]["rows"] if row["error"] is not None]
    assert {row["part"] for row in found if row["size"] == "1K"} == {"attention", "vae"}
    assert max(row["error"] for row in found) < 1e-5


@pytest.mark.parametrize(("limit", "code"), [("0", 0), ("1e9", 1)])
def test_an_aim_that_is_missed_is_exit_code_1(limit, code, capsys):
    arguments = ["--tiny", "--only", "attention", "--sizes", "4K", "--aim", f"attention-4k={limit}"]
    assert main(arguments) == code
    assert ("FAILS" in capsys.readouterr().out) == bool(code)


def test_what_the_budget_leaves_out_is_in_the_table(tmp_path, capsys):
    assert main(["--tiny", "--budget", "0", "--only", "step,samplers", "--json", str(tmp_path / "rows")]) == 0
    rows = json.loads((tmp_path / "rows").read_text())["rows"]
    assert {row["what"] for row in rows} >= set(names_for("flux1"))
    assert all(row["how"].startswith("left out: ") for row in rows)


def test_without_a_gpu_it_names_the_way_to_run_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--tiny"):
        main([])


def test_a_gpu_is_timed_by_its_own_events_in_seconds(monkeypatch):
    class Event:
        now = 0.0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = Event.now

        def elapsed_time(self, later):
            return later.at - self.at  # milliseconds, as torch has it

    def work():
        Event.now += 250

    monkeypatch.setattr(torch.cuda, "Event", Event)
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 << 30)
    clock = Clock(torch.device("cuda"))
    clock.clear()
    assert clock.best({"work": work}, rounds=2) == {"work": 0.25}
    assert clock.peak() == 3


def test_the_header_names_the_card_its_driver_and_the_versions(monkeypatch):
    card = SimpleNamespace(name="NVIDIA H200", total_memory=141 << 30, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    found = facts(shapes.flux1_dev(), "python -m benchmarks.gpu")
    assert found["device"] == "NVIDIA H200, 141 GiB, 132 multiprocessors"
    assert "driver" in found["driver"]
    assert f"torch {torch.__version__}" in found["versions"]
    assert found["model"] == "flux1-dev's shape in bfloat16"


def test_several_commands_make_one_table(tmp_path, capsys):
    files = ["--json", str(tmp_path / "rows"), "--out", str(tmp_path / "table.md")]
    assert main(["--tiny", "--only", "vae", "--sizes", "1K", *files]) == 0
    assert main(["--tiny", "--only", "vae", "--sizes", "1K,2K", "--append", *files]) == 0
    rows = json.loads((tmp_path / "rows").read_text())["rows"]
    assert [row["size"] for row in rows] == ["1K"] * 4 + ["2K"] * 4
    (tmp_path / "rows").write_text((tmp_path / "rows").read_text().replace("torch 2.", "torch 1."))
    with pytest.raises(UserError, match="versions"):
        main(["--tiny", "--only", "vae", "--append", *files])


def bench(out=None):
    shape = shapes.tiny()
    table = Table({}, out)
    return Bench(
        shape, shapes.Models(shape), ["4K", "8K"], table, Clock(shape.device), Budget(60), 60, 1, [], False
    )


def test_out_of_memory_is_a_row_and_a_missed_aim(capsys):
    run = bench()

    def work():
        raise torch.OutOfMemoryError("no memory")

    assert run.attempt("sampler", "ultragen", "8K", "64 calls", work) is None
    assert run.table.rows[0].how == aims.OUT_OF_MEMORY
    assert not aims.everything_holds(run.table, aims.AIMS)


def test_a_failure_is_a_row_and_the_run_goes_on(capsys):
    run = bench()

    def work():
        raise RuntimeError("no kernel for this")

    assert run.attempt("attention", "forward", "4K", "windows, flex", work) is None
    assert run.table.rows[0].how == "failed: no kernel for this"
    assert not aims.everything_holds(run.table, [])


def test_a_run_that_is_killed_keeps_its_rows(tmp_path, capsys):
    run = bench(tmp_path / "table.md")
    for size in ("4K", "8K"):
        run.table.add(Row("step", "one call", size, "dense", 1.0, "best of 1"))
        assert f"| {size} | dense | 1 |" in (tmp_path / "table.md").read_text()


def test_an_extrapolation_takes_each_stage_at_its_own_pace():
    # a base of two calls and a stage of three, the first of each cold; 2 s outside all calls
    few = samplers.MeasuredCall(2 + 9 + 1 + 20 + 4 + 6, [9, 1, 20, 4, 6], 1e12, None, [2, 3])
    row = samplers._extrapolated("hiflow", "4K", "38 calls", few, [28, 10])
    assert row.seconds == pytest.approx(2 + 28 * 1 + 10 * 5)
    assert row.how.startswith("extrapolated from 5 calls")


@pytest.mark.parametrize(("whole", "line"), [(False, "not measured"), (True, "holds")])
def test_an_extrapolation_holds_no_aim_of_seconds(whole, line):
    few = samplers.MeasuredCall(8.0, [1, 1, 1, 1, 1], 1e12, 90.0, [2, 3])
    row = samplers._extrapolated("ultragen", "4K", "46 calls", few, [5, 18])
    if whole:
        row = samplers._measured("ultragen", "4K", "46 calls", replace(few, wall=30.0))
    assert row.seconds < 45
    table = Table({}, None, rows=[row, replace(row, size="8K")])
    lines = {aim.name: aim.verdict(table).split("  ")[0] for aim in aims.AIMS}
    assert lines["ultragen-4k"] == line
    # an image of fewer steps takes as much memory
    assert lines["ultragen-8k"] == "holds"


def test_operations_are_those_that_torch_counts():
    from diffusers import FluxTransformer2DModel
    from torch.utils.flop_counter import FlopCounterMode

    from uhr.models.ops import latents

    # a double block to two single ones, as the 19 and 38 of the whole model
    few = {"num_layers": 1, "num_single_layers": 2}
    spec = shapes.flux1_dev().spec
    shape = replace(
        shapes.flux1_dev(), spec=replace(spec, transformer_config={**spec.transformer_config, **few})
    )
    with torch.device("meta"):
        model = FluxTransformer2DModel(**shape.spec.transformer_config)
        given = {
            "hidden_states": torch.empty(1, 4096, 64),
            "encoder_hidden_states": torch.empty(1, 512, 4096),
            "pooled_projections": torch.empty(1, 768),
            "timestep": torch.empty(1),
            "guidance": torch.empty(1),
        }
    ids = {"img_ids": latents.image_ids(64, 64, "meta"), "txt_ids": latents.text_ids(512, "meta")}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**given, **ids)
    assert shape.call_flops(4608, 4608**2) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_what_is_measured_is_on_the_gpu(gpu, monkeypatch, capsys):
    """One layer, one call and the VAE of the benchmark, traced on a GPU that is not there."""
    generator, models = torch.Generator(), shapes.Models(shapes.tiny())
    parts = models.transformer, models.vae
    models.shape = replace(models.shape, device=gpu.CUDA, dtype=torch.bfloat16)
    monkeypatch.setattr(torch, "Generator", lambda device: generator)
    # which kernels there are is a matter of values
    monkeypatch.setattr(attention, "sdpa_kernel", contextlib.nullcontext)
    table, clock, shape = Table({}), Clock(torch.device("cpu")), models.shape
    run = Bench(shape, models, ["1K"], table, clock, Budget(60), 60, 1, [], False)
    with gpu.pretended(monkeypatch):
        for part in parts:
            gpu.to_cuda(part)
        attention.measure(run, "1K", "forward", attention.Inputs.of(shape, "1K"), {})
        step.run(run)
        vae.run(run)
    assert not [row for row in table.rows if row.failed]
    assert {row.variant for row in table.rows} >= {
        *attention.WINDOWS.values(),
        step.CACHED,
        step.EXACT,
        *vae.VARIANTS,
    }
