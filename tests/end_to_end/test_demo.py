"""The whole road on real input: the demo leaves behind what it says, and that is what the parts promise."""

import json

import numpy as np
import pytest
from PIL import Image


def test_the_demo_walks_to_the_end_and_says_what_it_made(walked):
    assert walked.code == 0, walked.printed
    for name in ("manifest/report.html", "run/log.jsonl", "without.png", "with.png"):
        assert (walked.folder / "demo" / name).stat().st_size > 0
    assert "its images are noise" in walked.printed


def test_training_was_interrupted_and_every_step_is_in_the_log_once(walked):
    assert "stopped after step" in walked.printed
    log = [json.loads(line) for line in (walked.folder / "demo/run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, len(log) + 1))


def test_the_adapter_changes_the_image_and_the_seed_does_not(walked):
    names = ("without.png", "with.png")
    without, adapted = (np.asarray(Image.open(walked.folder / "demo" / name)) for name in names)
    assert without.shape == adapted.shape == (256, 256, 3)
    assert (without != adapted).any()
    assert without.std() > 5


def test_the_adapter_merges_in_stock_diffusers_as_in_ours(walked):
    import torch
    from diffusers import FluxPipeline

    from uhr.models.adapters.files import load_adapter
    from uhr.models.adapters.merging import merge
    from uhr.models.zoo import load_transformer

    model, adapter = walked.folder / "demo" / "tiny-flux1", walked.folder / "demo" / "adapter"
    stock = FluxPipeline.from_pretrained(model, local_files_only=True)
    plain = {name: weight.clone() for name, weight in stock.transformer.state_dict().items()}
    stock.load_lora_weights(adapter)
    stock.fuse_lora()
    stock.unload_lora_weights()
    fused = stock.transformer.state_dict()

    ours = load_transformer(model)
    load_adapter(ours, adapter, "demo")
    merge(ours)
    state = ours.state_dict()
    merged = {name.replace(".base_layer", ""): state[name] for name in state if ".lora_" not in name}
    assert set(merged) == set(fused)
    changed = [name for name in fused if not torch.equal(fused[name], plain[name])]
    assert changed
    for name in fused:
        torch.testing.assert_close(merged[name], fused[name], rtol=1e-5, atol=1e-6)


def test_the_demo_clears_what_it_made_and_nothing_else(tmp_path, capsys):
    from uhr.demo.run import MARKER, _prepare

    _prepare(tmp_path)
    (tmp_path / "manifest").mkdir()
    (tmp_path / "manifest" / "manifest.json").touch()
    (tmp_path / "my-slice").mkdir()
    _prepare(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my-slice", MARKER]
    assert "manifest" in capsys.readouterr().out


def test_the_demo_takes_no_folder_of_another_kind(walked, tmp_path, monkeypatch, capsys):
    from uhr.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("years of work")
    assert main(["demo"]) == 1
    assert (
        "--out demo already contains something else (thesis.txt): name a new folder"
        in capsys.readouterr().err
    )
    assert (tmp_path / "demo" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["manifest", "slice"])
def test_what_the_demo_wrote_verifies(walked, name):
    from uhr.cli import main

    assert main(["manifest", "verify", str(walked.folder / "demo" / name)]) == 0
