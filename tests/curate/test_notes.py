"""The column `notes`: what a decoder found odd about an image is in its row, and a rule can require null."""

from PIL import Image

from uhr.manifests.manifest import Manifest

RULE = ("--set", "rules.clean=notes is null")


def _with_notes(folder) -> None:
    """Two images whose profile cannot be used, and one that is truncated besides."""
    for name, format in (("1.jpg", "jpeg"), ("trip/2.png", "png")):
        with Image.open(folder / name) as image:
            image.save(folder / f"profile.{format}", icc_profile=b"no profile" * 20)
    data = (folder / "profile.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])


def test_notes_are_in_the_row_and_in_explain(uhr, images, tmp_path) -> None:
    _with_notes(images)
    out = tmp_path / "out"
    arguments = ("--source", images, "--out", out, "--engine", "local", "--workers", 0)
    code, printed, _ = uhr("curate", "run", "quickstart", *arguments)
    assert code == 0
    assert "notes on         2 of 10 kept   ICC profile ignored" in printed
    rows = {row["uri"]: row for row in Manifest.open(out).table().to_pylist()}
    for name in ("profile.jpeg", "profile.png"):
        assert "ICC profile ignored" in rows[name]["notes"]
    assert rows["1.jpg"]["status"] == "kept"
    assert rows["1.jpg"]["notes"] is None
    assert rows["cut.png"]["status"] == "failed"
    assert rows["cut.png"]["notes"] is None
    explained = uhr("curate", "explain", out, "profile.png")[1]
    assert "ICC profile ignored" in explained.split("\ndecode\n")[1].split("\n\n")[0]


def test_a_rule_and_a_slice_can_require_that_there_are_no_notes(uhr, images, tmp_path) -> None:
    _with_notes(images)
    arguments = ("--source", images, "--engine", "local", "--workers", 0)
    assert uhr("curate", "run", "quickstart", *arguments, "--out", tmp_path / "strict", *RULE)[0] == 0
    rejected = Manifest.open(tmp_path / "strict").table(["uri"], "reason = 'clean'")
    assert set(rejected["uri"].to_pylist()) == {"profile.jpeg", "profile.png"}

    assert uhr("curate", "run", "quickstart", *arguments, "--out", tmp_path / "out")[0] == 0
    cut = ("manifest", "slice", tmp_path / "out", "--where", "notes is null", "--out", tmp_path / "clean")
    assert uhr(*cut)[0] == 0
    kept = set(Manifest.open(tmp_path / "out").table(["uri"], "status = 'kept'")["uri"].to_pylist())
    clean = set(Manifest.open(tmp_path / "clean").table(["uri"])["uri"].to_pylist())
    assert kept - clean == {"profile.jpeg", "profile.png"}
