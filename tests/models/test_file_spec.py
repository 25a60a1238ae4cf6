"""A lone file's backbone is told by names and shapes, in every naming and at its real size."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from uhr.base.errors import UserError
from uhr.models import registry, zoo
from uhr.models.file_spec import candidates, read_shapes


def sparse(path, shapes):
    """A safetensors file of these weights, 24 GB say, that takes no room: zeros that are nowhere."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def bfl(spec):
    """The names and shapes of BFL's file of a spec that tell it from others."""
    config = spec.transformer_config
    width = config["num_attention_heads"] * config["attention_head_dim"]
    text = config.get("joint_attention_dim", 4096)
    shapes = {"img_in.weight": (width, config["in_channels"]), "txt_in.weight": (width, text)}
    for kind, count in (("double", config["num_layers"]), ("single", config["num_single_layers"])):
        shapes |= {f"{kind}_blocks.{i}.some.weight": (width, width) for i in range(count)}
    if config["guidance_embeds"]:
        shapes["guidance_in.in_layer.weight"] = (width, 256)
    if spec.family == "flux2":
        shapes["double_stream_modulation_img.lin.weight"] = (6 * width, width)
    return shapes


def diffusers(spec):
    """Every name and shape of a spec's transformer."""
    import diffusers

    with torch.device("meta"):
        model = getattr(diffusers, spec.transformer_class)(**spec.transformer_config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("naming", [bfl, diffusers])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_every_spec_is_recognised_in_every_naming(name, naming, prefix, tmp_path):
    spec = zoo.get(name)
    shapes = {prefix + key: shape for key, shape in naming(spec).items()}
    if prefix:
        # a whole checkpoint: the other parts are passed over
        shapes["vae.encoder.conv_in.weight"] = (128, 3, 3, 3)
    found = candidates(sparse(tmp_path / "x.safetensors", shapes))
    assert spec in found
    # only what an index says may be left open
    assert {each.transformer_config["num_layers"] for each in found} == {
        spec.transformer_config["num_layers"]
    }
    assert {each.guidance == "embedded" for each in found} == {spec.guidance == "embedded"}
    assert len(found) == 1 or spec.family == "flux2"


def test_what_is_no_backbone_is_one_clear_line(tmp_path, adapter):
    file = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match="is an adapter: give it with --adapter"):
        candidates(next(adapter.glob("*.safetensors")))
    save_file({"encoder.conv_in.weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match=r"holds no FLUX backbone \(its first weight is encoder"):
        candidates(file)
    shapes = bfl(zoo.get("flux1-dev"))
    with pytest.raises(UserError, match=r"no spec has this backbone \(family=flux1, num_layers=19"):
        candidates(sparse(file, shapes | {"img_in.weight": (3072, 384)}))
    with pytest.raises(UserError, match="weights with scales of ComfyUI's"):
        candidates(sparse(file, shapes | {"double_blocks.0.some.scale_weight": (1,)}))
    file.write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be read"):
        candidates(file)
    with pytest.raises(UserError, match="pickles are never opened"):
        candidates(file.rename(tmp_path / "x.ckpt"))


def test_shapes_of_gguf_come_in_the_order_of_the_others(tmp_path, monkeypatch):
    """GGUF's own reader names dimensions from the last; the package is an optional one."""
    import sys
    from types import SimpleNamespace

    class GGUFReader:
        def __init__(self, path):
            self.tensors = [SimpleNamespace(name="img_in.weight", shape=[64, 3072])]

    monkeypatch.setitem(sys.modules, "gguf", SimpleNamespace(GGUFReader=GGUFReader, __spec__=object()))
    (tmp_path / "x.gguf").write_bytes(b"")
    assert read_shapes(tmp_path / "x.gguf") == {"img_in.weight": (3072, 64)}
