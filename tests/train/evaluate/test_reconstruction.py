"""What a VAE reconstructs is scored against the images of a manifest; equal images have a finite PSNR."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from uhr.models.metrics.base import Sample
from uhr.models.metrics.features import Features
from uhr.models.metrics.registry import metric
from uhr.models.vae.codec import reconstruct
from uhr.models.zoo import load_vae
from uhr.pixels.decode import decode

METRICS = "metrics=[{metric: psnr}, {metric: ssim}, {metric: random-frechet}]"


@pytest.fixture
def images(folder):
    """Images of two sizes, neither of which is a multiple of the VAE's factor."""
    made = folder("images", range(3), size=(56, 40))
    other = folder("other", range(3, 5), size=(40, 72))
    for number, file in enumerate(sorted(other.iterdir())):
        file.rename(made / f"{number + 3:04d}.png")
    return made


@pytest.fixture
def vae(uhr, tiny_flux):
    def run(place, out, *options):
        given = ("--model", tiny_flux, "--out", out, "--device", "cpu", "--json", "--set", METRICS)
        code, said, err = uhr("eval", "vae", place, *given, *options)
        assert "Traceback" not in err
        return code, json.loads(said) if code == 0 else None, err

    return run


def values(result):
    return {column["name"]: column for each in result["metrics"] for column in each["columns"]}


def test_a_vae_over_a_manifest_gives_what_its_parts_give(images, vae, uhr, tiny_flux):
    Path("p.yaml").write_text("name: p\nstages: [header, decode]\nrules: {}\n")
    assert uhr("curate", "run", "p.yaml", "--source", images, "--out", "set", "--workers", 0)[0] == 0
    code, result, err = vae("set", "out")
    assert code == 0, err
    files = sorted(images.iterdir())
    loaded = load_vae(tiny_flux)
    pixels = [decode(file.read_bytes()).rgb() for file in files]
    made = [reconstruct(loaded, each) for each in pixels]
    for number, each in enumerate(made):
        assert (decode(Path(f"out/reconstructions/{number:07d}.png").read_bytes()).rgb() == each).all()
    rows = pq.read_table("out/scores.parquet").to_pylist()
    assert [row["prompt"] for row in rows] == [file.name for file in files]
    for name in ("psnr", "ssim"):
        one = metric(name)
        direct = [
            one.score([Sample(a, reference=b)])[0][one.columns[0].name]
            for a, b in zip(made, pixels, strict=True)
        ]
        assert [row[one.columns[0].name] for row in rows] == direct
        assert values(result)[one.columns[0].name]["value"] == pytest.approx(np.mean(direct))
    frechet = metric("random-frechet")
    real, fake = (
        Features.merge([frechet.extractor.features(each, number) for number, each in enumerate(some)])
        for some in (pixels, made)
    )
    (name,) = (column.name for column in frechet.columns)
    expected = frechet.compare(real, fake)[name].value
    assert values(result)[name]["value"] == pytest.approx(expected, rel=1e-9)
    # the same command has nothing left to do; a folder of the same images is the same
    assert vae("set", "out")[1]["scores"] == result["scores"]
    assert vae(images, "folder")[1]["metrics"] == result["metrics"]
    # results of two VAEs are compared like those of two generators
    assert vae("set", "same", "--vae", tiny_flux / "vae")[0] == 0
    assert uhr("eval", "compare", "out", "same", "--out", "page.html")[0] == 0
    assert vae("set", "again", "--first", 4)[1]["protocol"]["complete"] is False


def test_workers_reconstruct_the_same_and_progress_is_in_megapixels(folder, vae, warm_workers):
    images = folder("images", range(2), size=(56, 40))
    folder("large", [2], size=(1240, 1040)).joinpath("0000.png").rename(images / "0002.png")
    code, here, err = vae(images, "here")
    assert (code, "reconstruct: 4/4 megapixels of 3 images" in err) == (0, True), err
    code, there, err = vae(images, "there", "--workers", 2)
    assert code == 0, err
    assert here["scores"] == there["scores"]
    assert not Path("there/work").exists()


def test_a_stopped_run_makes_only_what_is_missing_and_another_vae_is_refused(images, vae, tiny_flux, uhr):
    assert vae(images, "out")[0] == 0
    kept = Path("out/reconstructions/0000000.png").stat().st_mtime_ns
    Path("out/result.json").unlink()
    Path("out/request.json").unlink()
    Path("out/reconstructions/0000003.png").unlink()
    assert vae(images, "out")[0] == 0
    assert Path("out/reconstructions/0000000.png").stat().st_mtime_ns == kept
    code, _, err = vae(images, "out", "--first", 3)
    assert (code, "contains another set of reconstructions: other images" in err) == (1, True)
    assert "nothing is not a folder" in vae("nothing", "o")[2]
    assert "--vae nothing does not exist" in vae(images, "o", "--vae", "nothing")[2]
    (images / "0002.png").write_bytes((images / "0002.png").read_bytes()[:-500])
    assert "0002.png cannot be used" in vae(images, "o")[2]
    code, _, err = uhr("eval", "vae", images, "--model", tiny_flux, "--out", "all")
    assert (
        code,
        "4 metrics of 6 cannot be computed: lpips, lpips-native: its weights are not named" in err,
    ) == (1, True)


def test_equal_images_have_a_psnr_of_100_db(folder, protocol, score):
    one, other = folder("one"), folder("other")
    file = protocol(references={"kind": "paired"}, metrics=[{"metric": "psnr"}])
    code, result, err = score(file, one, "out", "--references", other)
    assert code == 0, err
    found = values(result)["psnr_rgb_most_100"]
    assert (found["value"], found["low"], found["high"]) == (100, 100, 100)
