"""What is checked around the two sides: clones, weights, noise, comparison, table, README."""

import ast
import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks.certify import __main__ as command
from benchmarks.certify import report, sides
from benchmarks.certify.compare import FACTOR, Deviation, compare
from benchmarks.certify.official import harness
from benchmarks.certify.rows import CLOSE, ROWS, check_commit, row_named
from uhr.base.errors import UserError
from uhr.models.ops import latents

ROOT = Path(__file__).parents[3]


@pytest.fixture
def clone(tmp_path, commit):
    """A clone with one file, and its commit."""
    folder = tmp_path / "URAE"
    folder.mkdir()
    (folder / "pipeline.py").write_text("x = 1\n")
    return folder, commit(folder)


def test_a_clone_at_the_commit_is_accepted_by_any_length_of_its_hash(clone):
    folder, commit = clone
    (folder / "ckpt.bin").write_text("weights beside the code are no change of it")
    assert check_commit(folder, commit) == check_commit(folder, commit[:7]) == commit


def test_a_clone_at_another_commit_with_changes_or_that_is_none_is_one_line_with_the_fix(clone, tmp_path):
    folder, commit = clone
    with pytest.raises(
        UserError, match=f"at commit {commit[:7]}, and the row is of 030abeb: run: git -C .* checkout 030abeb"
    ):
        check_commit(folder, "030abeb")
    (folder / "pipeline.py").write_text("x = 2\n")
    with pytest.raises(UserError, match=r"has changed files, such as pipeline\.py: run: git -C .* stash"):
        check_commit(folder, commit)
    inner = folder / "inner"
    inner.mkdir()
    with pytest.raises(UserError, match="is not a clone of its own"):
        check_commit(inner, commit)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="is not a clone that git can read"):
        check_commit(empty, commit)


def test_what_a_row_lacks_is_listed_with_how_to_get_it(tmp_path, capsys):
    assert command.main(["--list", "--json", *_places(tmp_path)]) == 0
    lacks = json.loads(capsys.readouterr().out)
    assert list(lacks) == [row.name for row in ROWS]
    weights, clone = tmp_path / "weights", tmp_path / "official" / "URAE"
    assert lacks["urae-2k"] == {
        f"{weights}/black-forest-labs--FLUX.1-dev": f"run: uhr fetch lora --model flux1-dev --to {weights}",
        f"{weights}/Huage001--URAE/urae_2k_adapter.safetensors": (
            f"run: hf download Huage001/URAE urae_2k_adapter.safetensors --local-dir {weights}/Huage001--URAE"
        ),
        str(clone): (
            f"run: git clone https://github.com/Huage001/URAE {clone} && git -C {clone} checkout 030abeb"
        ),
    }
    with pytest.raises(UserError, match="no row can run here: get what is missing"):
        command.main(_places(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[: len(ROWS)]] == [row.name for row in ROWS]
    assert lines.count(str(clone)) == 1


def test_fetch_puts_the_model_where_it_is_looked_for(uhr, tmp_path):
    code, out, _ = uhr("fetch", "lora", "--model", "flux1-dev", "--to", tmp_path, "--dry-run", "--json")
    assert code == 0
    assert [each["into"] for each in json.loads(out)["fetch"]] == [
        str(row_named("hiflow").model.path(tmp_path))
    ]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["hiflo"], "unknown row 'hiflo': did you mean hiflow"),
        (["--commit", "abc"], "--commit is of one row: name the row"),
        (["--steps", "0"], "--steps 0 is invalid: give at least 1"),
        (["--size", "12"], "size '12' is invalid"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, error, tmp_path):
    with pytest.raises(UserError, match=re.escape(error)):
        command.main([*arguments, *_places(tmp_path)])


def test_the_command_prints_an_error_as_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.certify", "hiflo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "certify: unknown row 'hiflo': did you mean hiflow?\n"


def _places(folder):
    return ["--weights", f"{folder}/weights", "--official", f"{folder}/official"]


def run_side(tmp_path, code):
    """Run a script as the official side."""
    script = tmp_path / "side.py"
    script.write_text(code)
    job = {"out": str(tmp_path)}
    return sides._run(row_named("urae-2k"), "official", [sys.executable, str(script)], job)


def test_a_side_that_crashes_is_one_line_with_its_last_words_and_its_log(tmp_path):
    code = "import sys\nprint('loading', flush=True)\nsys.exit('RuntimeError: CUDA out of memory')"
    with pytest.raises(UserError) as error:
        run_side(tmp_path, code)
    assert str(error.value) == (
        "urae-2k: the official code failed with exit code 1 (RuntimeError: CUDA out of memory): "
        f"its output is in {tmp_path}/log.txt"
    )
    with pytest.raises(UserError, match=r"failed with exit code 0 \(it printed nothing\)"):
        run_side(tmp_path, "")


def test_an_interpreter_that_does_not_exist_is_one_line(tmp_path):
    with pytest.raises(
        UserError, match=r"no/python cannot be run \(No such file or directory\): .* --python"
    ):
        sides.start(["no/python"], {}, tmp_path / "log.txt")


def test_latents_that_are_not_finite_end_the_official_side(tmp_path):
    recorder = harness.Recorder(tmp_path)
    recorder.step(torch.zeros(1, 4, 64))
    with pytest.raises(RuntimeError, match="the latents after step 2 are not finite"):
        recorder.step(torch.full((1, 4, 64), float("nan")))


@pytest.fixture
def noise(tmp_path):
    from safetensors.torch import save_file

    first, second = (torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(i)) for i in range(2))
    save_file({"0000": first, "0001": second}, tmp_path / "noise.safetensors")
    return harness.Noise(tmp_path / "noise.safetensors"), first, second


def test_noise_is_handed_over_in_order_as_latents_or_tokens_whoever_draws_it(noise):
    from diffusers.pipelines.flux import pipeline_flux

    handed, first, second = noise
    before = torch.randn_like, pipeline_flux.randn_tensor
    with harness.handed_over(handed):
        drawn = pipeline_flux.randn_tensor((1, 16, 4, 6), device="cpu", dtype=torch.float64)
        assert torch.equal(drawn, first.double())
        assert torch.equal(torch.randn_like(torch.empty(1, 6, 64)), latents.pack(second))
        with pytest.raises(RuntimeError, match="draws noise more often than ours, 2 times"):
            torch.randn_like(torch.empty(1, 6, 64))
    assert (torch.randn_like, pipeline_flux.randn_tensor) == before


def test_noise_of_another_size_is_an_error(noise):
    with pytest.raises(
        RuntimeError, match=r"noise 1 is \[1, 7, 64\] in the official code and \[1, 16, 4, 6\] in ours"
    ):
        noise[0].take((1, 7, 64))


def test_the_image_is_found_in_whatever_a_pipeline_returns():
    from types import SimpleNamespace

    from PIL import Image

    image = Image.new("RGB", (8, 8))
    for found in (image, [image], ([image], [None]), SimpleNamespace(images=[[image], image])):
        assert harness.first_image(found) is image
    for found in (None, "an image", [], torch.zeros(3, 8, 8), SimpleNamespace(images=[torch.zeros(8)])):
        assert harness.first_image(found) is None


def test_the_official_side_needs_nothing_of_this_project_and_runs_on_python_39():
    allowed = {*sys.stdlib_module_names, "torch", "numpy", "diffusers", "safetensors"}
    for file in sorted((ROOT / "benchmarks/certify/official").glob("*.py")):
        tree = ast.parse(file.read_text(), feature_version=(3, 9))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            for name in names:
                top = name.partition(".")[0]
                own = name.startswith("benchmarks.certify.official")
                assert own or top in allowed, (file, name)


def test_every_row_has_a_driver_with_the_two_functions_and_options_that_its_sampler_takes():
    import importlib

    from uhr.base.config import build
    from uhr.models import zoo
    from uhr.models.samplers import find_sampler
    from uhr.models.samplers.core.sampler import plan_of_spec

    for row in ROWS:
        driver = importlib.import_module(f"benchmarks.certify.official.{row.driver}")
        assert callable(driver.load)
        assert callable(driver.generate)
        sampler = find_sampler(row.sampler)
        options = build(sampler.Options, dict(row.options), row.name)
        width, height = row.size
        plan = plan_of_spec(sampler, zoo.get(row.spec), options, (height, width), row.steps)
        assert plan.last.size == (height, width)


def folders(tmp_path, change=0.0, ring=0.0, size=(64, 32), steps=(2, 2)):
    """Folders of both sides: latents of 2 x 4 tokens, the official ones with a ring; images; and results."""
    from PIL import Image
    from safetensors.torch import save_file

    found = {}
    for index, side in enumerate(("ours", "official")):
        folder = tmp_path / side
        (folder / "rounded").mkdir(parents=True)
        for number in range(steps[index]):
            z = torch.randn(1, 16, 4, 8, generator=torch.Generator().manual_seed(number))
            if side == "official":
                z = torch.nn.functional.pad(z * (1 + change), (1, 1, 1, 1), value=ring)
            save_file({"latents": latents.pack(z)}, folder / f"step-{number:04d}.safetensors")
        Image.new("RGB", (64, 32) if side == "ours" else size, (9 + index, 0, 0)).save(folder / "image.png")
        found[side] = {"steps": steps[index], "calls": steps[index]}
    last = latents.pack(torch.randn(1, 16, 4, 8, generator=torch.Generator().manual_seed(steps[0] - 1)))
    save_file(
        {"latents": last * 1.01}, tmp_path / "ours" / "rounded" / f"step-{steps[0] - 1:04d}.safetensors"
    )
    return tmp_path / "ours", tmp_path / "official", found


def test_the_difference_is_relative_to_the_official_latents_without_their_ring(tmp_path):
    found = compare(*folders(tmp_path, change=0.25, ring=7.0))
    assert found.steps == pytest.approx((0.2, 0.2))
    assert found.rounding == pytest.approx(0.01 / 1.01)
    largest = torch.randn(1, 16, 4, 8, generator=torch.Generator().manual_seed(1)).abs().max().item()
    assert found.largest == pytest.approx(0.25 * largest)
    assert found.pixel == 1
    # one channel of three differs by one level
    assert found.psnr == pytest.approx(10 * torch.log10(torch.tensor(255.0**2 * 3)).item())


def test_images_of_two_sizes_are_an_error_and_another_number_of_steps_a_reason(tmp_path):
    with pytest.raises(UserError, match="our image and the official one have sizes 64x32 and 32x32"):
        compare(*folders(tmp_path / "a", size=(32, 32)))
    found = compare(*folders(tmp_path / "b", steps=(3, 2)))
    assert found.reasons == ("official 2 steps, ours 3", "official 2 calls, ours 3")
    assert found.verdict(1.0) == "deviates"
    with pytest.raises(UserError, match="the official code gave no latents after a step"):
        compare(*folders(tmp_path / "c", steps=(2, 0)))


@pytest.mark.parametrize(
    ("last", "rounding", "verdict"),
    [
        (CLOSE, 0.0, "certified"),
        (1.1 * CLOSE, 0.0, "deviates"),
        (0.1, 0.11 / FACTOR, "certified"),
        (0.1, 0.09 / FACTOR, "deviates"),
        (0.0, 0.31, "undecided"),
        (0.29, 0.29 / FACTOR, "certified"),
        (0.4, 0.25, "undecided"),
        (float("nan"), 0.0, "deviates"),
    ],
)
def test_a_row_is_certified_up_to_its_tolerance_or_twice_rounding(last, rounding, verdict):
    assert Deviation((0.0, last), 0.0, rounding, None, 0).verdict(CLOSE) == verdict


def result(row, **changes):
    """A result of the published call of a row, as a GPU would give it."""
    side = {"seconds": 100.0, "peak": 2**35, "steps": 2, "calls": 2, "device": "GPU X", "versions": {}}
    call = {"prompt": "x", "seed": 0, "width": row.size[0], "height": row.size[1], "steps": row.steps}
    call |= {"guidance": row.guidance, "dtype": "bfloat16", "offload": False, "options": dict(row.options)}
    found = {
        "row": row.name, "date": "2027-01-01", "verdict": "certified", "limit": 0.1, "tolerance": 1e-3,
        "repository": row.repository, "commit": f"{row.commit}" + "0" * (40 - len(row.commit)),
        "spec": row.spec, "weights": {}, "adapters": [], "call": call,
        **asdict(Deviation((0.01, 0.02), 0.3, 0.04, 30.0, 9)), "ours": side, "official": side,
    }  # fmt: skip
    return json.loads(json.dumps({**found, **changes}))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_only_a_certified_run_of_the_rows_own_code_model_and_call_counts(row):
    assert report.status(row, []) == "not certified: never run"
    good = result(row)
    assert report.status(row, [good]) == "certified (2027-01-01, GPU X, bfloat16): latents within 2.0e-02"
    bad = result(row, verdict="deviates")
    assert report.status(row, [good, bad]) == "not certified: deviates (2027-01-01, GPU X, bfloat16)"
    others = [
        {"commit": "f" * 40},
        {"spec": "tiny-flux1"},
        {"call": {**good["call"], "steps": 1}},
        {"call": {**good["call"], "width": 512}},
        {"call": {**good["call"], "options": {"shift_factor": 1}}},
    ]
    for other in others:
        assert report.status(row, [result(row, **other)]) == "not certified: never run"


def test_results_are_kept_in_order_and_the_table_has_a_line_for_each(tmp_path):
    row = row_named("hiflow")
    results = [result(row), result(row, verdict="deviates", reasons=["official 1 steps, ours 2"], psnr=None)]
    report.write(tmp_path, results)
    assert report.read(tmp_path) == results
    lines = (tmp_path / report.TABLE).read_text().splitlines()
    shown = [line for line in lines if line.startswith("| hiflow |")]
    assert (
        "| certified | 4096x4096 | 30 | bfloat16 | 1.0e-02 | 2.0e-02 | 4.0e-02 | 1.0e-01 | 30.0 | 9 |"
        in shown[0]
    )
    assert "| 100.0 s, 32.0 GiB | 100.0 s, 32.0 GiB | GPU X | da351a8 |" in shown[0]
    assert "| deviates; official 1 steps, ours 2 |" in shown[1]
    (tmp_path / report.JSON).write_text("{")
    with pytest.raises(UserError, match=r"certify\.json is not a file of results"):
        report.read(tmp_path)


def test_readme_and_the_table_of_results_are_what_the_results_say(documents):
    results = report.read(report.FOLDER)
    assert report.readme_table(results) in documents.text("README.md")
    assert (report.FOLDER / report.TABLE).read_text() == report.markdown(results)


def test_the_first_screen_of_readme_has_no_times_of_a_gpu_until_every_row_is_certified(documents):
    results = report.read(report.FOLDER)
    if all(report.status(row, results).startswith("certified") for row in ROWS):
        return
    screen = documents.text("README.md").split("\n## ")[0]
    assert len(screen.splitlines()) > 20
    assert re.findall(r"\d\s?(?:s|seconds|minutes|times faster)\b|\b[AH]\d00\b|RTX", screen) == []


def test_the_rows_are_of_the_five_published_codes():
    assert {row.repository for row in ROWS} == {
        "Huage001/URAE", "W2GenAI-Lab/UltraFlux", "PeterYYZhang/Scale-DiT", "Bujiazi/HiFlow", "PRIS-CV/I-Max",
    }  # fmt: skip
    assert all(re.fullmatch(r"[0-9a-f]{7,40}", row.commit) for row in ROWS)
