"""Images during a run: as uhr sample would generate them, apart from the training."""

import json

import pytest
import torch
from PIL import Image

from uhr.base.errors import UserError
from uhr.cli import main
from uhr.models.loading import model as loading
from uhr.train.run.checkpoints import checkpoint
from uhr.train.run.monitoring import validation_images
from uhr.train.run.trainer import Trainer, train

IMAGES = "validation.images={prompts: [a red square, a tree], every: 2, size: [96, 64], steps: 2, seed: 5}"
SETS = ["phases.main.steps=4", "phases.main.lr=0.05", "runtime.checkpoint_every=4"]


def png(path):
    with Image.open(path) as image:
        return image.tobytes(), image.size, dict(image.text)


def test_they_are_what_uhr_sample_generates_with_the_export(job_of, tiny_flux, tmp_path):
    job = job_of(*SETS, IMAGES)
    train(job)
    folders = sorted(path.name for path in (job.out / "validation").glob("step-*"))
    assert folders == ["step-00000000", "step-00000002", "step-00000004"]
    assert main(["train", "export", str(job.out), "--out", str(tmp_path / "adapter")]) == 0
    sample = ["sample", "euler", "--model", str(tiny_flux), "--size", "96x64", "--steps", "2"]
    for adapter, folder in (([], folders[0]), (["--adapter", str(tmp_path / "adapter")], folders[2])):
        for number, prompt in enumerate(("a red square", "a tree")):
            out = tmp_path / f"{folder} {number}.png"
            named = ["--prompt", prompt, "--seed", str(5 + number), "--out", str(out)]
            assert main([*sample, *adapter, *named]) == 0
            theirs, size, _ = png(out)
            ours, own_size, facts = png(job.out / "validation" / folder / f"{number:03d}.png")
            assert own_size == size == (96, 64)
            difference = torch.frombuffer(bytearray(ours), dtype=torch.uint8).int()
            difference -= torch.frombuffer(bytearray(theirs), dtype=torch.uint8).int()
            # merged adapters round differently
            assert difference.abs().max() <= 1
            assert facts == {"prompt": prompt, "seed": str(5 + number), "step": str(int(folder[5:]))}
    first, last = (png(job.out / "validation" / folder / "000.png")[0] for folder in folders[::2])
    assert first != last


def test_they_change_no_number_of_the_training_and_leave_the_model_as_it_was(job_of, tmp_path):
    train(job_of(*SETS, IMAGES, out=tmp_path / "with"))
    train(job_of(*SETS, out=tmp_path / "without"))
    one, two = (checkpoint.read_info(checkpoint.folder_of(tmp_path / n, 4)) for n in ("with", "without"))
    assert one.files == two.files
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("with", "without")
    ]
    assert losses[0] == losses[1]


def test_prompts_are_encoded_once_and_no_text_encoder_is_loaded_afterwards(job_of, monkeypatch):
    job = job_of(*SETS, IMAGES)
    Trainer(job)
    assert (job.out / "validation" / "prompts.safetensors").is_file()
    real = loading.load_component

    def load(model, name, *args, **kwargs):
        assert "text" not in name, name
        return real(model, name, *args, **kwargs)

    monkeypatch.setattr(loading, "load_component", load)
    trainer = Trainer(job)
    trainer.validate()
    assert (job.out / "validation" / "step-00000000" / "001.png").is_file()
    monkeypatch.setattr(validation_images, "load_text_encoders", lambda *_: pytest.fail("loaded"))
    with pytest.raises(pytest.fail.Exception, match="loaded"):
        Trainer(job_of(*SETS, IMAGES.replace("a tree", "a house")))


def test_the_surgeries_of_training_are_put_aside_for_a_sampler_with_its_own(job_of):
    images = IMAGES.replace("every", "sampler: imax, every").replace("[96, 64]", "[256, 256]")
    trainer = Trainer(job_of(*SETS, images, "surgeries=[{surgery: rope-ntk, factor: 10.0}]"))
    before = (trainer.model.surgeries, trainer.model.module.pos_embed)
    trainer.validate()
    from uhr.models.surgery.base import record

    assert record(trainer.model.module) is not None
    assert sorted(entry["surgery"] for entry in record(trainer.model.module)) == sorted(
        entry["surgery"] for entry in before[0]
    )
    assert type(trainer.model.module.pos_embed) is type(before[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sampler: eulr, prompts: [a], every: 1", "unknown sampler 'eulr'"),
        ("prompts: [a], every: 1, size: [100, 64]", "100"),
        ("prompts: [a], every: 1, options: {tokit: 1}", "unknown key 'tokit'"),
        ("prompts: [], every: 1", "prompts"),
    ],
)
def test_what_cannot_be_generated_is_refused_before_the_run(job_of, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        job_of(f"validation.images={{{change}}}")
    assert not (tmp_path / "run").exists()


def test_a_model_with_two_passes_gets_the_empty_prompt_too(small_set2, tiny_flux2, fast, tmp_path):
    from uhr.train.recipes import resolve
    from uhr.train.run.job import start

    sets = ["family=flux2", "guidance={kind: none, scale: null}", "phases.main.steps=1", IMAGES]
    recipe = resolve("lora", None, [*fast, *sets])
    trainer = Trainer(start(recipe, str(tiny_flux2), [small_set2.folder], tmp_path / "run"))
    trainer.validate()
    assert len(list((tmp_path / "run" / "validation" / "step-00000000").iterdir())) == 2
    assert trainer.model._images._arguments(0, "cfg").keys() == {"prompt_embeds", "negative_prompt_embeds"}


def tile(grid, row, column):
    """The image in a cell of a grid of images of 96 x 64 px, by its layout."""
    left, top = 8 + column * (160 + 8), 56 + row * (64 + 24 + 8) + 24
    return grid.crop((left, top, left + 96, top + 64)).tobytes()


def test_the_grid_shows_every_image_of_the_run_beside_the_one_without_the_adapter(job_of):
    job = job_of(*SETS, IMAGES.replace("every: 2", "every: 3"))
    train(job)
    folder = job.out / "validation"
    steps = ["step-00000000", "step-00000003", "step-00000004"]
    assert sorted(path.name for path in folder.iterdir()) == ["grid.png", "prompts.safetensors", *steps]
    with Image.open(folder / "grid.png") as grid:
        for row in range(2):
            cells = [tile(grid, row, column) for column in range(3)]
            assert cells == [png(folder / step / f"{row:03d}.png")[0] for step in steps]
            assert len(set(cells)) == 3
        assert grid.size == (8 + 3 * (160 + 8), 56 + 2 * (64 + 24 + 8))
        # headings are ink on paper
        assert grid.crop((0, 0, grid.width, 48)).convert("L").getextrema()[0] < 128


def test_where_training_did_not_begin_without_the_adapter_it_is_left_out_for_the_grid(job_of, tmp_path):
    train(job_of(*SETS, out=tmp_path / "run"))
    assert (
        main(["train", "resume", str(tmp_path / "run"), "--set", "phases.main.steps=5", "--set", IMAGES]) == 0
    )
    folder = tmp_path / "run" / "validation"
    assert {path.name for path in folder.iterdir()} == {
        "grid.png", "prompts.safetensors", "step-00000005", "without"
    }  # fmt: skip
    fresh = Trainer(job_of(*SETS, IMAGES, out=tmp_path / "fresh"))
    fresh.validate()
    with Image.open(folder / "grid.png") as grid:
        for row in range(2):
            name = f"{row:03d}.png"
            before, after = png(folder / "without" / name), png(folder / "step-00000005" / name)
            assert (tile(grid, row, 0), tile(grid, row, 1)) == (before[0], after[0])
            assert before[0] == png(tmp_path / "fresh" / "validation" / "step-00000000" / name)[0] != after[0]
            assert "step" not in before[2]


def test_images_of_other_prompts_are_not_in_the_grid_and_of_many_steps_it_shows_some(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    from uhr.train.run.monitoring.validation_grid import COLUMNS, write_grid

    for step in range(30):
        info = PngInfo()
        info.add_itxt("prompt", "another" if step == 3 else "a lake\nat dawn " + "x" * 500)
        info.add_itxt("seed", "7")
        (tmp_path / str(step)).mkdir()
        Image.new("RGB", (96, 64), (step, 0, 0)).save(tmp_path / str(step) / "000.png", pnginfo=info)
    facts = [{"prompt": "a lake\nat dawn " + "x" * 500, "seed": "7"}]
    write_grid(tmp_path / "few.png", [(str(n), tmp_path / str(n)) for n in (0, 3, 4)], facts, "euler")
    with Image.open(tmp_path / "few.png") as grid:
        assert grid.width == 8 + 2 * (160 + 8)
        assert [tile(grid, 0, column)[0] for column in range(2)] == [0, 4]
    write_grid(tmp_path / "many.png", [(str(n), tmp_path / str(n)) for n in range(30)], facts, "euler")
    with Image.open(tmp_path / "many.png") as grid:
        shown = [tile(grid, 0, column)[0] for column in range(COLUMNS)]
        assert grid.width == 8 + COLUMNS * (160 + 8)
    assert (shown[:2], shown[-1]) == ([0, 1], 29)
    assert shown == sorted(set(shown))
    write_grid(tmp_path / "none.png", [("3", tmp_path / "3")], facts, "euler")
    assert not (tmp_path / "none.png").exists()
