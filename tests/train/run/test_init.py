"""Runs that begin with trained weights: of a run, of an adapter, of other programs' files."""

import json
import shlex
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from uhr.base.console import command
from uhr.base.errors import UserError
from uhr.base.files import sha256_file
from uhr.cli import main
from uhr.models.adapters.formats.usage import METADATA
from uhr.models.zoo import load_transformer
from uhr.train.recipes import resolve
from uhr.train.run.checkpoints import checkpoint, kept
from uhr.train.run.checkpoints.checkpoint import folder_of, steps
from uhr.train.run.exports.export import export
from uhr.train.run.job import read_run, reopen, start
from uhr.train.run.trainer import Trainer, train

TWO = ["phases.main.steps=2", "phases.main.lr=0.05"]
MINOR = ["trainable={kind: singular-components, rank: 4, targets: attention}"]


@pytest.fixture(scope="module")
def make(small_set, tiny_flux, fast):
    """`make(out, *sets, init=[...])`: a job; a trained LoRA's `fast` values unless `sets` have others."""

    def job(out, *sets, init=()):
        other = any(value.startswith("trainable={") for value in sets)
        sets = [*(value for value in fast if not (other and "trainable" in value)), *sets]
        return start(resolve("lora", None, [*TWO, *sets]), str(tiny_flux), [small_set.folder], out, init)

    return job


@pytest.fixture(scope="module")
def first(make, tmp_path_factory):
    """A run of two steps, and its export."""
    out = tmp_path_factory.mktemp("first") / "run"
    train(make(out))
    folder, _ = export(out, out.with_name("adapter"))
    return out, folder


def last(run):
    return folder_of(run, steps(run)[-1])


def adapter_of(run):
    return load_file(last(run) / "adapter.safetensors")


def values(trainer):
    part, model = trainer.recipe.trainable, trainer.model.network.transformer
    return {name: t.detach().clone() for name, t in part.parameters(model).items()}


def weights(trainer):
    state = trainer.model.network.transformer.state_dict()
    return {name.replace(".base_layer", ""): tensor for name, tensor in state.items() if ".lora_" not in name}


def test_another_checkpoint_than_the_newest_is_named_by_its_step(make, tmp_path, capsys):
    run = tmp_path / "steps"
    # of the first step only the adapter is kept
    train(make(run, "runtime.checkpoint_every=1", "runtime.keep_checkpoints=1"))
    for step in (1, 2):
        trainer = Trainer(make(tmp_path / f"from {step}", init=[f"{run}@{step}"]))
        stored = load_file(kept.find(run, step)[0] / "adapter.safetensors")
        assert all(torch.equal(value, stored[name]) for name, value in values(trainer).items())
        assert trainer.state.optimiser.state == {}
        (ref,) = trainer.job.info.init
        assert ref.step == step
        said = f"begins with the weights of lora, step {step}; optimiser, average and schedule begin anew"
        assert said in capsys.readouterr().out
    fused = make(tmp_path / "fused", "init.use=fuse", init=[f"{run}@1"])
    assert fused.info.init[0].step == 1
    assert "begins with lora, step 1, added to the frozen weights" in capsys.readouterr().out
    for wrong, named in (("3", "3"), ("two", "'two'"), ("", "''")):
        with pytest.raises(UserError, match=f"has no checkpoint of step {named}: it has: 1, 2"):
            make(tmp_path / "wrong", init=[f"{run}@{wrong}"])
    assert not (tmp_path / "wrong").exists()
    with pytest.raises(UserError, match=r"other@1 does not exist"):
        make(tmp_path / "wrong", init=[tmp_path / "other@1"])


@pytest.mark.parametrize("form", ["run", "checkpoint", "adapter", "file", "checkpoint file"])
def test_continued_weights_are_those_of_the_file_with_a_new_optimiser(first, make, tmp_path, form):
    run, adapter = first
    given = {
        "run": run,
        "checkpoint": last(run),
        "adapter": adapter,
        "file": adapter / "pytorch_lora_weights.safetensors",
        "checkpoint file": last(run) / "adapter.safetensors",
    }[form]
    job = make(tmp_path / "second", "phases.main.lr=0.01", init=[given])
    trainer = Trainer(job)
    expected = adapter_of(run)
    assert values(trainer).keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in values(trainer).items())
    assert trainer.state.optimiser.state == {}
    (ref,) = read_run(job.out).init
    assert (ref.use, ref.recipe, ref.step, ref.run) == ("continue", "lora", 2, read_run(run).id)
    train(job)
    again = reopen(job.out)
    assert (again.done, again.info.init) == (2, (ref,))
    assert checkpoint.read_info(last(job.out)).init == (ref,)


def test_a_fused_adapter_is_in_the_frozen_weights_and_its_export_says_what_it_needs(
    first, make, tmp_path, tiny_flux
):
    run, adapter = first
    job = make(tmp_path / "second", *MINOR, "init.use=fuse", init=[run])
    trainer = Trainer(job)
    plain = load_transformer(tiny_flux, "float32").state_dict()
    lora = adapter_of(run)
    changed = 0
    for name, tensor in weights(trainer).items():
        path = name.removesuffix(".weight")
        expected = plain[name]
        if f"{path}.lora_A.weight" in lora:
            expected = expected + lora[f"{path}.lora_B.weight"] @ lora[f"{path}.lora_A.weight"]
            changed += 1
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-7)
    assert changed == len(lora) // 2
    # the copy in the run's folder is the export of the other run, byte for byte
    sha = sha256_file(adapter / "pytorch_lora_weights.safetensors")
    assert sha256_file(job.out / "init" / "lora.safetensors") == sha
    train(job)
    folder, _ = export(job.out, tmp_path / "minor")
    record = json.loads((folder / "uhr.json").read_text())
    assert record["lora"]["over"] == {"lora": sha}
    from safetensors import safe_open

    with safe_open(folder / "pytorch_lora_weights.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()[METADATA])["over"] == {"lora": sha}


def test_a_whole_backbone_is_trained_further_from_its_float32_values(make, tmp_path):
    whole = ["trainable={kind: backbone}", "runtime.precision=bfloat16", "phases.main.lr=1e-4"]
    one = make(tmp_path / "one", *whole)
    train(one)
    trainer = Trainer(make(tmp_path / "two", *whole, init=[one.out]))
    stored = load_file(last(one.out) / "backbone.safetensors")
    assert trainer.state.parameters.keys() == stored.keys()
    live = trainer.model.module.state_dict()
    rounded = 0
    for name, tensor in stored.items():
        assert torch.equal(trainer.state.parameters[name], tensor)
        assert torch.equal(live[name], tensor.to(live[name].dtype))
        rounded += not torch.equal(live[name].float(), tensor)
    assert rounded > 50


def test_the_card_and_the_terminal_say_the_chain_and_the_command(first, make, tmp_path, capsys):
    run, adapter = first
    sha = sha256_file(adapter / "pytorch_lora_weights.safetensors")
    job = make(tmp_path / "second", *MINOR, "init.use=fuse", init=[run])
    train(job)
    capsys.readouterr()
    assert main(["train", "export", str(job.out), "--out", str(tmp_path / "minor")]) == 0
    text = capsys.readouterr().out
    needed = job.out / "init" / "lora.safetensors"
    assert f"it was trained on top of lora and must be loaded together with it: {needed}" in text
    assert f"--adapter {command(needed).removeprefix('uhr ')} --prompt" in text
    card = (tmp_path / "minor" / "README.md").read_text()
    first_id = read_run(run).id
    assert f"- fused with the base: recipe lora, run `{first_id}`, 2 steps, SHA-256 `{sha}`" in card
    assert f"It acts on top of `lora` (SHA-256 `{sha}`), which must be loaded together with it." in card
    assert 'pipe.set_adapters(["lora", "this"])' in card.replace("'", '"')
    assert "- main: 2 steps at 128 px on main; loss flow; sigma logit_normal(0, 1), shift 3; lr 0.05" in card
    assert f"run `{read_run(job.out).id}`" in card
    assert str(tmp_path) not in card
    record = json.loads((tmp_path / "minor" / "uhr.json").read_text())
    assert record["values"] == read_run(job.out).recipe
    assert (record["run"], record["init"][0]["sha256"]) == (read_run(job.out).id, sha)
    # the command's changes give the recipe of the run
    line = next(line for line in card.splitlines() if line.startswith("uhr train run lora"))
    words = shlex.split(line)
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    assert resolve("lora", None, sets) == job.recipe
    # what begins with the export knows the whole chain
    (again,) = make(tmp_path / "third", "init.use=fuse", init=[needed]).info.init
    assert (again.sha256, again.recipe) == (sha, None)


def test_sampling_requires_the_fused_adapter(first, make, tmp_path, tiny_flux, capsys):
    _, adapter = first
    job = make(tmp_path / "second", *MINOR, "init.use=fuse", init=[adapter])
    train(job)
    folder, _ = export(job.out, tmp_path / "minor")
    call = [
        "sample",
        "euler",
        "--model",
        str(tiny_flux),
        "--prompt",
        "a",
        "--size",
        "128x128",
        "--steps",
        "1",
    ]
    assert main([*call, "--adapter", str(folder), "--out", str(tmp_path / "a.png")]) == 1
    assert "was trained on top of 'adapter'" in capsys.readouterr().err
    both = ["--adapter", str(adapter), "--adapter", str(folder), "--out", str(tmp_path / "a.png")]
    assert main([*call, *both]) == 0


def test_fused_and_resumed_is_bitwise_the_run_that_was_not_stopped(first, make, tmp_path):
    run, _ = first
    sets = [*MINOR, "init.use=fuse", "phases.main.steps=4", "runtime.checkpoint_every=2"]
    straight = make(tmp_path / "straight", *sets, init=[run])
    train(straight)
    broken = make(tmp_path / "broken", *sets, init=[run])
    trainer = Trainer(broken)
    trainer.step()
    trainer.step()
    trainer.save({})
    # neither the other run nor its files are needed any more
    again = reopen(broken.out)
    assert again.done == 2
    train(again)
    files = [checkpoint.read_info(last(out)).files for out in (straight.out, broken.out)]
    assert files[0] == files[1]
    assert any(name.endswith(".start") for name in adapter_of(straight.out))
    (straight.out / "init" / "lora.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="has changed: copy it back"):
        Trainer(reopen(straight.out, ["phases.main.steps=6"]))


def test_minor_components_are_continued_from_their_run_over_what_it_had_fused(first, make, tmp_path):
    run, adapter = first
    minor = make(tmp_path / "minor", *MINOR, "init.use=fuse", init=[run])
    train(minor)
    job = make(tmp_path / "third", *MINOR, init=[minor.out])
    trainer = Trainer(job)
    stored = adapter_of(minor.out)
    found = {**values(trainer), **trainer.state.constants}
    assert found.keys() == stored.keys()
    assert all(torch.equal(found[name], stored[name]) for name in stored)
    fused, own = read_run(job.out).init
    assert (fused.use, fused.recipe, own.use, own.run) == ("fuse", "lora", "continue", read_run(minor.out).id)
    assert [ref.recipe for ref in own.init] == ["lora"]
    one, two = weights(trainer), weights(Trainer(reopen(minor.out)))
    assert all(torch.equal(one[name], two[name]) for name in one)
    # the file alone does not contain what it was trained on top of
    copy = tmp_path / "alone.safetensors"
    shutil.copy(last(minor.out) / "adapter.safetensors", copy)
    with pytest.raises(UserError, match=r"was trained on top of 'lora' .*: give that one with --init before"):
        make(tmp_path / "fourth", *MINOR, init=[copy])
    assert len(make(tmp_path / "fourth", *MINOR, init=[adapter, copy]).info.init) == 2


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            ["trainable.rank=2", "trainable.alpha=2"],
            "has rank 4 and alpha 4, the recipe rank 2 and alpha 2: --set trainable.rank=4 --set "
            "trainable.alpha=4, or --set init.use=fuse",
        ),
        (["trainable.alpha=2"], "has rank 4 and alpha 4, the recipe rank 4 and alpha 2"),
        (["trainable.targets=all-linear"], "--set trainable.targets=attention, or --set init.use=fuse"),
        (["trainable.targets=[to_q]"], "and the recipe does not: --set trainable.targets=attention"),
        (MINOR, "does not have the components that training began with: name the run that trained it"),
    ],
)
def test_an_adapter_of_another_part_is_refused_with_the_way_to_use_it(first, make, tmp_path, sets, message):
    with pytest.raises(UserError) as error:
        make(tmp_path / "second", *sets, init=[first[1]])
    assert message in str(error.value)
    assert not (tmp_path / "second").exists()


def test_a_run_of_another_part_is_refused_with_its_values(first, make, tmp_path):
    with pytest.raises(UserError, match=r"trained another part \(rank\): --set trainable.rank=4"):
        make(tmp_path / "second", "trainable.rank=2", init=[first[0]])


def test_a_lora_of_another_program_is_trained_further(first, make, tmp_path):
    """ComfyUI's keys and alphas; q, k and v are fused there."""
    from uhr.models.adapters.files import read
    from uhr.models.adapters.formats.keys import LAYOUTS
    from uhr.models.adapters.formats.writing import Format, save

    layout = LAYOUTS["FluxTransformer2DModel"]
    lora = read(first[1], layout).lora
    own = {path: part for path, part in lora.items() if path.endswith("attn.to_out.0")}
    file = save(own, tmp_path / "other.safetensors", Format.COMFYUI, layout)
    job = make(tmp_path / "second", "trainable.targets=[to_out.0]", init=[file])
    found = values(Trainer(job))
    assert found.keys() == {f"{path}.lora_{half}.weight" for path in own for half in "AB"}
    assert all(torch.equal(found[f"{path}.lora_B.weight"], part.b) for path, part in own.items())


def test_a_recipe_that_follows_another_is_refused_without_it(make, tmp_path):
    with pytest.raises(UserError, match=r"begins with the result of urae-2k: .*--set init.after=null"):
        make(tmp_path / "run", "init.after=urae-2k")


def test_guide_adapters_and_bare_factors_cannot_be_fused(first, make, tmp_path):
    state = load_file(first[1] / "pytorch_lora_weights.safetensors")
    guide = tmp_path / "guide.safetensors"
    save_file(state, guide, {METADATA: '{"tokens": "guide"}'})
    with pytest.raises(UserError, match="acts on guide tokens alone and cannot be fused"):
        make(tmp_path / "run", "init.use=fuse", init=[guide])
    factors = tmp_path / "factors.safetensors"
    q = "transformer_blocks.0.attn.processor.to_q"
    save_file({f"{q}_a.weight": torch.ones(2, 64), f"{q}_b.weight": torch.ones(64, 2)}, factors)
    with pytest.raises(UserError, match="has minor factors, which are no change of weights"):
        make(tmp_path / "run", "init.use=fuse", init=[factors])


def test_a_run_of_a_recipe_that_cannot_be_its_beginning_is_named_with_the_right_one(first, make, tmp_path):
    run = first[0]
    with pytest.raises(UserError) as error:
        make(tmp_path / "a", *MINOR, "init.after=urae-2k", init=[run])
    assert str(error.value) == (
        f"--init {run} is a run of lora, which trains 'lora', and lora trains 'singular-components': "
        "give a run of urae-2k, or add it to the frozen weights: --set init.use=fuse"
    )
    copied = tmp_path / "guide"
    shutil.copytree(run, copied)
    for file in copied.glob("checkpoints/*/checkpoint.json"):
        text = file.read_text().replace('"kind": "lora"', '"kind": "token-masked-lora"')
        file.write_text(text.replace('"name": "lora"', '"name": "ultragen"'))
    for use, message in (
        ("fuse", "on guide tokens alone: it cannot be fused with the weights: take recipe ultragen"),
        ("continue", "is a run of ultragen, which trains 'token-masked-lora', and lora trains 'lora'"),
    ):
        with pytest.raises(UserError) as error:
            make(tmp_path / "b", f"init.use={use}", init=[copied])
        assert message in str(error.value)
        assert "init.use=fuse" not in str(error.value)


def test_a_run_of_a_third_recipe_is_taken_with_a_warning(first, make, tmp_path, capsys):
    make(tmp_path / "a", "init.after=gca-stage1", init=[first[0]])
    assert "begins with the result of gca-stage1, and" in capsys.readouterr().err
    make(tmp_path / "b", "init.after=lora", init=[first[0]])
    assert "begins with" not in capsys.readouterr().err


def test_the_nearest_existing_name_of_what_a_run_begins_with_is_given(first, make, tmp_path):
    given = first[0].with_name("rum")
    with pytest.raises(UserError, match=f"--init {given} does not exist: did you mean {first[0]}"):
        make(tmp_path / "a", init=[given])


def test_the_refusal_of_another_learning_rate_names_init(first, make):
    with pytest.raises(
        UserError, match=r"another phases\.0\.lr \(0\.\d+ -> 0\.001\): .*`uhr train run lora --init .*run"
    ):
        reopen(first[0], ["phases.main.lr=0.001"])


def test_the_command_repeated_with_another_adapter_is_refused(first, make, tmp_path):
    out = tmp_path / "second"
    train(make(out, init=[first[0]]))
    assert make(out, init=[first[0]]).done == 2
    with pytest.raises(UserError, match="already contains a run with another init"):
        make(out)


def test_a_full_disk_leaves_no_half_of_a_run(first, make, tmp_path, monkeypatch):
    from uhr.train.run import job as job_module

    def full(path, value):
        raise OSError(28, "No space left on device", str(path))

    out = tmp_path / "second"
    with monkeypatch.context() as patched:
        patched.setattr(job_module, "write_json", full)
        with pytest.raises(OSError, match="No space left"):
            make(out, "init.use=fuse", init=[first[0]])
    assert not out.exists() or not list(out.iterdir())
    assert (make(out, "init.use=fuse", init=[first[0]]).out / "init" / "lora.safetensors").is_file()


def test_two_adapters_are_fused_and_trained_further_in_their_order(first, make, tmp_path):
    _, adapter = first
    over = make(tmp_path / "over", "init.use=fuse", init=[adapter])
    train(over)
    both, _ = export(over.out, tmp_path / "on top")
    with pytest.raises(
        UserError, match=r"was trained on top of 'adapter' .*give that one with --init before"
    ):
        make(tmp_path / "third", init=[both])
    job = make(tmp_path / "third", init=[adapter, both])
    assert [ref.use for ref in job.info.init] == ["fuse", "continue"]
    stored = adapter_of(over.out)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in values(Trainer(job)).items())


@pytest.mark.parametrize("use", ["continue", "fuse"])
def test_an_adapter_with_values_that_are_not_finite_is_named(first, make, tmp_path, use):
    tensors = load_file(first[1] / "pytorch_lora_weights.safetensors")
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name][0, 0] = float("nan")
    file = tmp_path / "broken.safetensors"
    save_file(tensors, file)
    job = make(tmp_path / "run", f"init.use={use}", init=[file])
    with pytest.raises(UserError, match=r"broken\.safetensors: .*lora_B.* not finite: begin with another"):
        Trainer(job)


def test_a_damaged_record_beside_an_adapter_is_named(first, make, tmp_path):
    shutil.copytree(first[1], tmp_path / "adapter")
    record = tmp_path / "adapter" / "uhr.json"
    record.write_text(record.read_text()[:-20])
    with pytest.raises(UserError, match=r"uhr\.json cannot be read .*remove it to begin with the weights"):
        make(tmp_path / "run", init=[tmp_path / "adapter"])
    record.write_text("[]")
    make(tmp_path / "run", init=[tmp_path / "adapter"])
