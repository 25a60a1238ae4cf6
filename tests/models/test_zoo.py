import json
import shutil
import socket
import subprocess
import sys

import pytest
import torch

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.loading.hashes import hash_of


def test_importing_the_zoo_and_every_spec_loads_neither_torch_nor_diffusers():
    code = (
        "import sys; from uhr.models import zoo, cli, show; [zoo.get(n) for n in zoo.names()];"
        "print(sorted(set(sys.modules) & {'torch', 'diffusers', 'transformers', 'numpy', 'safetensors'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_name_that_nothing_bears_gives_the_nearest():
    with pytest.raises(UserError, match="unknown model spec 'flux1-def': did you mean flux1-dev"):
        zoo.get("flux1-def")


def test_guidance_licence_and_lengths_are_properties_of_the_spec():
    dev, schnell = zoo.get("flux1-dev"), zoo.get("flux1-schnell")
    assert (dev.guidance, dev.text_lengths["t5"], dev.licence.commercial) == ("embedded", 512, False)
    assert (schnell.guidance, schnell.text_lengths["t5"], schnell.licence.commercial) == ("none", 256, True)


def test_specs_say_what_their_classes_say():
    import diffusers

    for name in zoo.names():
        spec = zoo.get(name)
        cls = getattr(diffusers, spec.transformer_class)
        assert cls._repeated_blocks == [spec.double_block, spec.single_block]
        pipeline = getattr(diffusers, spec.pipeline_class)
        expected = set(pipeline._get_signature_keys(pipeline)[0]) - set(pipeline._optional_components)
        assert expected == set(spec.components)


def test_flux_devs_geometry_is_that_of_diffusers_defaults():
    from inspect import signature

    from diffusers import FluxTransformer2DModel

    defaults = {k: p.default for k, p in signature(FluxTransformer2DModel.__init__).parameters.items()}
    for key, value in zoo.get("flux1-dev").transformer_config.items():
        if key != "guidance_embeds":
            assert defaults[key] == value, key


def test_klein_9b_has_nine_billion_parameters_and_4b_four():
    import diffusers

    for name, billions in (("flux2-klein-9b", 9), ("flux2-klein-4b", 4)):
        with torch.device("meta"):
            model = diffusers.Flux2Transformer2DModel(**zoo.get(name).transformer_config)
        assert round(sum(p.numel() for p in model.parameters()) / 1e9) == billions


def test_every_lora_target_is_there_and_both_kinds_of_blocks_have_some():
    import diffusers

    for name in zoo.names():
        spec = zoo.get(name)
        with torch.device("meta"):
            model = getattr(diffusers, spec.transformer_class)(**spec.transformer_config)
        kinds = {f".{path}": type(module) for path, module in model.named_modules()}
        for targets in spec.lora_target_sets.values():
            hits = {t: [path for path in kinds if path.endswith(f".{t}")] for t in targets}
            assert all(hits.values()), (name, hits)
            paths = [path for found in hits.values() for path in found]
            assert {kinds[path] for path in paths} == {torch.nn.Linear}
            assert {path.startswith(".single") for path in paths} == {True, False}


def test_guidance_and_licence_of_klein_are_those_of_its_variant():
    distilled, base = zoo.get("flux2-klein-9b"), zoo.get("flux2-klein-base-9b")
    assert (distilled.guidance, distilled.guidance_scale, distilled.steps) == ("none", None, 4)
    assert (base.guidance, base.guidance_scale, base.steps) == ("cfg", 4.0, 50)
    assert [zoo.get(f"flux2-klein-{size}b").licence.commercial for size in (4, 9)] == [True, False]


def test_a_folder_is_recognised_by_its_configuration(tiny_flux, tiny_flux2):
    assert zoo.recognise(tiny_flux).name == "tiny-flux1"
    assert zoo.recognise(tiny_flux2).name == "tiny-flux2"


@pytest.mark.parametrize("name", [name for name in zoo.names() if not zoo.get(name).tiny])
def test_every_published_configuration_is_recognised_as_itself(name, tmp_path):
    spec = zoo.get(name)
    index = {"_class_name": spec.pipeline_class, **spec.pipeline_config}
    (tmp_path / "transformer").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(dict(spec.transformer_config)))
    assert zoo.recognise(tmp_path) is spec


def test_a_loaded_pipeline_knows_whether_it_is_distilled(tiny_flux2, tmp_path):
    assert zoo.load_pipeline(tiny_flux2).config.is_distilled


def fake(folder, pipeline="FluxPipeline", **transformer):
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    (folder / "transformer" / "config.json").write_text(json.dumps(transformer))
    return folder


DEV = dict(zoo.get("flux1-dev").transformer_config)


@pytest.mark.parametrize(("embeds", "name"), [(True, "flux1-dev"), (False, "flux1-schnell")])
def test_dev_and_schnell_are_distinguished_by_their_guidance_embedding(tmp_path, embeds, name):
    assert zoo.recognise(fake(tmp_path, **{**DEV, "guidance_embeds": embeds})).name == name


def test_an_unknown_geometry_is_an_error_unless_the_spec_is_given(tmp_path):
    folder = fake(tmp_path, **{**DEV, "num_layers": 8})
    with pytest.raises(UserError, match=r"no spec has this transformer \(.*num_layers=8"):
        zoo.open_model(folder)
    assert zoo.open_model(folder, spec="flux1-dev").spec.name == "flux1-dev"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nowhere", "is not there"),
        (lambda p: "./nowhere", "is not there"),
        (lambda p: "not a model", "is not there"),
        (
            lambda p: "flux1-dev",
            "name of a spec, not of weights: give a folder, or its hub id black-forest-labs",
        ),
        (lambda p: "tiny-flux1", "make one: `uhr models make-tiny DIR --spec tiny-flux1`"),
        (lambda p: p, r"not a diffusers checkpoint \(no .*model_index.json\): expected model_index.json"),
        (lambda p: (p / "x.safetensors").write_bytes(b"") or p / "x.safetensors", "is empty"),
        (lambda p: fake(p, pipeline="StableDiffusionPipeline"), "no spec is a 'StableDiffusionPipeline'"),
    ],
)
def test_what_is_no_model_is_one_clear_line(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        zoo.open_model(make(tmp_path))


def test_a_broken_index_is_one_clear_line(tmp_path):
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        zoo.open_model(tmp_path)


def test_each_component_loads_from_a_folder_that_has_nothing_else(tiny_flux, tmp_path):
    parts = {
        "transformer": zoo.load_transformer,
        "vae": zoo.load_vae,
    }
    for name, load in parts.items():
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(tiny_flux / "model_index.json", folder)
        for part in {name, "transformer"}:
            shutil.copytree(tiny_flux / part, folder / part)
        if name != "transformer":
            (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
        model = load(folder)
        assert not model.training
        assert next(model.parameters()).dtype == torch.float32


def test_a_missing_component_is_one_clear_line(tiny_flux, tmp_path):
    folder = shutil.copytree(tiny_flux, tmp_path / "m")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"^vae of .* cannot be loaded"):
        zoo.load_vae(folder)
    with pytest.raises(UserError, match="unknown component 'image_encoder'"):
        zoo.load_component(folder, "image_encoder")


def test_pickled_weights_are_never_opened(tiny_flux, tmp_path):
    folder = shutil.copytree(tiny_flux, tmp_path / "m")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(
        UserError, match=r"is stored as diffusion_pytorch_model.bin, a pickle: it can run code"
    ):
        zoo.load_vae(folder)


def test_dtype_and_device_are_as_requested_and_unknown_ones_are_named(tiny_flux):
    assert zoo.load_transformer(tiny_flux, dtype="bfloat16").dtype == torch.bfloat16
    assert zoo.load_text_encoders(tiny_flux, dtype=torch.float16).text_encoder_2.dtype == torch.float16
    with pytest.raises(UserError, match="unknown dtype 'bf16'"):
        zoo.load_vae(tiny_flux, dtype="bf16")
    with pytest.raises(UserError, match="'gpu' is not a device"):
        zoo.load_vae(tiny_flux, device="gpu")


def test_a_cuda_device_that_is_not_there_is_one_clear_line(tiny_flux, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no GPU"):
        zoo.load_vae(tiny_flux, device="cuda")
    assert zoo.pick_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert zoo.pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="'cuda:2' is not available: torch finds 2, counted from 0"):
        zoo.pick_device("cuda:2")


def test_a_local_folder_never_touches_the_network(tiny_flux, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    pipeline = zoo.load_pipeline(tiny_flux)
    assert type(pipeline).__name__ == "FluxPipeline"


def test_loading_draws_no_progress_bar_and_leaves_the_libraries_as_they_were(tiny_flux, capfd):
    from diffusers.utils import logging as diffusers_logging

    zoo.load_pipeline(tiny_flux)
    out, err = capfd.readouterr()
    assert "%" not in out + err
    assert diffusers_logging.is_progress_bar_enabled()


def test_weights_have_a_hash_of_their_own_whatever_the_folder_is_called(tiny_flux, tmp_path):
    copy = shutil.copytree(tiny_flux, tmp_path / "elsewhere")
    for component in ("transformer", "vae", "tokenizer"):
        assert hash_of(copy / component) == hash_of(tiny_flux / component)
    assert hash_of(copy / "vae") != hash_of(copy / "transformer")
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    before = hash_of(copy / "vae")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert hash_of(copy / "vae") != before


class FakeHub:
    """Replaces `huggingface_hub.snapshot_download`: returns a folder and keeps the requests."""

    def __init__(self, folder):
        self.folder, self.requests = folder, []

    def __call__(self, repository, *, revision, allow_patterns, ignore_patterns, local_files_only, local_dir):
        assert not local_files_only
        assert local_dir is None
        self.requests.append((repository, revision, tuple(allow_patterns)))
        return str(self.folder)


def test_of_a_hub_repository_only_the_requested_parts_are_fetched(tiny_flux, monkeypatch):
    import huggingface_hub

    hub = FakeHub(tiny_flux)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    zoo.load_vae("org/model@v2")
    ((repository, revision, patterns),) = hub.requests
    assert (repository, revision) == ("org/model", "v2")
    known = ("transformer/config.json", "scheduler/scheduler_config.json", "vae/config.json")
    assert patterns == ("model_index.json", "vae/*", *known)
    hub.requests.clear()
    assert type(zoo.load_pipeline("org/model")).__name__ == "FluxPipeline"
    assert [revision for _, revision, _ in hub.requests] == [None, tiny_flux.name]
    assert {"transformer/*", "vae/*", "text_encoder_2/*"} <= set(hub.requests[-1][2])


def test_a_branch_that_moves_on_is_left_at_its_commit(tiny_flux, tmp_path, monkeypatch):
    def hub(repository, *, revision, **_):
        folder = tmp_path / (revision or hub.main)
        hub.main = "bbbb"
        if not folder.exists():
            folder.symlink_to(tiny_flux)
        return str(folder)

    hub.main = "aaaa"
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    model = zoo.open_model("org/model")
    loaded = model.fetched(model.spec.components)
    assert (model.revision, loaded.revision) == ("aaaa", "aaaa")
    assert loaded.source.exact == "org/model@aaaa"
    assert zoo.open_model(loaded.source.exact).revision == "aaaa"


def test_a_gated_repository_says_how_to_get_in(monkeypatch):
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def gated(*_, **__):
        raise GatedRepoError("gated", response=httpx.Response(403, request=httpx.Request("GET", "https://x")))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", gated)
    with pytest.raises(
        UserError, match=r"behind a licence: accept it on .*org/model, then run `hf auth login`"
    ):
        zoo.open_model("org/model")


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch, tmp_path):
    from huggingface_hub import constants

    from uhr.base.hub import described, snapshot

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the port `discard`: nothing answers
    says = r"'org/model' .*the hub.*: check the path, or the "
    with pytest.raises(UserError, match=says):
        described("org/model", None)
    with pytest.raises(UserError, match=says):
        snapshot("org/model", None, ["*"], into=tmp_path / "weights")


def test_a_full_disk_under_the_hubs_cache_is_no_wrong_id(monkeypatch):
    import errno

    import huggingface_hub

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(UserError, match=r"cannot take 'org/model' \(No space left on device\): free space"):
        zoo.open_model("org/model")


def test_a_hub_out_of_reach_is_one_clear_line(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_, **__):
        raise LocalEntryNotFoundError("no connection\nand no cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match="neither a folder here nor in the hub's cache"):
        zoo.open_model("org/model")
