"""Where an encode runs: in this process, in local workers, on Ray; on a GPU of each worker's own."""

import pyarrow.parquet as pq
import pytest
import torch

from uhr.base.errors import UserError
from uhr.cli import main
from uhr.runtime.pool import InlineRunner, LocalRunner, Pool, RayRunner
from uhr.train.data.reader import EncodedData
from uhr.train.encode import run as run_module
from uhr.train.encode.run import device_of, pool_of


@pytest.mark.parametrize(
    ("options", "device", "gpus", "expected"),
    [
        (("ray", None, None), "cpu", 0, Pool("local", 0)),
        (("ray", None, None), "cuda", 1, Pool("local", 0)),
        (("ray", None, None), "cuda", 4, Pool("ray", None)),
        (("local", None, None), "cuda", 4, Pool("local", None)),
        (("ray", None, None), "cuda:1", 4, Pool("local", 0)),
        (("ray", 3, None), "cpu", 0, Pool("ray", 3)),
        (("local", 3, None), "cpu", 0, Pool("local", 3)),
        (("ray", 0, None), "cuda", 4, Pool("ray", 0)),
        (("ray", None, "auto"), "cpu", 0, Pool("ray", None, "auto")),
    ],
)
def test_the_default_is_this_process_unless_there_are_several_gpus_or_a_cluster(
    monkeypatch, options, device, gpus, expected
):
    monkeypatch.setattr(run_module, "visible_gpus", lambda: tuple(map(str, range(gpus))))
    assert pool_of(*options, device) == expected


def test_options_that_do_not_go_together_are_errors():
    with pytest.raises(UserError, match="unknown engine 'rya': did you mean ray"):
        pool_of("rya", None, None, "cpu")
    with pytest.raises(UserError, match="--address names a Ray cluster"):
        pool_of("local", 1, "auto", "cpu")


def test_the_device_of_a_cluster_is_not_looked_for_here():
    assert device_of("auto", "host:6379") == "cpu"
    assert device_of("cuda", "host:6379") == "cuda"
    assert device_of("cpu", None) == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="not available"):
            device_of("cuda", None)


def test_every_gpu_has_a_worker_for_images_and_for_captions(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    job = run_module.EncodeJob(None, "cuda", Pool("local", None), ())
    runner = job._runner()
    assert isinstance(runner, LocalRunner)
    assert (runner.workers, runner.gpus, runner.threads) == (2, ("2", "5"), 1)
    on_ray = run_module.EncodeJob(None, "cuda", Pool("ray", 2), ())._runner()
    assert isinstance(on_ray, RayRunner)
    assert (on_ray.workers, on_ray.gpus) == (2, 1)
    assert isinstance(run_module.EncodeJob(None, "cpu", Pool("local", 0), ())._runner(), InlineRunner)


def rows_of(folder):
    return [
        row for file in sorted(folder.glob("latents/*.parquet")) for row in pq.read_table(file).to_pylist()
    ]


@pytest.mark.usefixtures("full_texts", "warm_workers")
@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_workers_give_the_same_rows_and_a_faulty_image_costs_one(
    engine, tmp_path, manifest_of, tiny_flux, capsys
):
    images = [{"name": f"{i}.png", "height": 140, "width": 140, "caption": "a"} for i in range(5)]
    manifest = manifest_of(tmp_path, images)
    file = manifest.root / "3.png"
    file.write_bytes(file.read_bytes()[:-200])
    arguments = ["train", "encode", manifest.path, "--model", tiny_flux, "--device", "cpu"]
    for name, more in (("here", []), (engine, ["--engine", engine, "--workers", "1"])):
        assert main([str(each) for each in [*arguments, "--out", tmp_path / name, *more]]) == 0
        assert "left out, changed: 1 (3.png" in capsys.readouterr().out
    one, two = (EncodedData.open(tmp_path / name).read(0, range(4)) for name in ("here", engine))
    assert one.uris == two.uris == ("0.png", "1.png", "2.png", "4.png")
    assert one.texts.keys() == two.texts.keys()
    # a worker has one thread, and sums may be rounded in another order
    for ours, theirs in ((one.mean, two.mean), (one.std, two.std), (one.texts["t5"], two.texts["t5"])):
        torch.testing.assert_close(ours, theirs, rtol=0.01, atol=0.001)
    for ours, theirs in zip(rows_of(tmp_path / "here"), rows_of(tmp_path / engine), strict=True):
        different = {name for name, value in ours.items() if value != theirs[name]}
        assert different <= {"mean", "std"}
