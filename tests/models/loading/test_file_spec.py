"""A single file's backbone is recognised by names and shapes, in every naming and at its real size."""

import json
import struct

import pytest
import torch

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.files.containers import stored_tensors
from uhr.models.loading.file_spec import candidates
from uhr.models.specs import registry


def sparse(path, shapes):
    """A safetensors file of these weights (such as 24 GB) that takes no space: a hole of zeros."""
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
    """The names and shapes of BFL's file of a spec that distinguish it from others."""
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


def test_a_backbone_of_another_shape_names_those_that_are_known(tmp_path):
    shapes = bfl(zoo.get("flux1-dev"))
    with pytest.raises(
        UserError, match=r"no spec has this backbone \(family=flux1, num_layers=19.* spec=NAME"
    ):
        candidates(sparse(tmp_path / "x.safetensors", shapes | {"img_in.weight": (3072, 384)}))


def test_shapes_of_gguf_come_in_the_order_of_the_others(tmp_path, monkeypatch):
    """GGUF's own reader names dimensions from the last; the package is an optional one."""
    import sys
    from types import SimpleNamespace

    class GGUFReader:
        def __init__(self, path):
            kind = SimpleNamespace(name="Q4_0")
            self.tensors = [SimpleNamespace(name="img_in.weight", shape=[64, 3072], tensor_type=kind)]

    monkeypatch.setitem(sys.modules, "gguf", SimpleNamespace(GGUFReader=GGUFReader, __spec__=object()))
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    (tensor,) = stored_tensors(tmp_path / "x.gguf").values()
    assert tensor.shape == (3072, 64)
