"""Rows with equal keys are copied from folders that were encoded before."""

import shutil

import pytest
import torch

from uhr.base.errors import UserError
from uhr.cli import main
from uhr.manifests.manifest import Manifest
from uhr.train.data.reader import EncodedData
from uhr.train.encode.config import EncodeConfig
from uhr.train.encode.run import encode
from uhr.train.encode.work.images import ImageWork
from uhr.train.encode.work.texts import TextWork

SIZE = {"height": 140, "width": 150}
NAMES = ("a", "b", "c", "d")


@pytest.fixture
def four(tmp_path, manifest_of, tiny_flux):
    """(images, manifest) of four images, which are encoded in `tmp_path/four`."""
    images = [{"name": f"{name}.png", **SIZE, "caption": name} for name in NAMES]
    manifest = manifest_of(tmp_path / "of four", images)
    encode(manifest.path, str(tiny_flux), tmp_path / "four", EncodeConfig(), "cpu")
    return images, manifest


@pytest.fixture
def with_fifth(four, manifest_of, tmp_path):
    """The manifest of the four images and a fifth one."""
    shutil.copytree(tmp_path / "of four" / "pictures", tmp_path / "of five" / "pictures")
    return manifest_of(tmp_path / "of five", [*four[0], {"name": "e.png", **SIZE, "caption": "e"}])


def counted(monkeypatch, cls, name):
    """A list that grows by a call's argument whenever the method is called."""
    calls, real = [], getattr(cls, name)
    monkeypatch.setattr(cls, name, lambda self, what: calls.append(what) or real(self, what))
    return calls


def rows_by_uri(folder):
    data = EncodedData.open(folder)
    found = {}
    for bucket, info in enumerate(data.buckets):
        for row in range(info.rows):
            one = data.read(bucket, [row])
            found[one.uris[0]] = (one.mean, one.std, one.texts["t5"], one.texts["pooled"])
    return found


def test_only_what_is_new_is_encoded_and_the_rest_is_copied(with_fifth, tiny_flux, tmp_path, monkeypatch):
    encoded = counted(monkeypatch, ImageWork, "_moments")
    embedded = counted(monkeypatch, TextWork, "_embed")
    arguments = [
        "train", "encode", with_fifth.path, "--model", tiny_flux, "--out", tmp_path / "five", "--reuse",
        tmp_path / "four", "--device", "cpu",
    ]  # fmt: skip
    assert main([str(argument) for argument in arguments]) == 0
    assert [len(waiting) for waiting in encoded] == [1]
    assert embedded == ["e"]
    old, new = rows_by_uri(tmp_path / "four"), rows_by_uri(tmp_path / "five")
    assert set(new) == {*old, "e.png"}
    for uri, tensors in old.items():
        assert all(torch.equal(one, two) for one, two in zip(tensors, new[uri], strict=True))
    # it is whole: the old folder is no longer needed
    shutil.rmtree(tmp_path / "four")
    assert rows_by_uri(tmp_path / "five").keys() == new.keys()


def test_the_command_says_how_many_rows_were_taken_over(with_fifth, tiny_flux, tmp_path, capsys):
    config = EncodeConfig()
    info, _ = encode(
        with_fifth.path, str(tiny_flux), tmp_path / "five", config, "cpu", reuse=[tmp_path / "four"]
    )
    assert (info.counts["reused"], info.counts["reused_captions"]) == (4, 5)
    from uhr.train.encode.stored.encoded import print_encoded

    print_encoded(info)
    assert "taken over: 4 images and 5 captions" in capsys.readouterr().out


def test_no_model_is_loaded_where_every_key_is_known(four, tiny_flux, tmp_path, monkeypatch):
    def must_not_run(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("uhr.models.zoo.load_vae", must_not_run)
    monkeypatch.setattr("uhr.models.zoo.load_text_encoders", must_not_run)
    # other buckets to choose from, but each image goes to the same one
    config = EncodeConfig(aspects=("1/1",), enlarge=True)
    info, _ = encode(
        four[1].path, str(tiny_flux), tmp_path / "again", config, "cpu", reuse=[tmp_path / "four"]
    )
    assert info.counts["reused"] == 4


@pytest.mark.parametrize(
    ("change", "images", "captions"),
    [
        ({"dtype": "float32"}, 0, 5),
        ({"text_dtype": "float32"}, 4, 0),
        ({"tiling": "none"}, 0, 5),
        ({"resolution": 64}, 0, 5),
        ({"guide": 2}, 0, 5),
        ({"mask": "alpha"}, 0, 5),
    ],
)
def test_nothing_is_taken_over_that_was_encoded_otherwise(
    four, tiny_flux, tmp_path, change, images, captions
):
    info, _ = encode(
        four[1].path,
        str(tiny_flux),
        tmp_path / "again",
        EncodeConfig(**change),
        "cpu",
        reuse=[tmp_path / "four"],
    )
    assert (info.counts["reused"], info.counts["reused_captions"]) == (images, captions)


def test_an_edited_image_is_never_taken_from_an_old_folder(four, tiny_flux, tmp_path, save, blobs):
    _, manifest = four
    save(manifest.root / "b.png", blobs(140, 150, 77))
    info, _ = encode(
        manifest.path, str(tiny_flux), tmp_path / "again", EncodeConfig(), "cpu", reuse=[tmp_path / "four"]
    )
    assert info.counts["reused"] == info.counts["encoded"] == 3
    failed = Manifest.open(tmp_path / "again").table(["uri", "reason"], where="status = 'failed'")
    assert failed.to_pylist() == [{"uri": "b.png", "reason": "changed"}]


def test_a_damaged_or_foreign_folder_is_an_error_that_names_it(four, tiny_flux, tmp_path):
    _, manifest = four
    with pytest.raises(UserError, match=r"nowhere contains no encoded data"):
        encode(
            manifest.path,
            str(tiny_flux),
            tmp_path / "again",
            EncodeConfig(),
            "cpu",
            reuse=[tmp_path / "nowhere"],
        )
    file = next((tmp_path / "four" / "latents").iterdir())
    mean = EncodedData.open(tmp_path / "four").read(0, [2]).mean[0].view(torch.uint8).numpy().tobytes()
    contents = bytearray(file.read_bytes())
    contents[contents.index(mean) + 50] ^= 1
    file.write_bytes(contents)
    with pytest.raises(UserError, match=r"four/latents/.*row group 0, row 0.*--reuse"):
        encode(
            manifest.path,
            str(tiny_flux),
            tmp_path / "again",
            EncodeConfig(),
            "cpu",
            reuse=[tmp_path / "four"],
        )
