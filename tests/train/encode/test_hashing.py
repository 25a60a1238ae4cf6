from uhr.models.loading import hashes
from uhr.models.zoo import open_model
from uhr.train.encode.hashing import shown_weights_hash


def test_a_long_hash_shows_its_progress_and_is_the_same(tiny_flux, monkeypatch, capsys):
    model = open_model(str(tiny_flux))
    plain = hashes.hash_of(model.folder / "transformer")
    assert shown_weights_hash(model, "transformer") == plain
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(hashes, "QUICK", 0)
    monkeypatch.setattr(hashes, "_MB", 1000)
    size = sum(file.stat().st_size for file in (model.folder / "transformer").glob("*.safetensors")) // 1000
    assert shown_weights_hash(model, "transformer") == plain
    assert f"hash transformer: {size}/{size} MB" in capsys.readouterr().err
