"""`uhr sample SAMPLER --plan`: the cost of a call, planned without weights for any model and any GPU."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from uhr.base.errors import UserError
from uhr.base.formatting import duration
from uhr.cli import main
from uhr.models import zoo
from uhr.models.estimate import devices
from uhr.models.estimate.cost import WeightPlacement
from uhr.models.estimate.plan import plan
from uhr.models.estimate.plan_text import count, describe, show
from uhr.models.generate.request import Item, Request
from uhr.models.samplers import SAMPLERS
from uhr.models.specs.registry import SPECS

GIB = 1 << 30


def plan_of(sampler="ultragen", model="flux1-dev", on="h200", item=None, **more):
    return plan(Request(sampler=sampler, model=model, **more), item or Item(prompt="a lake"), on)


def answered(capsys, *arguments):
    assert main(["sample", *arguments, "--plan", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the hub is used")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)


@pytest.mark.parametrize(
    ("model", "sampler"),
    [
        *(("flux2-klein-base-4b", sampler) for sampler in SAMPLERS),
        # what tracing windows adds is the sampler's, and the same on every backbone of a family
        *((spec, "imax") for spec in SPECS if spec != "flux2-klein-base-4b"),
    ],
)
def test_every_sampler_and_every_backbone_is_planned_by_its_bare_name(sampler, model, offline):
    found = plan_of(sampler, model)
    assert found.model_calls == sum(each.stage.total_calls for each in found.stages) > 0
    assert found.requested.seconds["VAE"] > 0
    whole = sum(each.whole for each in found.cost.weights(None).values())
    assert found.requested.peak.total > whole


def test_a_hub_id_is_planned_without_the_hub_and_is_its_spec(capsys, offline):
    arguments = ("--size", "1024x1024", "--on", "h100")
    by_id = answered(capsys, "euler", "--model", "black-forest-labs/FLUX.1-dev", *arguments)
    assert by_id == answered(capsys, "euler", "--model", "flux1-dev", *arguments)


def test_the_published_numbers_of_calls_at_4k(offline):
    calls = {name: plan_of(name, size=(4096, 4096)).model_calls for name in SAMPLERS if name != "euler"}
    assert calls == {
        "sdedit": 28 + 14,
        "multidiffusion": 50 * 49,
        "demofusion": 5650,
        "imax": 60,
        "hiflow": 30 + 10 + 3 + 3,
        "ultragen": 28 + 18,
        "patch-cascade": 28 + 36 * 4,
        "ultraflux": 50,
    }


def test_a_folder_is_planned_by_its_own_configurations(tiny_flux, capsys):
    arguments = ("--size", "128x128", "--on", "h200")
    spec_named = answered(capsys, "euler", "--model", "tiny-flux1", *arguments)
    own = answered(capsys, "euler", "--model", str(tiny_flux), *arguments)
    assert own == spec_named
    config = json.loads((tiny_flux / "vae" / "config.json").read_text())
    other = {**config, "block_out_channels": [16, 16, 16, 16]}
    (tiny_flux.parent / "other").mkdir()
    for part in tiny_flux.iterdir():
        (tiny_flux.parent / "other" / part.name).symlink_to(part)
    (tiny_flux.parent / "other" / "vae").unlink()
    (tiny_flux.parent / "other" / "vae").mkdir()
    (tiny_flux.parent / "other" / "vae" / "config.json").write_text(json.dumps(other))
    more = answered(capsys, "euler", "--model", str(tiny_flux.parent / "other"), *arguments)
    assert more["operations"]["convolution"] > own["operations"]["convolution"]
    assert more["operations"]["linear"] == own["operations"]["linear"]


def test_nothing_is_generated_loaded_or_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "uhr.models.loading.model.load_component", lambda *_, **__: pytest.fail("weights are read")
    )
    assert main(["sample", "imax", "--model", "flux1-dev", "--plan", "--out", "a.png"]) == 0
    text = capsys.readouterr().out
    assert "60 calls of the backbone" in text
    assert "estimated, not measured" in text
    assert not list(tmp_path.iterdir())


def test_a_plan_of_windows_says_which_back_end_its_memory_is_of(capsys):
    for sampler, mentioned in (("ultragen", True), ("imax", False)):
        assert main(["sample", sampler, "--model", "flux1-dev", "--plan", "--on", "h200"]) == 0
        assert ("the gathered back end" in capsys.readouterr().out.splitlines()[-1]) == mentioned


def test_a_gpu_here_without_a_data_sheet_is_reported_and_not_taken_for_another(monkeypatch, capsys):
    card = SimpleNamespace(name="Tesla T4", total_memory=15 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    arguments = ["sample", "imax", "--model", "flux1-dev", "--plan"]
    assert main(arguments) == 1
    assert "no data sheet of the GPU here, Tesla T4" in capsys.readouterr().err
    assert main([*arguments, "--on", "rtx-4080"]) == 0


def test_guidance_of_two_passes_doubles_calls_and_operations():
    once = plan_of("imax", size=(2048, 2048))
    item = Item(prompt="a lake", negative="dull")
    twice = plan_of("imax", size=(2048, 2048), item=item, options={"true_cfg_scale": 3.0})
    assert twice.model_calls == 2 * once.model_calls == 120
    assert twice.requested.operations.linear > 1.99 * once.requested.operations.linear
    klein = plan_of("imax", "flux2-klein-base-9b", size=(2048, 2048))
    assert klein.model_calls == 120
    assert plan_of("imax", "flux2-klein-base-9b", size=(2048, 2048), guidance=1.0).model_calls == 60


def test_a_given_image_takes_the_place_of_the_base_pass_at_whatever_size_it_has(tmp_path):
    path = tmp_path / "given.png"
    Image.fromarray(np.zeros((1000, 1500, 3), np.uint8)).save(path)
    found = plan_of("patch-cascade", item=Item(prompt="a lake", image=path), scale=2)
    assert [stage.stage.name for stage in found.stages] == ["patches"]
    assert (found.call.height, found.call.width) == (2000, 3000)
    assert found.call.planned == (2000, 3008)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ultragen", "--model", "flux1-dev", "--size", "4000x4096"], "nearest"),
        (["euler", "--model", "flux1-dev", "--size", "4096x4096"], "tokens"),
        (["imax", "--model", "flux1-de"], "flux1-de"),
        (["imax", "--model", "flux1-dev", "--on", "rtx-4091"], "unknown GPU 'rtx-4091'.*rtx-4090"),
        (["imax", "--model", "flux1-dev", "--offload", "disk"], "unknown offload 'disk'"),
        (["imax", "--model", "flux1-dev", "--quantize", "int4"], "unknown quantisation 'int4'"),
        (["imax", "--model", "flux1-dev", "--dtype", "float8"], "unknown dtype 'float8'"),
        (["imax", "--model", "flux1-dev", "--adapter", "nowhere"], "nowhere"),
        (["imax", "--model", "flux1-schnell", "--guidance", "3"], "takes no guidance"),
    ],
)
def test_what_cannot_be_made_cannot_be_planned(arguments, message, capsys):
    import re

    assert main(["sample", *arguments, "--plan"]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_gpu_without_a_plan_and_a_call_without_words_are_errors(capsys):
    assert main(["sample", "imax", "--model", "flux1-dev", "--on", "h200", "--prompt", "x"]) == 1
    assert "--plan" in capsys.readouterr().err
    assert main(["sample", "imax", "--model", "flux1-dev"]) == 1
    assert "--prompt TEXT is missing" in capsys.readouterr().err


def test_what_does_not_fit_says_so_and_what_would(capsys):
    arguments = ("ultragen", "--model", "flux1-dev", "--size", "4096x4096", "--on", "rtx-4090")
    value = answered(capsys, *arguments)
    assert value["memory"]["fits"] is False
    instead = value["instead"]
    flags = [f"--{kind}={instead[kind]}" for kind in ("offload", "quantize") if instead[kind]]
    then = answered(capsys, *arguments, *flags)
    assert then["memory"]["fits"] is True
    assert then["memory"]["peak"] == instead["peak"] < 23 * GIB
    assert main(["sample", *arguments, "--plan"]) == 0
    assert "does not fit GeForce RTX 4090" in capsys.readouterr().out
    # that one that offloads is faster is shown with the reason, and with the host memory that it needs
    assert main(["sample", "patch-cascade", *arguments[1:-1], "rtx-4070", "--plan"]) == 0
    shown = capsys.readouterr().out
    assert "fits with --offload group: 2.5 GiB (31.4 GiB of the host), some" in shown
    assert "faster since its VAE has more memory" in shown
    assert "would take, if it fitted, some" in shown
    hopeless = answered(capsys, *arguments[:4], "8192x8192", "--on", "rtx-4070")
    assert hopeless["instead"] is None


def test_less_on_the_device_with_every_further_offload_and_quantisation():
    found = plan_of(size=(4096, 4096))
    peaks = [
        found.estimate(WeightPlacement(offload, None)).peak.total for offload in (None, "model", "sequential")
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert (
        found.estimate(WeightPlacement(None, "nf4")).peak.total
        < found.estimate(WeightPlacement(None, None)).peak.total
    )
    times = [found.estimate(WeightPlacement(offload, None)).total for offload in (None, "model", "group")]
    assert times == sorted(times)
    took = {kind: found.estimate(WeightPlacement(None, kind)).seconds for kind in (None, "nf4", "int8")}
    assert "dequantising" not in took[None]
    assert 0 < took["nf4"]["dequantising"] < took["int8"]["dequantising"]
    assert (
        found.estimate(WeightPlacement(None, None)).host
        == 0
        < found.estimate(WeightPlacement("model", "nf4")).host
        < found.estimate(WeightPlacement("group", None)).host
    )


def test_the_peak_is_the_largest_of_the_phases_and_names_its_largest_item(capsys):
    value = answered(capsys, "ultragen", "--model", "flux1-dev", "--size", "4096x4096", "--on", "h200")
    memory = value["memory"]
    assert memory["peak"] == max(phase["total"] for phase in memory["phases"])
    (peak,) = [phase for phase in memory["phases"] if phase["name"] == memory["at"]]
    parts = {name: size for name, size in peak.items() if name not in ("name", "total")}
    assert sum(parts.values()) == peak["total"]
    assert parts[memory["largest"]] == max(parts.values())
    # 57 layers keep keys and values of 4096 guide tokens in bfloat16: 2.9 GB (attention/guide.py)
    assert parts["guide's keys and values"] == 2 * 57 * 4096 * 3072 * 2


def test_on_a_cpu_there_is_no_time_and_float32(capsys):
    assert main(["sample", "imax", "--model", "tiny-flux1", "--device", "cpu", "--plan", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["dtype"] == "float32"
    assert "seconds" not in value


def test_the_gpu_that_is_here_is_planned_for_unless_another_is_named(monkeypatch):
    here = devices.Device("rtx-4090", "the one here", 24, 23 * GIB, 1e14, 1e13, 1e12, 1e10)
    monkeypatch.setattr("uhr.models.estimate.plan.local_device", lambda: here)
    assert plan_of("imax", on=None).device is here
    monkeypatch.setattr("uhr.models.estimate.plan.local_device", lambda: None)
    assert plan_of("imax", on=None).device == devices.device("h200")


def test_adapters_and_packed_files_count_as_the_weights_that_they_are(tmp_path, tiny_flux, adapter):
    plain = plan_of("imax", str(tiny_flux))
    size = next(adapter.glob("*.safetensors")).stat().st_size
    adapted = plan_of("imax", str(tiny_flux), adapters=[{"name": str(adapter)}])
    whole = adapted.cost.weights(None)["transformer"].whole - plain.cost.weights(None)["transformer"].whole
    assert whole == size
    packed = tmp_path / "packed.gguf"
    packed.write_bytes(bytes(1234))
    found = plan_of("imax", str(tiny_flux), transformer=packed)
    assert found.cost.weights(None)["transformer"].whole == 1234


def test_the_memory_of_a_plan_is_for_the_vae_that_the_sampler_makes():
    """UltraFlux decodes a quarter of the latents."""
    found = plan_of("ultraflux", size=(4096, 4096))
    plain = plan_of("imax", size=(4096, 4096))
    assert found.stages[-1].stage.calls[0].image == 16384
    assert plain.stages[-1].stage.calls[0].image > 65535
    assert found.requested.coded(found.stages[-1]).total < plain.requested.coded(plain.stages[-1]).total


def test_numbers_are_shown_as_people_say_them():
    assert [count(n) for n in (999, 21_233_664, 1.8e16, 2.5e18)] == ["999", "21.2 M", "18 P", "2.5 E"]
    assert [duration(s) for s in (0.04, 9.94, 59.6, 142, 4800)] == [
        "0.0 s",
        "9.9 s",
        "1 min 0 s",
        "2 min 22 s",
        "1 h 20 min",
    ]


def test_a_plan_of_other_dtypes_weighs_what_they_weigh():
    whole = {
        dtype: plan_of("imax", dtype=dtype).cost.weights(None)["transformer"].whole
        for dtype in ("bfloat16", "float16", "float32")
    }
    assert whole["bfloat16"] == whole["float16"] == whole["float32"] / 2 == 2 * 11_901_408_320
    assert torch.bfloat16.itemsize == 2


def test_a_spec_is_what_one_says_it_is():
    assert plan_of("imax", "flux1-dev", spec="flux1-schnell").choice.spec is zoo.get("flux1-schnell")
    with pytest.raises(UserError, match="unknown model spec"):
        plan_of("imax", "flux1-dev", spec="flux3")


@pytest.mark.parametrize(("on", "device", "assumed"), [(None, "auto", True), ("l40s", "auto", False)])
def test_a_gpu_that_is_not_here_is_not_taken_for_one_that_is(on, device, assumed, monkeypatch, capsys):
    monkeypatch.setattr("uhr.models.estimate.plan.local_device", lambda: None)
    request = Request(sampler="euler", model="tiny-flux1", size=(64, 64), steps=1, device=device)
    found = plan(request, Item(prompt="a"), on)
    show(found)
    assert ("(no GPU is here: " in capsys.readouterr().out) == assumed
    assert describe(found)["on"]["assumed"] == assumed
