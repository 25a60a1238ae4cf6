"""The settings that make a run fit a GPU, and how their time is counted."""

import json

import pytest

from uhr.models.estimate.devices import DEVICES
from uhr.train.recipes import resolve
from uhr.train.recipes.core.base import Recipe
from uhr.train.run.estimate.estimate import estimate
from uhr.train.run.estimate.fitting import AS_FAST, PATHS, Setting, variants


def plan(*sets, on, **named):
    return estimate(resolve("lora", None, list(sets)), "flux1-dev", [], on, **named)


def test_every_variant_is_a_valid_recipe_of_the_same_training():
    recipe = resolve("lora")
    found = list(variants(recipe))
    assert found[0][0] == ()
    for changes, changed in found:
        again = resolve("lora", None, list(changes))
        assert isinstance(again, Recipe)
        assert again.model_dump() == changed.model_dump()
        assert again.batch.size == recipe.batch.size == 4
        assert {change.partition("=")[0] for change in changes} <= set(PATHS)
    assert len({changes for changes, _ in found}) == len(found) == 3 * 2 * 3 + 3
    backbone = resolve("lora", None, ["trainable={kind: backbone}"])
    assert {change.partition("=")[0] for changes, _ in variants(backbone) for change in changes} == {
        "runtime.gradient_checkpointing", "batch.micro"
    }  # fmt: skip
    assert [changes for changes, _ in variants(recipe, PATHS)] == [()]


@pytest.mark.parametrize("gpu", ["rtx-3060", "rtx-4080", "rtx-4090", "l40s", "h100"])
def test_the_first_setting_fits_and_is_the_fastest_and_its_plan_says_the_same(gpu):
    found = [Setting(**each) for each in plan(on=gpu)["settings"]]
    fitting = [each for each in found if each.fits]
    assert fitting
    assert found[: len(fitting)] == fitting
    fastest = min(each.seconds for each in fitting)
    assert found[0].seconds <= AS_FAST * fastest
    # streaming is as fast where copies are hidden, but needs the host's memory
    plain = [each for each in fitting if not each.host and each.seconds <= AS_FAST * fastest]
    assert (found[0].host == 0) == bool(plain)
    assert all(each.total <= DEVICES[gpu].usable for each in fitting)
    assert all(each.total > DEVICES[gpu].usable for each in found[len(fitting) :])
    for each in (found[0], fitting[-1]):
        own = plan(*each.changes, on=gpu)
        assert own["gpu"]["fits"]
        assert (own["memory"]["total"], own["memory"]["host"]) == (each.total, each.host)
        assert own["time"]["run"] == pytest.approx(each.seconds)


def test_quantised_weights_are_read_and_written_by_every_pass():
    gpu = DEVICES["rtx-4090"]
    plain, four = (plan(*sets, on="rtx-4090") for sets in ((), ("runtime.quantize=nf4",)))
    # forward, once more, backward, of four single samples
    passes = 4 * 3 * (four["memory"]["weights"] + 2 * 11_901_408_320) / (0.7 * gpu.bandwidth)
    steps = [each["time"]["steps"]["main"] for each in (plain, four)]
    assert steps[1] - steps[0] == pytest.approx(passes)
    whole = plan("runtime.quantize=nf4", "batch.micro=4", on="rtx-4090")["time"]["steps"]["main"]
    assert whole - steps[0] == pytest.approx(passes / 4)


def test_streamed_weights_take_as_long_as_they_are_copied_where_that_is_longer():
    found = plan("runtime.offload=blocks", "phases.main.resolution=256", on="h100")
    copies = 4 * 2 * (found["memory"]["host"]) / (0.4 * DEVICES["h100"].link)
    state = 2 * 16 * 18_677_760 / (0.7 * DEVICES["h100"].bandwidth)
    assert found["time"]["steps"]["main"] == pytest.approx(copies + state)
    large = plan("runtime.offload=blocks", "phases.main.resolution=2048", on="rtx-3060")
    assert large["time"] == plan("phases.main.resolution=2048", on="rtx-3060")["time"]


def test_the_plan_says_in_one_line_what_would_fit(uhr):
    command = ("train", "plan", "lora", "--model", "flux1-dev", "--on")
    code, out, _ = uhr(*command, "rtx-4080")
    (line,) = [line for line in out.splitlines() if line.startswith("fits with ")]
    found = Setting(**plan(on="rtx-4080")["settings"][0])
    assert code == 0
    assert line == f"fits with {found.options}: {found.describe()}"
    assert [line for line in uhr(*command, "h100")[1].splitlines() if line.startswith("faster with ")]
    assert "fits with" not in uhr(*command, "l40s")[1]
    large = (*command, "rtx-3060", "--set", "phases.main.resolution=4096", "--set", "trainable.rank=256")
    (line,) = [line for line in uhr(*large)[1].splitlines() if line.startswith("no setting fits: ")]
    answer = json.loads(uhr(*large, "--json")[1])
    least = min(each["total"] for each in answer["settings"])
    assert not answer["settings"][0]["fits"]
    assert f"the least is {least / 2**30:.1f} GiB" in line
    assert "or train at a lower resolution" in line
