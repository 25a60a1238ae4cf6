"""Paths as text and back, URLs, and names that libraries do not interpret."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.base.files import json_bytes, write_json
from uhr.base.paths import is_url, is_utf8, local, or_similar, path_text, plain_folder, text_path
from uhr.cli import main

NAME = st.binary(min_size=1, max_size=20).filter(lambda name: not {0, 47} & set(name) and name.strip(b"."))
CAFE = os.fsdecode(b"caf\xe9")


@given(st.lists(NAME, min_size=1, max_size=4))
def test_an_absolute_path_comes_back_from_its_text(names: list[bytes]) -> None:
    path = Path("/", *map(os.fsdecode, names))
    text = path_text(path)
    text.encode()
    assert text_path(text) == path
    assert text == str(path) if is_utf8(path) else text.startswith("file:///")


def test_a_path_that_is_utf8_is_its_own_text_whatever_it_looks_like() -> None:
    for text in ("/data/100%25", "/data/%E9", "file:x", "file:/x", "s3:", "a b/ü", "/data/file:///x"):
        assert path_text(text) == text
        assert text_path(text) == Path(text)
    assert path_text(f"/data/100%/{CAFE}") == "file:///data/100%25/caf%E9"


def test_json_of_a_path_that_is_not_utf8_is_written_and_gives_the_path_back(tmp_path: Path) -> None:
    assert json.loads(json_bytes([CAFE, 'é"\\'])) == [CAFE, 'é"\\']
    write_json(tmp_path / "x.json", {CAFE: f"\\{CAFE}\n"})
    assert json.loads((tmp_path / "x.json").read_bytes()) == {CAFE: f"\\{CAFE}\n"}


@pytest.mark.parametrize(
    "name", [b"plain", b"we[i]rd *?", b"caf\xe9", b"a'b", b"new\nline", b"x?access_mode"]
)
def test_a_plain_folder_is_the_folder_under_a_name_without_meaning(tmp_path: Path, name: bytes) -> None:
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    with plain_folder(folder) as plain:
        assert plain.is_absolute()
        assert str(plain).isascii()
        assert not set("?*[]'\n ") & set(str(plain))
        (plain / "file").write_text("here")
        assert (folder / "file").read_text() == "here"
        was = plain
    assert (folder / "file").read_text() == "here"
    assert was == folder or not was.parent.exists()


def test_a_url_is_distinguished_from_a_path() -> None:
    for text in ("s3://bucket/x", "gs://b", "http://host/x", "hdfs:///x", "C://x", "file:///x"):
        assert is_url(text)
        with pytest.raises(UserError, match=f"--source {text} is a URL, not a path"):
            local("--source")(text)
    for text in ("s3:", "s3:/x", "file:x", "C:x", "./s3://x", "/data/a://b", "-x", "~", "http:", "a b://c"):
        assert not is_url(text)
        assert local("--source")(text) == Path(text)


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """Run a command that must fail with one line, which is returned, and write nothing."""

    def run(command: str) -> str:
        monkeypatch.chdir(tmp_path)
        assert main(command.split()) == 1
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
        return errors

    return run


LOCAL = """
train run lora --model x --data d --out ADDRESS
train run --config ADDRESS --model x --data d --out o
train resume ADDRESS
train export ADDRESS --out o
train export r --out ADDRESS
train log ADDRESS
models make-tiny ADDRESS
demo --out ADDRESS
sample euler --model x --prompt p --image ADDRESS --out o.png
sample euler --model x --prompts ADDRESS --out o
sample euler --model x --prompt p --vae ADDRESS --out o.png
sample euler --model x --prompt p --previews ADDRESS --out o.png
sample --repeat ADDRESS --out o.png
sample --repeat x.png --out ADDRESS
"""


@pytest.mark.parametrize("command", LOCAL.strip().splitlines())
@pytest.mark.parametrize("address", ["s3://bucket/set", "gs://bucket/set", "http://host/set"])
def test_an_address_where_a_path_is_required_is_refused_before_any_work(
    command: str, address: str, refused: Callable[[str], str]
) -> None:
    assert f"{address} is a URL, not a path" in refused(command.replace("ADDRESS", address))


S3_OR_LOCAL = """
eval run patches-4k --images i --out o --prompts ADDRESS
train encode m --model x --out ADDRESS
train plan lora --model x --data ADDRESS
train run lora --model x --data ADDRESS --out o
train resume r --data ADDRESS
train encode ADDRESS --model x --out o
eval run patches-4k --images i --out o --references ADDRESS
eval run patches-4k --images i --out o --trained-on ADDRESS
eval vae ADDRESS --model x --out o
curate run quickstart --source s --out ADDRESS
curate status ADDRESS
curate explain ADDRESS x
manifest show ADDRESS
manifest verify ADDRESS
manifest lineage ADDRESS
manifest slice ADDRESS --out o
manifest slice m --out ADDRESS
manifest report ADDRESS
manifest report m --out ADDRESS
manifest export m --to folder --out ADDRESS
"""


@pytest.mark.parametrize("command", S3_OR_LOCAL.strip().splitlines())
@pytest.mark.parametrize("address", ["s3://", "gs://bucket/set", "http://host/set"])
def test_an_address_of_no_prefix_in_s3_is_refused_before_any_work(
    command: str, address: str, refused: Callable[[str], str]
) -> None:
    assert f"{address}: not an address in an object store" in refused(command.replace("ADDRESS", address))


@pytest.mark.parametrize("address", ["gs://bucket/set", "hdfs://host/set", "http://host/set"])
@pytest.mark.parametrize("what", [("--prompts", "p.txt"), ("--prompt", "p")])
def test_a_sampler_writes_to_s3_and_to_no_other_store(
    what: tuple[str, str],
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a lake\n")
    out = address if what[0] == "--prompts" else f"{address}/x.png"
    assert main(["sample", "euler", "--model", "x", *what, "--out", out]) == 1
    errors = capsys.readouterr().err
    assert "has an unknown protocol" in errors
    assert errors.count("\n") == 1


NOT_UTF8 = """
train run lora --model m --data d --out CAFE
train export r --out CAFE
train resume CAFE
models make-tiny CAFE
models show CAFE
sample euler --model CAFE --prompt p --out o.png
sample euler --model x --prompt p --image CAFE --out o.png
sample euler --model x --prompt p --transformer CAFE --out o.png
sample euler --model x --prompt CAFE --out o.png
sample euler --model x --prompt p --negative CAFE --out o.png
"""


@pytest.mark.parametrize("command", NOT_UTF8.strip().splitlines())
def test_a_path_or_text_that_is_not_utf8_is_refused_before_any_work(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([word.replace("CAFE", CAFE) for word in command.split()]) == 1
    errors = capsys.readouterr().err
    assert "not UTF-8" in errors
    assert "unexpected" not in errors
    assert errors.count("\n") == 1


def test_a_path_that_does_not_exist_is_answered_with_the_nearest_that_do(tmp_path):
    for name in ("encoded/a", "encoded2/a", "other/b"):
        (tmp_path / name).mkdir(parents=True)
    fix = or_similar(tmp_path / "encodd/a", "encode it")
    assert fix == f"did you mean {tmp_path}/encoded/a or {tmp_path}/encoded2/a? Or encode it"
    assert or_similar(tmp_path / "encodd/b", "encode it") == "encode it"
    assert or_similar(tmp_path / "encoded", "encode it") == "encode it"
    assert or_similar(tmp_path / "zzz", "encode it") == "encode it"
    (tmp_path / "file").touch()
    assert or_similar(tmp_path / "file/x", "encode it") == "encode it"


def test_the_nearest_of_a_relative_path_is_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "encoded").mkdir()
    assert or_similar(Path("encodd"), "encode it") == "did you mean encoded? Or encode it"
