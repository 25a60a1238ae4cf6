import json

import pytest
import torch
import yaml
from safetensors import safe_open

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.adapters.files import load_adapter
from uhr.models.adapters.merging import merge
from uhr.models.adapters.plain import LoraSpec, lora_state
from uhr.models.adapters.scales import set_scales
from uhr.models.publish.export import export_lora

DEV = zoo.get("flux1-dev")


@pytest.fixture
def fresh(tiny_flux):
    from diffusers import FluxPipeline

    return FluxPipeline.from_pretrained(tiny_flux, local_files_only=True)


@pytest.mark.parametrize(("rank", "alpha"), [(4, 4), (4, 1), (2, 32)])
@pytest.mark.parametrize("targets", ["attention", "all-linear"])
def test_a_stock_pipeline_fuses_exactly_what_our_merge_gives(
    tiny_flux, fresh, tmp_path, rank, alpha, targets, facts, trained
):
    lora = LoraSpec(rank, DEV.lora_target_sets[targets], alpha=alpha)
    model, state = trained(tiny_flux, lora)
    base = {name: p.clone() for name, p in fresh.transformer.named_parameters()}
    folder = export_lora(state, lora, tmp_path / "adapter", facts())

    fresh.load_lora_weights(folder)
    fresh.fuse_lora()
    fresh.unload_lora_weights()
    fused = dict(fresh.transformer.named_parameters())
    merge(model)
    paths = {key.partition(".lora_")[0] for key in state}
    assert len(paths) == {"attention": 14, "all-linear": 30}[targets]
    for path in paths:
        by_hand = alpha / rank * state[f"{path}.lora_B.weight"] @ state[f"{path}.lora_A.weight"]
        weight = fused[f"{path}.weight"]
        torch.testing.assert_close(weight, base[f"{path}.weight"] + by_hand, atol=1e-6, rtol=1e-6)
        ours = model.get_submodule(path).get_base_layer().weight
        torch.testing.assert_close(weight, ours, atol=1e-6, rtol=1e-6)
        assert not torch.equal(weight, base[f"{path}.weight"])
    for name, tensor in base.items():
        if name.removesuffix(".weight") not in paths:
            assert torch.equal(fused[name], tensor), name


def test_our_own_loader_reads_it_back_bitwise_with_its_alpha(
    tiny_flux, tmp_path, transformer, inputs, facts, trained
):
    lora = LoraSpec(4, DEV.lora_target_sets["attention"], alpha=2)
    model, state = trained(tiny_flux, lora)
    folder = export_lora(state, lora, tmp_path / "adapter", facts())
    loaded = load_adapter(transformer, folder, "lakes")
    assert loaded.ranks == (4,)
    again = lora_state(transformer, "lakes")
    assert all(torch.equal(again[key], state[key]) for key in state)
    with torch.no_grad():
        assert torch.equal(transformer(**inputs)[0], model(**inputs)[0])


def test_two_adapters_act_together_each_by_its_scale(tiny_flux, tmp_path, transformer, facts, trained):
    lora = LoraSpec(4, ("to_q",))
    folders = []
    for i in (1, 2):
        _, state = trained(tiny_flux, lora, seed=i)
        folders.append(export_lora(state, lora, tmp_path / str(i), facts()))
        load_adapter(transformer, folders[-1], f"a{i}")
    set_scales(transformer, {"a1": 0.5, "a2": 2.0})
    path = "transformer_blocks.1.attn.to_q"
    layer = transformer.get_submodule(path)
    before = layer.get_base_layer().weight.clone()
    expected = before.clone()
    for i, scale in ((1, 0.5), (2, 2.0)):
        state = lora_state(transformer, f"a{i}")
        expected += scale * state[f"{path}.lora_B.weight"] @ state[f"{path}.lora_A.weight"]
    merged = merge(transformer)
    torch.testing.assert_close(layer.get_base_layer().weight, expected, atol=1e-6, rtol=1e-6)
    merged.unmerge()
    assert torch.equal(layer.get_base_layer().weight, before)


def test_the_file_has_diffusers_keys_float32_and_alpha_in_its_metadata(tiny_flux, tmp_path, facts, trained):
    lora = LoraSpec(4, DEV.lora_target_sets["attention"], alpha=8)
    _, state = trained(tiny_flux, lora)
    folder = export_lora({k: t.bfloat16() for k, t in state.items()}, lora, tmp_path / "a", facts())
    assert {p.name for p in folder.iterdir()} == {"pytorch_lora_weights.safetensors", "README.md", "uhr.json"}
    with safe_open(folder / "pytorch_lora_weights.safetensors", "pt") as file:
        assert set(file.keys()) == {f"transformer.{key}" for key in state}
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float32}  # noqa: SIM118
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (metadata["transformer.r"], metadata["transformer.lora_alpha"]) == (4, 8)


def test_exporting_twice_gives_the_same_bytes_and_never_overwrites(tiny_flux, tmp_path, facts, trained):
    lora = LoraSpec(4, DEV.lora_target_sets["attention"])
    _, state = trained(tiny_flux, lora)
    one, *others = (export_lora(state, lora, tmp_path / str(i), facts()) for i in range(8))
    for path in one.iterdir():
        assert {path.read_bytes()} == {(other / path.name).read_bytes() for other in others}
    with pytest.raises(UserError, match="already contains an adapter"):
        export_lora(state, lora, one, facts())


def test_a_state_of_another_rank_than_its_spec_is_rejected(tiny_flux, tmp_path, facts, trained):
    _, state = trained(tiny_flux, LoraSpec(4, DEV.lora_target_sets["attention"]))
    with pytest.raises(AssertionError, match="rank"):
        export_lora(state, LoraSpec(8, DEV.lora_target_sets["attention"]), tmp_path / "a", facts())


def read_card(folder):
    _, head, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), body


@pytest.fixture
def write_card(tiny_flux, tmp_path, trained, facts):
    def write(**changes):
        lora = LoraSpec(4, DEV.lora_target_sets["attention"])
        _, state = trained(tiny_flux, lora)
        return read_card(export_lora(state, lora, tmp_path / "card", facts(**changes)))

    return write


def test_a_card_names_lineage_data_licences_and_what_the_base_forbids(write_card):
    head, body = write_card(
        spec=DEV,
        base_model="black-forest-labs/FLUX.1-dev@abc",
        surgeries=("rope: ntk 10",),
    )
    assert head["base_model"] == "black-forest-labs/FLUX.1-dev"
    assert 'from_pretrained("black-forest-labs/FLUX.1-dev", revision="abc", torch_dtype' in body
    assert "--model black-forest-labs/FLUX.1-dev@abc " in body
    assert (head["license"], head["license_name"]) == ("other", "flux-1-dev-non-commercial-license")
    assert head["license_link"].startswith("https://")
    assert {"lora", "text-to-image"} <= set(head["tags"])
    for text in ("12 images of the manifest `f00d`", "| CC0-1.0 | 7 |", "no licence for 5",
                  "forbids commercial use", "rope: ntk 10", "embedded 1", "| loss | 0.25 |"):  # fmt: skip
        assert text in body, text


def test_a_card_of_a_tiny_base_says_that_it_generates_nothing_and_claims_no_hub_id(write_card):
    head, body = write_card(licences={"CC0-1.0": 12})
    assert "base_model" not in head
    assert head["license"] == "apache-2.0"
    assert "random weights" in body
    assert "no licence for" not in body
    assert 'from_pretrained("path/to/the/model", torch_dtype' in body
    assert "--model path/to/the/model " in body


@pytest.mark.parametrize(("alpha", "stated"), [(4, False), (8, True)])
def test_a_card_mentions_the_metadata_where_alpha_is_not_the_rank(
    tiny_flux, tmp_path, facts, alpha, stated, trained
):
    lora = LoraSpec(4, DEV.lora_target_sets["attention"], alpha=alpha)
    _, state = trained(tiny_flux, lora)
    _, body = read_card(export_lora(state, lora, tmp_path / "card", facts()))
    assert ("set it to alpha / rank" in body) == stated


def test_the_record_holds_the_facts_for_machines(tiny_flux, tmp_path, facts, trained):
    lora = LoraSpec(4, DEV.lora_target_sets["attention"], alpha=2)
    _, state = trained(tiny_flux, lora)
    folder = export_lora(state, lora, tmp_path / "a", facts())
    record = json.loads((folder / "uhr.json").read_text())
    assert record["lora"] == {"rank": 4, "alpha": 2, "targets": list(DEV.lora_target_sets["attention"])}
    assert (record["manifest_id"], record["spec"], record["steps"]) == ("f00d", "tiny-flux1", 60)
    assert record["licences"] == {"CC0-1.0": 7, "none recorded": 5}
    from uhr.base.files import sha256_file

    assert record["sha256"] == sha256_file(folder / "pytorch_lora_weights.safetensors")


def test_a_readme_of_the_users_is_not_overwritten(tiny_flux, tmp_path, facts, trained):
    lora = LoraSpec(4, DEV.lora_target_sets["attention"])
    _, state = trained(tiny_flux, lora)
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"already contains something else \(README\.md\)"):
        export_lora(state, lora, tmp_path, facts())
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("README.md", "mine")]
