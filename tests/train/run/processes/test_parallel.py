"""Which places of a batch a process computes, what recipes may divide, and the options of launchers."""

import pytest
import torch

from uhr.base.errors import UserError
from uhr.cli import main
from uhr.train.recipes import resolve
from uhr.train.run.launch import Launch
from uhr.train.run.processes.mesh import mesh_shape
from uhr.train.run.processes.parallel import Ranks, device_of, from_environment


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 16])
def test_every_place_counts_once_and_all_processes_do_the_same_number_of_passes(world, count):
    shares = [Ranks(rank, world).share(count, 2) for rank in range(world)]
    counted = [place for share in shares for place in share.places[: share.counted]]
    assert counted == list(range(count))
    assert len({len(share.passes) for share in shares}) == 1
    for share in shares:
        passed = [place for a, b, counts in share.passes if counts for place in share.places[a:b]]
        assert passed == list(share.places[: share.counted])
        assert all(b - a <= 2 for a, b, _ in share.passes)
    assert max(share.counted for share in shares) - min(share.counted for share in shares) <= 1


def test_the_mesh_of_two_machines_with_four_processes_each():
    assert mesh_shape("full", 8, 4) == (8,)
    assert mesh_shape("hybrid", 8, 4) == (2, 4)
    with pytest.raises(UserError, match="7 processes are not a multiple of the 4 of this machine"):
        mesh_shape("hybrid", 7, 4)
    with pytest.raises(UserError, match="zero3"):
        mesh_shape("zero3", 8, 4)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["runtime.quantize=nf4"], "runtime.quantize=nf4 packs them"),
        (["runtime.offload=blocks"], "runtime.offload keeps them whole on the host"),
        (["trainable={kind: backbone}", "optimiser.kind=adamw-8bit"], "'adamw-8bit' needs whole ones"),
        (["validation.images={every: 1, prompts: [a]}"], "validation images are generated with whole ones"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_the_reason(sets, message):
    from uhr.models.zoo import get

    recipe = resolve("lora", None, [*sets, "runtime.shard=full"])
    with pytest.raises(UserError, match=r"--set runtime\.shard=replicate") as error:
        recipe.check(get("flux1-dev"))
    assert message in str(error.value)
    recipe = resolve("lora", None, [*sets, "runtime.shard=replicate"])
    recipe.check(get("flux1-dev"))


def test_an_unknown_way_to_divide_is_an_error():
    with pytest.raises(UserError, match=r"runtime\.shard"):
        resolve("lora", None, ["runtime.shard=zero3"])


def test_a_process_has_the_gpu_of_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert device_of(cuda, Ranks(6, 8, 2, 4)) == torch.device("cuda:2")
    assert device_of(cpu, Ranks(1, 2, 1, 2)) == cpu
    assert device_of(torch.device("cuda:1"), Ranks()) == torch.device("cuda:1")
    with pytest.raises(UserError, match="2 processes cannot share cuda:1"):
        device_of(torch.device("cuda:1"), Ranks(0, 2, 0, 2))
    with pytest.raises(UserError, match="8 processes need as many GPUs, and this machine has 4"):
        device_of(cuda, Ranks(0, 8, 0, 8))


def test_a_process_knows_its_number_by_the_environment_of_torchrun(monkeypatch):
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert from_environment() == Ranks(1, 2, 1, 2)
    assert Launch.of(None, None, None) == Launch("torchrun", 2)
    with pytest.raises(UserError, match="torchrun started 2 processes, not 3: leave out --workers"):
        Launch.of(None, 3, None)
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(UserError, match="process 2 of 2 does not exist"):
        from_environment()
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(UserError, match="LOCAL_RANK="):
        from_environment()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--launcher", "slurm"], "slurm"),
        (["--launcher", "torchrun"], "is for a process that torchrun started"),
        (["--address", "10.0.0.1:6379"], "add --launcher ray"),
        (["--workers", "0"], "--workers"),
    ],
)
def test_options_of_another_launcher_are_refused(options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    command = ["train", "run", "lora", "--model", "m", "--data", "d", "--out", str(tmp_path / "run")]
    assert main([*command, *options]) in (1, 2)
    assert message in capsys.readouterr().err
