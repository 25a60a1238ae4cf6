"""Where one image goes: found out before anything is loaded."""

import json
import re
from typing import get_args

import boto3
import pytest
from PIL import Image

from uhr.base.console import counted
from uhr.base.errors import UserError
from uhr.cli import main
from uhr.models.generate import record
from uhr.models.generate.target import Target
from uhr.models.samplers import SAMPLERS, find_sampler
from uhr.sample import options as sample_options

pytestmark = pytest.mark.usefixtures("short_prompts")


def euler(model, out, *more, sampler="euler"):
    arguments = ("sample", sampler, "--model", model, "--prompt", "a", "--out", out, "--size", "64x64")
    return [str(argument) for argument in (*arguments, "--steps", "1", "--device", "cpu", *more)]


def refused(capsys, arguments):
    """The one line; nothing was loaded before it."""
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert "unexpected" not in line
    return line


def test_one_image_goes_to_a_bucket(tiny_flux, s3, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = f"s3://{s3.bucket}/set/lake.png"
    for seed in (1, 2):
        assert main(euler(tiny_flux, out, "--seed", seed)) == 0
        assert capsys.readouterr().out.startswith(f"{out}: 64x64")
    client = boto3.client("s3")
    found = [each["Key"] for each in client.list_objects_v2(Bucket=s3.bucket)["Contents"]]
    assert found == ["set/lake.json", "set/lake.png"]
    for name in found:
        client.download_file(s3.bucket, name, str(tmp_path / name.removeprefix("set/")))
    assert record.read_record(tmp_path / "lake.png")["seed"] == 2
    assert json.loads((tmp_path / "lake.json").read_text())["seed"] == 2
    assert s3.puts("set/lake")[-2:] == [f"/{s3.bucket}/set/lake.png", f"/{s3.bucket}/set/lake.json"]
    assert not (tmp_path / "s3:").exists()


def test_a_bucket_that_cannot_take_it_is_rejected_before_loading(tiny_flux, s3, capsys):
    assert "there is no such bucket" in refused(capsys, euler(tiny_flux, "s3://no-such-bucket-here/x.png"))
    assert "names no file in a bucket" in refused(capsys, euler(tiny_flux, "s3://x.png"))
    assert "is not a PNG, JPEG or WebP" in refused(capsys, euler(tiny_flux, f"s3://{s3.bucket}/x.gif"))
    boto3.client("s3").put_object(Bucket=s3.bucket, Key="x.json", Body=b'{"mine": 1}')
    assert "x.json was not written by uhr" in refused(capsys, euler(tiny_flux, f"s3://{s3.bucket}/x.png"))


@pytest.mark.parametrize("place", ["file/x.png", "file/deep/x.png", "/proc/x/y.png"])
def test_where_nothing_can_be_written_is_reported_before_loading(
    place, tiny_flux, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert "nothing can be written to" in refused(capsys, euler(tiny_flux, place))


def test_so_is_where_previews_cannot(tiny_flux, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    call = euler(tiny_flux, tmp_path / "x.png", "--previews", tmp_path / "file", sampler="sdedit")
    assert "nothing can be written to" in refused(capsys, call)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_looking_whether_it_can_be_written_leaves_nothing(tmp_path):
    Target.of(str(tmp_path / "a" / "b" / "x.png")).check()
    assert list(tmp_path.iterdir()) == []


def test_what_a_disk_rejects_later_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    image = Image.new("RGB", (8, 8))
    with pytest.raises(UserError, match=r"x\.png cannot be written \("):
        record.write(tmp_path / "file" / "x.png", image, {"uhr": "1"})
    with pytest.raises(UserError, match="cannot be written"):
        record.write_stages(tmp_path / "file", "x", [("base", image)])


@pytest.mark.parametrize("option", ["image", "previews", "transformer", "vae", "prompts"])
def test_a_url_where_a_file_is_required_is_named_as_it_was_written(option, tiny_flux, tmp_path, capsys):
    line = refused(capsys, euler(tiny_flux, tmp_path / "x.png", f"--{option}", "s3://buck/set1"))
    assert re.search(rf"--{option} s3://buck/set1 is a URL, not a path: give a path of this machine", line)


def test_a_repeat_is_written_here(tmp_path, capsys):
    call = ["sample", "--repeat", str(tmp_path / "x.png"), "--out", "s3://buck/x.png"]
    assert "--out s3://buck/x.png is a URL, not a path" in refused(capsys, call)


def test_the_help_says_how_many_times_an_image_is_enlarged():
    help_text = get_args(sample_options.Scale)[1].help
    for name in SAMPLERS:
        sampler = find_sampler(name)
        if sampler.takes_image:
            before = help_text.partition("2 for others")[0]
            assert sampler.default_scale() == (4 if name in before else 2)


def test_one_is_one():
    assert [counted(n, "step") for n in (0, 1, 2000)] == ["0 steps", "1 step", "2,000 steps"]


def test_the_home_is_the_home_for_all_that_is_written(tiny_flux, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    sets = ("--set", "strength=0.5", "--steps", "2")
    assert main(euler(tiny_flux, "~/x.png", "--previews", "~/seen", *sets, sampler="sdedit")) == 0
    assert main(["sample", "--repeat", str(tmp_path / "x.png"), "--out", "~/y.png"]) == 0
    assert "identical" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} >= {"x.png", "x.json", "y.png", "y.json", "seen"}
    assert not (tmp_path / "~").exists()
