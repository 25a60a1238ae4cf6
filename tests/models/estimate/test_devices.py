"""The table of GPUs."""

from types import SimpleNamespace

import pytest
import torch

from uhr.base.errors import UserError
from uhr.models.estimate import devices
from uhr.models.estimate.devices import DEVICES, device, name_of_driver
from uhr.models.estimate.operations import Operations
from uhr.models.vae.budget import LEAST, MOST, RESERVE, device_budget, host_budget


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-PCIE-40GB", "a100-40"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA B200", "b200"),
        ("NVIDIA RTX A6000", "rtx-a6000"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4070 Ti", None),
        ("NVIDIA GeForce RTX 3060 Ti", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_a_gpu_is_known_by_its_drivers_name_and_no_other_is_taken_for_it(driver, name):
    assert name_of_driver(driver) == name


def test_every_gpu_of_the_table_can_be_known_and_is_plausible():
    assert set(devices._MARKS) == set(DEVICES)
    for each in DEVICES.values():
        assert name_of_driver(f"NVIDIA {each.title}") == each.name
        assert each.tensor > each.float32 > 1e12
        # the size in its name is of the chips; CUDA reports less
        assert 11 << 30 <= each.memory <= 180 << 30
    assert 139 < DEVICES["h200"].memory / (1 << 30) < 140


def test_an_unknown_gpu_is_an_error_with_the_nearest_names():
    with pytest.raises(UserError, match="rtx-4090"):
        device("rtx-4091")


def test_the_gpu_here_is_its_data_sheet_with_its_own_memory_or_an_error(monkeypatch):
    card = SimpleNamespace(name="NVIDIA GeForce RTX 4090", total_memory=23 << 30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    found = devices.local_device()
    assert found is not None
    assert (found.name, found.title, found.memory) == ("rtx-4090", card.name, 23 << 30)
    card.name = "NVIDIA GeForce RTX 3080"
    with pytest.raises(UserError, match=r"no data sheet of the GPU here, NVIDIA GeForce RTX 3080.*--on"):
        devices.local_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.local_device() is None


def test_time_is_operations_over_the_stated_share_of_the_peak_rate():
    h100 = device("h100")
    assert h100.seconds(Operations(linear=int(989.4e12))) == pytest.approx(1 / devices.LINEAR)
    both = Operations(int(1e15), int(1e15), int(1e14))
    apart = sum(h100.seconds(Operations(*(v if i == j else 0 for j, v in enumerate(both)))) for i in range(3))
    assert h100.seconds(both) == pytest.approx(apart)
    assert h100.seconds(both, "float32") > 10 * h100.seconds(both)


def test_a_vae_is_given_what_the_weights_leave_and_no_more_than_helps():
    assert device_budget(141 << 30, 34 << 30) == MOST
    assert device_budget(24 << 30, 12 << 30) == (12 << 30) - RESERVE
    assert device_budget(24 << 30, 24 << 30) == LEAST


def test_on_a_cpu_a_vae_is_given_a_share_of_the_memory_that_there_is():
    gib = 1 << 30
    # a laptop; two workers of it together; a large machine
    assert host_budget(16 * gib, threads=8, cores=8) == 8 * gib
    assert 2 * host_budget(16 * gib, threads=4, cores=8) == 8 * gib
    assert host_budget(512 * gib, threads=64, cores=64) == MOST
    assert host_budget(4 * gib, threads=1, cores=64) == LEAST
    assert LEAST <= host_budget() <= MOST
