"""Folders and configurations of kohya, ai-toolkit and SimpleTuner: read, curated, and used by a recipe."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

from uhr.base.errors import UserError
from uhr.manifests.manifest import Manifest
from uhr.train.foreign import ai_toolkit, kohya, simpletuner
from uhr.train.foreign.job import import_config, read
from uhr.train.recipes import resolve
from uhr.train.timesteps import Timesteps

DOCUMENT = Path(__file__).parents[3] / "docs" / "coming-from.md"

KOHYA_DATASET = """
[general]
shuffle_caption = true
caption_extension = ".txt"
keep_tokens = 1

[[datasets]]
resolution = [64, 64]
batch_size = 2
enable_bucket = true

  [[datasets.subsets]]
  image_dir = "10_sks dog"
  num_repeats = 10
  class_tokens = "sks dog"
  flip_aug = true

  [[datasets.subsets]]
  image_dir = "reg"
  is_reg = true
  class_tokens = "dog"
"""

KOHYA_TRAINING = """
[Model]
pretrained_model_name_or_path = "flux1-dev.safetensors"
[Network]
network_module = "networks.lora_flux"
network_dim = 8
network_alpha = 4
[Optimiser]
optimizer_type = "AdamW8bit"
learning_rate = 2e-4
lr_scheduler = "cosine"
lr_warmup_steps = 5
max_train_steps = 300
[Data]
dataset_config = "dataset.toml"
gradient_accumulation_steps = 3
guidance_scale = 1.0
timestep_sampling = "shift"
discrete_flow_shift = 3.1582
"""

AI_TOOLKIT = """
job: extension
config:
  name: "my_first_flux_lora_v1"
  process:
    - type: 'sd_trainer'
      training_folder: "output"
      device: cuda:0
      trigger_word: "p3r5on"
      network: {type: "lora", linear: 16, linear_alpha: 16}
      save: {dtype: float16, save_every: 250, max_step_saves_to_keep: 4}
      datasets:
        - folder_path: "images"
          caption_ext: "txt"
          caption_dropout_rate: 0.05
          shuffle_tokens: false
          cache_latents_to_disk: true
          resolution: [512, 768, 1024]
          num_repeats: 2
      train:
        batch_size: 1
        steps: 2000
        gradient_accumulation_steps: 2
        train_unet: true
        train_text_encoder: false
        gradient_checkpointing: true
        noise_scheduler: "flowmatch"
        optimizer: "adamw8bit"
        lr: 1e-4
        timestep_type: "sigmoid"
        ema_config: {use_ema: true, ema_decay: 0.99}
        dtype: bf16
      model: {name_or_path: "black-forest-labs/FLUX.1-dev", is_flux: true, quantize: true}
      sample:
        sampler: "flowmatch"
        sample_every: 250
        width: 1024
        height: 768
        prompts: ["[trigger] holding a sign", "a bear"]
        neg: ""
        seed: 42
        walk_seed: true
        guidance_scale: 4
        sample_steps: 20
meta: {name: "[name]", version: '1.0'}
"""

SIMPLETUNER = [
    {
        "id": "photos",
        "type": "local",
        "instance_data_dir": "images",
        "caption_strategy": "filename",
        "crop": True,
        "resolution": 1.0,
        "resolution_type": "area",
        "cache_dir_vae": "cache",
        "repeats": 4,
    },
    {
        "id": "text of all",
        "type": "local",
        "instance_data_dir": "10_sks dog",
        "caption_strategy": "instanceprompt",
        "instance_prompt": "a dog",
        "resolution": 1024,
        "resolution_type": "pixel",
    },
    {"id": "off", "type": "local", "instance_data_dir": "nowhere", "disabled": True},
    {"id": "texts", "dataset_type": "text_embeds", "default": True, "type": "local", "cache_dir": "cache/t"},
]


@pytest.fixture
def folder(tmp_path, save, blobs):
    """Images in kohya's folders and in one of ai-toolkit; each has a caption beside it but one."""
    for number, name in enumerate(
        ("10_sks dog/a.png", "10_sks dog/b.png", "2_cat/c.png", "images/red_car-2.png")
    ):
        save(tmp_path / name, blobs(64, 64, number))
    (tmp_path / "10_sks dog" / "a.txt").write_text("sks dog on a lawn")
    (tmp_path / "images" / "red_car-2.txt").write_text("photo of [trigger]")
    (tmp_path / "reg").mkdir()
    return tmp_path


def curated(done, uhr):
    code, _, err = uhr(
        "curate",
        "run",
        done.out / "pipeline.yaml",
        "--out",
        done.out / "set",
        "--engine",
        "local",
        "--workers",
        0,
    )
    assert code == 0, err
    rows = Manifest.open(done.out / "set").table().to_pylist()
    return {row["uri"]: (row["source_name"], row["caption"]) for row in rows}


def uses(done):
    recipe = resolve(None, done.out / "recipe.yaml")
    return [(use.where, use.repeats, use.weight) for use in recipe.phases[0].data]


def test_kohyas_folders_are_sources_with_repeats_and_captions(folder, uhr):
    done = import_config(folder, folder / "out")
    assert [(each.name, each.repeats) for each in done.foreign.sources] == [("sks_dog", 10), ("cat", 2)]
    assert curated(done, uhr) == {
        "a.png": ("sks_dog", "sks dog on a lawn"),
        "b.png": ("sks_dog", "sks dog"),
        "c.png": ("cat", "cat"),
    }
    assert uses(done) == [("source_name = 'sks_dog'", 10, None), ("source_name = 'cat'", 2, None)]


def test_kohyas_dataset_toml(folder):
    (folder / "dataset.toml").write_text(KOHYA_DATASET)
    done = import_config(folder / "dataset.toml", folder / "out")
    (source,) = done.foreign.sources
    assert (source.path, source.repeats, source.caption) == (str(folder / "10_sks dog"), 10, "sks dog")
    assert done.foreign.resolutions == [64]
    recipe = resolve(None, folder / "out" / "recipe.yaml")
    assert (recipe.batch.size, recipe.batch.micro) == (2, 2)
    text = "\n".join(done.foreign.unread)
    for key in ("shuffle_caption", "keep_tokens", "flip_aug", "is_reg"):
        assert f"{key}: " in text
    assert "caption_extension" not in text
    assert "num_repeats" not in text


def test_kohyas_training_toml_with_the_data_that_it_names(folder):
    (folder / "dataset.toml").write_text(KOHYA_DATASET)
    (folder / "train.toml").write_text(KOHYA_TRAINING)
    done = import_config(folder / "train.toml", folder / "out")
    recipe = resolve(None, folder / "out" / "recipe.yaml")
    phase = recipe.phases[0]
    assert (recipe.trainable.rank, recipe.trainable.alpha) == (8, 4)
    assert (phase.lr, phase.steps, phase.schedule, phase.warmup) == (2e-4, 300, "cosine", 5)
    assert phase.timesteps == Timesteps(density="logit_normal", shift=3.1582)
    assert recipe.optimiser.kind == "adamw-8bit"
    assert (recipe.batch.size, recipe.batch.micro) == (6, 2)
    assert done.foreign.model == "flux1-dev.safetensors"
    assert "--model flux1-dev.safetensors" in done.commands()[-1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('timestep_sampling = "sigmoid"\nsigmoid_scale = 0.5\ndiscrete_flow_shift = 2', (0.5, 1)),
        ('timestep_sampling = "shift"', (1, 3)),
        ('timestep_sampling = "uniform"\ndiscrete_flow_shift = 2', (None, 1)),
        ('timestep_sampling = "sigma"\ndiscrete_flow_shift = 2', (None, 2)),
        ("discrete_flow_shift = 2", (None, 2)),
        ("", (None, 3)),
    ],
)
def test_kohyas_noise_levels_have_its_shift_only_where_it_uses_it(folder, text, expected):
    (folder / "a.toml").write_text(f'train_data_dir = "."\n{text}')
    import_config(folder / "a.toml", folder / "out")
    std, shift = expected
    density = {"density": "uniform"} if std is None else {"density": "logit_normal", "std": std}
    found = resolve(None, folder / "out" / "recipe.yaml").phases[0].timesteps
    assert found == Timesteps(**density, shift=shift)


def test_places_are_absolute(folder, monkeypatch):
    """The pipeline may be used in any folder, whatever the path of the configuration was relative to."""
    monkeypatch.chdir(folder.parent)
    inside = folder.relative_to(folder.parent)
    (folder / "dataset.toml").write_text(KOHYA_DATASET)
    for place, name in ((inside, "2_cat"), (inside / "dataset.toml", "10_sks dog")):
        assert str(folder / name) in [each.path for each in read(place).sources]


def test_ai_toolkits_job(folder, uhr):
    (folder / "job.yaml").write_text(AI_TOOLKIT)
    done = import_config(folder / "job.yaml", folder / "out")
    assert curated(done, uhr) == {"red_car-2.png": ("images", "photo of [trigger]")}
    recipe = resolve(None, folder / "out" / "recipe.yaml")
    phase, images = recipe.phases[0], recipe.validation.images
    assert (recipe.trainable.rank, phase.steps, phase.lr) == (16, 2000, 1e-4)
    assert (recipe.batch.size, recipe.batch.micro, recipe.ema) == (2, 1, 0.99)
    assert (recipe.caption_dropout, recipe.runtime.quantize) == (0.05, "float8wo")
    assert (recipe.runtime.checkpoint_every, recipe.runtime.keep_checkpoints) == (250, 4)
    assert images.prompts == ("p3r5on holding a sign", "a bear")
    assert (images.size, images.every, images.seed, images.steps) == ((1024, 768), 250, 42, 20)
    encodes = done.commands()[1:-1]
    assert [f"resolution={side}" in line for side, line in zip((512, 768, 1024), encodes, strict=True)] == [
        True
    ] * 3
    assert all("trigger=p3r5on" in line for line in encodes)
    assert [(use.resolution, use.repeats) for use in phase.data] == [(512, 2), (768, 2), (1024, 2)]
    assert phase.timesteps == Timesteps(density="logit_normal", shift=1)
    assert not any("not known here" in line for line in done.foreign.unread)


def test_simpletuners_data_sets(folder, uhr):
    (folder / "multidatabackend.json").write_text(json.dumps(SIMPLETUNER))
    done = import_config(folder / "multidatabackend.json", folder / "out")
    (folder / "images" / "red_car-2.txt").unlink()
    assert curated(done, uhr) == {
        "a.png": ("text_of_all", "sks dog on a lawn"),
        "b.png": ("text_of_all", "a dog"),
        "red_car-2.png": ("photos", "red car 2"),
    }
    assert ".txt files beside the images win over instance_prompt" in "\n".join(done.foreign.unread)
    # 4 repeats there are 5 times
    assert uses(done) == [("source_name = 'photos'", 5, None), ("source_name = 'text_of_all'", 1, None)]
    assert done.foreign.resolutions == [1024]


def test_captions_of_several_lines_are_named(folder):
    (folder / "images" / "red_car-2.txt").write_text("one\nanother\n")
    entries = [dict(SIMPLETUNER[0], caption_strategy="textfile"), dict(SIMPLETUNER[1], disable=True)]
    (folder / "m.json").write_text(json.dumps(entries))
    done = import_config(folder / "m.json", folder / "out")
    assert [each.name for each in done.foreign.sources] == ["photos"]
    (line,) = [line for line in done.foreign.unread if "textfile" in line]
    assert "red_car-2.txt: its lines are several captions there" in line


def test_probabilities_become_weights(folder):
    entries = [dict(SIMPLETUNER[0], probability=0.75, repeats=0), dict(SIMPLETUNER[1], probability=0.25)]
    (folder / "m.json").write_text(json.dumps(entries))
    assert [use[2] for use in uses(import_config(folder / "m.json", folder / "out"))] == [0.75, 0.25]


def test_the_result_trains(folder, uhr, tiny_flux):
    """The printed commands, with each image as often, and at the resolution, that its data set says."""
    more = '[[datasets]]\nresolution = 32\n[[datasets.subsets]]\nimage_dir = "2_cat"\n'
    text = KOHYA_DATASET.replace("num_repeats = 10", "num_repeats = 3") + more
    (folder / "dataset.toml").write_text(text)
    code, text, err = uhr("train", "import", folder / "dataset.toml", "--out", folder / "out")
    assert code == 0, err
    assert "not taken over: dataset 1: flip_aug" in text
    sets = ("phases.main.steps=4", "runtime.precision=float32", "runtime.device=cpu")
    added = {
        "curate": ("--engine", "local", "--workers", 0),
        "encode": ("--device", "cpu", "--engine", "local", "--workers", 0),
        "run": [argument for each in sets for argument in ("--set", each)],
    }
    for line in text.splitlines():
        if line.startswith("next: uhr "):
            words = shlex.split(line.removeprefix("next: uhr "))
            call = [tiny_flux if word == "MODEL" else word for word in words]
            code, _, err = uhr(*call, *added["curate" if call[0] == "curate" else call[1]])
            assert code == 0, err
    # two images three times and one image once, in batches of two of one size: four steps are an epoch
    log = [json.loads(line) for line in (folder / "out" / "run" / "log.jsonl").read_text().splitlines()]
    assert sorted(line["samples"] for line in log if "loss" in line) == [1, 2, 2, 2]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "[[", "cannot be read"),
        ("a.toml", "datasets = 3", "is not a configuration of kohya"),
        ("a.toml", '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "none"', "does not exist"),
        ("a.toml", '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "images"\nnum_repeats = 0', "at least 1"),
        ("a.toml", '[[datasets]]\nresolution = "x"', "invalid"),
        ("a.toml", 'network_dim = "many"', "network_dim is 'many'"),
        ("a.yaml", "config: {process: []}", "is not a job of ai-toolkit"),
        ("a.yaml", "config: {process: [{network: {linear: 0}}]}", "network.linear is 0"),
        ("a.yaml", "a: [", "a.yaml"),
        ("a.json", "{}", "is not a list of data sets of SimpleTuner"),
        ("a.json", "[" * 100_000, "cannot be read"),
        (
            "a.json",
            '[{"id": "x", "instance_data_dir": "images", "caption_strategy": "magic"}]',
            "known here: textfile",
        ),
        ("a.json", '[{"id": "x", "type": "aws"}]', "is of type aws"),
        ("a.json", "[]", "names no folder of images"),
        ("a.txt", "", "is not a configuration that is read"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_leaves_nothing(name, text, message, folder):
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        import_config(folder / name, folder / "out")
    assert "\n" not in str(error.value)
    assert not (folder / "out").exists()


def test_a_value_that_the_recipe_refuses_leaves_nothing(folder):
    (folder / "a.toml").write_text('train_data_dir = "."\nlearning_rate = -1')
    with pytest.raises(UserError, match="lr"):
        import_config(folder / "a.toml", folder / "out")
    assert not (folder / "out").exists()
    ordinary = folder / "images"
    with pytest.raises(UserError, match="an ordinary folder needs no import"):
        read(ordinary)


def test_values_without_a_counterpart_are_reported_and_the_recipes_own_stay(folder):
    text = 'train_data_dir = "."\noptimizer_type = "Lion"\nlr_warmup_steps = 0.1\n'
    text += 'mixed_precision = "fp16"\nnew = 1'
    (folder / "a.toml").write_text(text)
    done = import_config(folder / "a.toml", folder / "out")
    recipe, own = resolve(None, folder / "out" / "recipe.yaml"), resolve("lora")
    assert recipe.optimiser == own.optimiser
    assert (recipe.phases[0].warmup, recipe.runtime.precision) == (0, "bfloat16")
    unread = "\n".join(done.foreign.unread)
    assert "optimizer_type: Lion (known here: adamw, adamw8bit" in unread
    for key in ("lr_warmup_steps: 0.1", "mixed_precision: fp16", "new: not known here"):
        assert key in unread
    assert "not taken over: optimizer_type" in (folder / "out" / "recipe.yaml").read_text()


def test_a_file_that_exists_is_kept(folder):
    import_config(folder, folder / "out")
    with pytest.raises(UserError, match=r"pipeline\.yaml already exists"):
        import_config(folder, folder / "out")


def test_the_document_has_every_key_that_is_known():
    text = DOCUMENT.read_text(encoding="utf-8")
    tables = (
        kohya.SUBSET_KEYS, kohya.DATASET_KEYS, kohya.TRAINING_KEYS,
        ai_toolkit.PROCESS_KEYS, ai_toolkit.DATASET_KEYS, simpletuner.BACKEND_KEYS,
    )  # fmt: skip
    missing = [name for table in tables for name in table if f"`{name}`" not in text]
    assert missing == []


def test_every_path_that_a_key_names_is_a_recipes():
    tree = resolve("lora").model_dump()
    tree["phases"] = {"main": tree["phases"][0]}
    for table in (kohya.TRAINING_KEYS, kohya.DATASET_KEYS, ai_toolkit.PROCESS_KEYS, ai_toolkit.DATASET_KEYS):
        for name, key in table.items():
            if key.value is None or key.ours.startswith("validation."):
                continue
            here = tree
            for part in key.ours.split("."):
                assert part in here, (name, key.ours)
                here = here[part]


def test_pipelines_are_plain_yaml(folder):
    import_config(folder, folder / "out")
    tree = yaml.safe_load((folder / "out" / "pipeline.yaml").read_text())
    assert tree["preset"] == "as-is"
    assert tree["sources"]["cat"] == {"kind": "folder", "path": str(folder / "2_cat"), "caption": "cat"}
