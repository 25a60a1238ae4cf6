"""Nothing of a user's is ever cleared."""

from pathlib import Path

import pytest

from uhr.base.errors import UserError
from uhr.base.locks.run_lock import only_run
from uhr.base.run_folder import RunFolder
from uhr.train.encode.config import EncodeConfig
from uhr.train.encode.run import encode
from uhr.train.encode.stored.encoded import LAYOUT

HEX = "0123456789abcdef"
OURS = [
    "latents/128x160-00000.parquet", f"latents/.128x160-00001.parquet.{HEX * 2}.tmp",
    "texts/texts-00000.parquet", "units/texts/plan.json", "units/texts/items.arrow",
    f"units/latents/unit-0000000-{HEX}.parquet", f"units/latents/.plan.json.{HEX * 2}.tmp",
]  # fmt: skip


def put(out: Path, *names: str) -> None:
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")


def listing(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def test_what_a_killed_encode_left_is_taken_and_cleared(tmp_path):
    put(tmp_path, *OURS)
    folder = RunFolder(tmp_path, LAYOUT)
    folder.claim()
    assert listing(tmp_path) == sorted(OURS)
    folder.clear("latents", "texts")
    assert listing(tmp_path) == sorted(name for name in OURS if name.startswith("units"))
    put(tmp_path, "units/lock")
    with folder.lock("units"):
        folder.clear("units")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "thesis.doc", "latents/thesis.doc", "texts/thesis.doc", "texts/deep/thesis.doc", "units/thesis.doc",
        "units/texts/thesis.doc", "units/latents/old.parquet", "latents/a/128x160-00000.parquet",
        "latents/128x160-00000.parquet/thesis.doc",
    ],
)  # fmt: skip
@pytest.mark.parametrize("marked", [True, False])
def test_a_folder_with_anything_of_a_users_is_refused_and_untouched(tmp_path, name, marked):
    put(tmp_path, name, *(["encoded.json"] if marked else []))
    before = listing(tmp_path)
    with pytest.raises(UserError, match="already contains something else"):
        RunFolder(tmp_path, LAYOUT).claim()
    assert listing(tmp_path) == before


@pytest.mark.parametrize("folder", ["latents", "texts", "units", "units/texts"])
def test_clearing_leaves_a_users_file_and_says_so(tmp_path, folder, capsys):
    put(tmp_path, *OURS, f"{folder}/thesis.doc")
    RunFolder(tmp_path, LAYOUT).clear("latents", "texts", "units")
    assert listing(tmp_path) == [f"{folder}/thesis.doc"]
    assert "thesis.doc', which no run wrote" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["manifest", "pictures"])
def test_encode_writes_into_nobodys_folder(tmp_path, manifest_of, tiny_flux, where):
    manifest = manifest_of(tmp_path, [{"name": "a.png", "height": 130, "width": 130}])
    before = listing(tmp_path)
    with pytest.raises(UserError, match="already contains something else"):
        encode(manifest.path, str(tiny_flux), tmp_path / where, EncodeConfig(), "cpu")
    assert listing(tmp_path) == before


def test_two_encodes_in_one_folder_are_refused(tmp_path, manifest_of, tiny_flux):
    manifest = manifest_of(tmp_path, [{"name": "a.png", "height": 130, "width": 130}])
    out = tmp_path / "encoded"
    with only_run(out / "units"), pytest.raises(UserError, match=r"another run is at work in .*encoded"):
        encode(manifest.path, str(tiny_flux), out, EncodeConfig(), "cpu")
    info, stood = encode(manifest.path, str(tiny_flux), out, EncodeConfig(), "cpu")
    assert (info.counts["encoded"], stood) == (1, False)
    assert not (out / "units").exists()
