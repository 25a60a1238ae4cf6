"""Views and the hashes and places of weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from uhr.base.errors import UserError
from uhr.models.scores.images import View, as_tensor
from uhr.models.scores.weights import Weights, combined_hash, hash_of_files, missing, read_tensors


def test_a_view_limits_one_side_and_never_enlarges():
    assert View().size(4000, 3000) == (4000, 3000)
    assert View(longest=448).size(4000, 3000) == (448, 336)
    assert View(shortest=224).size(4000, 3000) == (298, 224)
    assert View(longest=448).size(300, 200) == (300, 200)
    assert View(longest=100).size(10_000, 3) == (100, 1)
    with pytest.raises(ValueError, match="both sides"):
        View(shortest=3, longest=4)


def test_a_view_is_within_one_level_of_pillow(images):
    view = View(longest=40, filter="bicubic")
    for image in images:
        height, width = image.shape[:2]
        size = view.size(width, height)
        expected = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        found = view.of(image).numpy()
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def test_a_view_is_made_on_the_device_of_the_image():
    image = torch.empty((64, 48, 3), dtype=torch.uint8, device="meta")
    for reverse in (False, True):
        found = View(longest=32).of(image, reverse)
        assert (found.shape, found.device.type) == ((32, 24, 3), "meta")


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((3, 4, 4), np.uint8),
     np.zeros((0, 4, 3), np.uint8)],
)  # fmt: skip
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ValueError, match="an image is uint8"):
        as_tensor(image)


def test_weights_are_a_path_a_hub_id_or_an_object_store(tmp_path):
    assert Weights.parse(tmp_path).fetch() == tmp_path
    hub = Weights.parse("org/name@v1.0:head/model.safetensors")
    assert (hub.repository, hub.revision, hub.file) == ("org/name", "v1.0", "head/model.safetensors")
    assert Weights.parse("org/name").revision is None
    assert missing(tmp_path) is None
    for name in (tmp_path / "nothing", "./nothing", "nothing.pth", "/no/where"):
        with pytest.raises(UserError, match="do not exist"):
            Weights.parse(name)
        assert "do not exist" in missing(name)


def test_the_hash_of_a_folder_is_over_names_and_bytes(tmp_path):
    def folder(name, **files):
        (tmp_path / name / "sub").mkdir(parents=True)
        for file, text in files.items():
            (tmp_path / name / file.replace("__", "/")).write_text(text)
        return hash_of_files(tmp_path / name)

    first = folder("a", model="x", sub__config="y")
    assert folder("b", model="x", sub__config="y") == first
    (tmp_path / "b" / ".cache").mkdir()
    (tmp_path / "b" / ".cache" / "lock").write_text("z")
    assert hash_of_files(tmp_path / "b") == first
    assert (
        len({first, folder("c", model="y", sub__config="x"), folder("d", config="x", sub__config="y")}) == 3
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is empty"):
        hash_of_files(tmp_path / "empty")
    assert combined_hash(["a", "b"]) != combined_hash(["b", "a"])


def test_tensors_are_read_from_both_kinds_of_file_and_no_code_is_run(tmp_path):
    from safetensors.torch import save_file

    tensors = {"weight": torch.arange(6.0).reshape(2, 3)}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save({"state_dict": tensors}, tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        assert torch.equal(read_tensors(tmp_path / name)["weight"], tensors["weight"])
    torch.save(pytest.raises, tmp_path / "code.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "short.safetensors").write_bytes(b"abc")
    for name, message in (
        ("code.pth", "cannot be read"),
        ("list.pth", "no mapping"),
        ("short.safetensors", "read"),
    ):
        with pytest.raises(UserError, match=message):
            read_tensors(tmp_path / name)


def test_weights_in_an_object_store_are_copied_once(s3):
    import boto3

    client = boto3.client("s3")
    for name, body in (
        ("clip/config.json", b"{}"),
        ("clip/deep/model.safetensors", b"123"),
        ("clipper", b"x"),
    ):
        client.put_object(Bucket=s3.bucket, Key=name, Body=body)
    weights = Weights.parse(f"s3://{s3.bucket}/clip")
    folder = weights.fetch()
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "config.json",
        "deep/model.safetensors",
    ]
    first = hash_of_files(folder)
    s3.requests.clear()
    assert weights.fetch() == folder
    assert not [request for request in s3.requests if "model.safetensors" in str(request)]
    client.put_object(Bucket=s3.bucket, Key="clip/config.json", Body=b"[]")
    assert hash_of_files(weights.fetch()) != first
    file = Weights.parse(f"s3://{s3.bucket}/clip/deep/model.safetensors").fetch()
    assert file.read_bytes() == b"123"
    with pytest.raises(UserError, match="contains nothing"):
        Weights.parse(f"s3://{s3.bucket}/nowhere").fetch()


def test_a_text_file_is_refused_as_no_pytorch_file(tmp_path):
    (tmp_path / "text.pt").write_text("root:x:0:0:root:/root:/bin/bash\n")
    with pytest.raises(UserError, match=r"text\.pt cannot be read \(it is no PyTorch file\)"):
        read_tensors(tmp_path / "text.pt")
