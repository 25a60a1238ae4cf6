"""The prompt in an image of uhr, ComfyUI or A1111's web UI; what is hostile or unknown counts as none."""

import json
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from uhr.models.generate import found_prompt
from uhr.models.generate.found_prompt import prompt_of

pytestmark = pytest.mark.usefixtures("short_prompts")

A1111 = """a lake at dawn, (mist:1.2) <lora:style:0.8>
second line
Negative prompt: people,
text
Steps: 20, Sampler: Euler, CFG scale: 1, Seed: 5, Size: 64x64, Model: flux1-dev, Version: f2.0"""

FLUX_GRAPH = {
    "5": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["50", 0], "clip": ["11", 0]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["13", 0], "vae": ["10", 0]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "images": ["8", 0]}},
    "10": {"class_type": "VAELoader", "inputs": {"vae_name": "ae.safetensors"}},
    "11": {"class_type": "DualCLIPLoader", "inputs": {"clip_name1": "t5.safetensors", "type": "flux"}},
    "13": {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {"noise": ["25", 0], "guider": ["22", 0], "sampler": ["16", 0], "latent_image": ["5", 0]},
    },
    "16": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
    "22": {"class_type": "BasicGuider", "inputs": {"model": ["12", 0], "conditioning": ["26", 0]}},
    "25": {"class_type": "RandomNoise", "inputs": {"noise_seed": 1}},
    "26": {"class_type": "FluxGuidance", "inputs": {"guidance": 3.5, "conditioning": ["6", 0]}},
    "50": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "a fox in the snow"}},
}
"""ComfyUI's example workflow for FLUX.1-dev, with the prompt in a node of its own."""

K_GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {"seed": 1, "cfg": 1, "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]},
    },
    "6": {"class_type": "CLIPTextEncodeFlux", "inputs": {"clip_l": "short", "t5xxl": "a long text"}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "ugly"}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
}


def png(path, **texts):
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", (64, 64), (90, 120, 150)).save(path, pnginfo=info)
    return path


def test_a1111s_text_is_read_without_negative_prompt_and_settings(tmp_path):
    found = prompt_of(png(tmp_path / "a.png", parameters=A1111))
    assert (found.text, found.source) == (
        "a lake at dawn, (mist:1.2) <lora:style:0.8>\nsecond line",
        "AUTOMATIC1111",
    )


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_so_is_that_in_the_exif_of_other_formats(suffix, tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + A1111.encode("utf-16-be")
    Image.new("RGB", (64, 64)).save(tmp_path / f"a.{suffix}", exif=exif)
    assert prompt_of(tmp_path / f"a.{suffix}").text.startswith("a lake at dawn")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"sampler": "euler", "prompt": "a lake"}', "a lake"),
        (b'{"prompt": "not of uhr"}', None),
        (b'{"sampler": ', None),
        (b"\xff", None),
    ],
)
def test_a_record_next_to_the_image_serves_where_the_file_has_none(content, expected, tmp_path):
    image = png(tmp_path / "a.png")
    (tmp_path / "a.json").write_bytes(content)
    found = prompt_of(image)
    assert (found and found.text) == expected
    png(image, parameters=A1111)
    assert prompt_of(image).source == "AUTOMATIC1111"


def test_comfyuis_graph_is_followed_from_the_sampler_to_the_text(tmp_path):
    found = prompt_of(png(tmp_path / "a.png", prompt=json.dumps(FLUX_GRAPH), workflow="{}"))
    assert (found.text, found.source, found.ambiguous) == ("a fox in the snow", "ComfyUI", False)
    found = prompt_of(png(tmp_path / "b.png", prompt=json.dumps(K_GRAPH)))
    assert (found.text, found.ambiguous) == ("a long text", False)


def test_of_several_samplers_the_last_one_counts_and_it_is_said(tmp_path):
    graph = {**K_GRAPH, "4": {"class_type": "KSampler", "inputs": {"positive": ["2", 0]}}}
    graph["2"] = {"class_type": "CLIPTextEncode", "inputs": {"text": "the first pass"}}
    graph["3"]["inputs"]["latent_image"] = ["4", 0]
    found = prompt_of(png(tmp_path / "a.png", prompt=json.dumps(graph)))
    assert (found.text, found.ambiguous) == ("a long text", True)


CYCLE = {
    "1": {"class_type": "KSampler", "inputs": {"positive": ["2", 0], "latent_image": ["1", 0]}},
    "2": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["2", 0], "text": ["2", 0]}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
}


@pytest.mark.parametrize(
    "texts",
    [
        {},
        {"prompt": "["},
        {"prompt": "[" * 100_000},
        {"prompt": "[1, 2]"},
        {"prompt": json.dumps(CYCLE)},
        {"prompt": json.dumps({"1": {"class_type": ["KSampler"], "inputs": 3}, "2": None})},
        {"prompt": json.dumps({"1": {"class_type": "KSampler", "inputs": {"positive": ["9", 0]}}})},
        {"prompt": json.dumps({"1": {"class_type": "KSampler", "inputs": {"positive": "x" * 30_000}}})},
        {"prompt": "a text of somebody"},
        {"parameters": "a text without settings"},
        {"parameters": "Steps: 20, Sampler: Euler"},
        {"uhr": '{"sampler": "euler", "prompt": 3}'},
    ],
)
def test_what_is_not_understood_is_no_prompt(texts, tmp_path):
    assert prompt_of(png(tmp_path / "a.png", **texts)) is None


def test_a_text_that_unpacks_to_more_than_memory_is_no_prompt(tmp_path):
    file = png(tmp_path / "a.png")
    data = file.read_bytes()
    bomb = b"parameters\0\0" + zlib.compress(b"x" * (1 << 26), 9)
    chunk = struct.pack(">I", len(bomb)) + b"zTXt" + bomb + struct.pack(">I", zlib.crc32(b"zTXt" + bomb))
    file.write_bytes(data[:33] + chunk + data[33:])
    assert prompt_of(file) is None


json_values = st.recursive(
    st.none() | st.integers() | st.text(max_size=8) | st.sampled_from(["1", "2", "KSampler", "positive"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["1", "2", "class_type", "inputs", "positive", "text", "guider"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=25)
@given(json_values)
def test_no_graph_crashes(tree):
    found = found_prompt._of_graph(json.dumps(tree))
    assert found is None or found.text


def test_the_command_takes_it_and_says_so(uhr, tiny_flux, tmp_path):
    image = png(tmp_path / "a.png", prompt=json.dumps(FLUX_GRAPH))
    call = ("sdedit", "--model", tiny_flux, "--image", image, "--scale", 2, "--steps", 5, "--device", "cpu")
    found = uhr(*call, "--out", tmp_path / "b.png", "--json")
    assert json.loads(found.out)["prompt"] == "a fox in the snow"
    assert f"note: prompt of ComfyUI in {image}: a fox in the snow" in found.err
    # its own record serves as well, and what the user gives counts
    found = uhr(*call[:3], "--image", tmp_path / "b.png", *call[5:], "--out", tmp_path / "c.png", "--json")
    assert json.loads(found.out)["prompt"] == "a fox in the snow"
    given = uhr(*call, "--prompt", "mine", "--out", tmp_path / "d.png", "--json")
    assert json.loads(given.out)["prompt"] == "mine"
    assert "note: prompt" not in given.err
    bare = png(tmp_path / "bare.png")
    assert "--prompt TEXT is missing" in uhr(*call[:4], bare, "--out", tmp_path / "e.png", code=1).err
