"""Metrics of pyiqa and Q-Align give pyiqa's own values, from files that the user has."""

import sys

import numpy as np
import pytest
import torch

from uhr.base.errors import UserError
from uhr.models.scores.images import View
from uhr.models.scores.offline import NotDownloaded, no_downloads
from uhr.models.scores.pyiqa_metrics import PyiqaMetric, names
from uhr.models.scores.q_align import QAlign

from . import checkpoints

CNNIQA = "CNNIQA_koniq10k-e6f14c91.pth"


@pytest.fixture
def no_home(tmp_path, monkeypatch):
    """No weights of the user's are seen, and nothing is written into the user's home."""
    for name in ("TORCH_HOME", "HF_HOME", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    from pyiqa.utils import download_util

    monkeypatch.setattr(download_util, "DEFAULT_CACHE_DIR", str(tmp_path / "home/hub/pyiqa"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def cnniqa(tmp_path_factory):
    """A folder with random weights of the metric `cnniqa`, as pyiqa stores them."""
    from pyiqa.archs.cnniqa_arch import CNNIQA as Net

    torch.manual_seed(0)
    net = Net(pretrained=None)
    checkpoints.enlarge(net, 2.0)
    folder = tmp_path_factory.mktemp("cnniqa")
    torch.save({"params": net.state_dict()}, folder / CNNIQA)
    return folder


def as_pyiqa(image):
    return torch.as_tensor(image).permute(2, 0, 1)[None].float() / 255


def test_piqe_needs_no_weights_and_is_pyiqas_own_value(images, no_home):
    import pyiqa

    ours = PyiqaMetric.load("piqe")
    theirs = pyiqa.create_metric("piqe", device="cpu")
    found = ours.score(images)
    assert found["piqe"].tolist() == [theirs(as_pyiqa(image)).item() for image in images]
    assert len(set(found["piqe"])) > 2
    assert ours.weights_hash is None
    assert (ours.lower_better, ours.range) == (True, "0, 100")


def test_how_far_a_smaller_view_moves_a_score(images):
    """Quality is not measured on a reduced image: the change is as large as the scale."""
    metric = PyiqaMetric.load("piqe")
    waves = np.tile(images[2], (4, 4, 1))
    full, reduced = metric.score([waves, View(longest=240).of(waves)])["piqe"]
    assert abs(full - reduced) > 5


def test_a_metric_with_weights_is_read_from_the_folder_that_was_named(images, cnniqa, no_home):
    from pyiqa.archs.cnniqa_arch import CNNIQA as Net

    ours = PyiqaMetric.load("cnniqa", cnniqa)
    net = Net(pretrained=None).eval()
    net.load_state_dict(torch.load(cnniqa / CNNIQA)["params"])
    with torch.no_grad():
        expected = [net(as_pyiqa(image)).item() for image in images]
    found = ours.score(images)["cnniqa"]
    assert found.tolist() == expected
    assert np.ptp(found) > 1e-3
    assert len(ours.weights_hash) == 64
    assert not list(no_home.rglob("*.pth"))


def test_the_hash_of_a_metric_follows_its_numbers(cnniqa, tmp_path):
    tree = torch.load(cnniqa / CNNIQA)
    first = PyiqaMetric.load("cnniqa", cnniqa).weights_hash
    torch.save(tree, tmp_path / CNNIQA)
    assert PyiqaMetric.load("cnniqa", tmp_path).weights_hash == first
    next(iter(tree["params"].values())).view(-1)[0] += 1
    torch.save(tree, tmp_path / CNNIQA)
    assert PyiqaMetric.load("cnniqa", tmp_path).weights_hash != first


@pytest.mark.parametrize(
    ("name", "lacks"),
    [("musiq", "musiq_koniq_ckpt-e95806b9.pth"), ("clipiqa", "RN50.pt"), ("arniqa", "resnet50-0676ba61.pth"),
     ("nima", "pyiqa.create_metric('nima')")],
)  # fmt: skip
def test_what_a_metric_lacks_is_named_and_not_downloaded(name, lacks, no_home):
    with pytest.raises(UserError) as error:
        PyiqaMetric.load(name)
    assert lacks in str(error.value)
    assert not [path for path in no_home.rglob("*") if path.is_file() and path.stat().st_size > 1000]
    assert "pkg_resources" not in sys.modules or not hasattr(sys.modules["pkg_resources"], "packaging")


def test_an_unknown_metric_is_one_line_with_the_nearest():
    with pytest.raises(UserError, match="did you mean musiq"):
        PyiqaMetric.load("musik")
    assert {"piqe", "musiq", "clipiqa", "niqe"} <= set(names())
    assert "qalign" not in names()


def test_random_crops_do_not_depend_on_what_ran_before(images, cnniqa):
    metric = PyiqaMetric.load("cnniqa", cnniqa)
    metric._metric.forward = lambda planes: torch.rand(1) + np.random.rand()
    state = np.random.get_state()[1].copy()
    first = metric.score(images)["cnniqa"]
    torch.rand(3)
    assert metric.score(images[:2])["cnniqa"].tolist() == first[:2].tolist()
    assert (np.random.get_state()[1] == state).all()


def test_only_the_blocks_own_thread_is_kept_from_the_network():
    import socket
    import threading

    found = []
    with no_downloads():
        thread = threading.Thread(target=lambda: found.append(socket.getaddrinfo("127.0.0.1", 80)))
        thread.start()
        thread.join()
        with pytest.raises(NotDownloaded, match=r"127\.0\.0\.1"):
            socket.getaddrinfo("127.0.0.1", 80)
    assert found
    assert socket.getaddrinfo("127.0.0.1", 80)


@pytest.fixture(scope="session")
def one_align(tmp_path_factory):
    return checkpoints.q_align(tmp_path_factory.mktemp("q") / "one-align")


@pytest.fixture(scope="session")
def q_align(one_align):
    return QAlign.load(one_align, tasks=("quality", "aesthetic"), native=True)


def test_q_align_in_a_batch_is_pyiqas_metric_one_by_one(images, q_align):
    from pyiqa.models.inference_model import InferenceModel

    found = q_align.score(images)
    metric = InferenceModel.__new__(InferenceModel)
    torch.nn.Module.__init__(metric)
    vars(metric).update(
        metric_mode="NR", metric_name="qalign", as_loss=False, check_input_range=True, eps=1e-6
    )
    metric.dummy_param, metric.net = torch.nn.Parameter(torch.empty(0)), q_align._net
    for task, name in (("quality", "q_align"), ("aesthetic", "q_align_aesthetic")):
        expected = [metric(as_pyiqa(image), task_=task).item() for image in images]
        assert np.abs(found[name] - expected).max() <= 4e-3  # two steps of float16 near 4
        assert np.ptp(expected) > 0.05
        assert ((found[name] >= 1) & (found[name] <= 5)).all()
    assert np.abs(found["q_align"] - found["q_align_aesthetic"]).max() > 1e-2


def test_all_numbers_of_q_align_are_those_of_the_file(one_align, q_align):
    from safetensors.torch import load_file

    stored = load_file(one_align / "model.safetensors")
    loaded = q_align._net.model.state_dict()
    assert stored.keys() == loaded.keys()
    for name, value in stored.items():
        # buffers stay in float32
        assert torch.equal(loaded[name].half(), value), name
    assert any(name.endswith("q_pos_embed") and value.any() for name, value in loaded.items())


def test_a_reduced_view_gives_q_align_the_same_pixels_where_the_padding_is_whole(one_align, images):
    reduced = QAlign.load(one_align)
    whole = np.repeat(np.repeat(images[2][:60], 5, 0), 5, 1)
    assert reduced.view == View(longest=28)
    pixels, expected = reduced._pixels(reduced.view.of(whole)), reduced._pixels(whole)
    # one level is 1 / 255 before, and about 1 / 255 / 0.27 after the division by the standard deviation
    levels = (pixels - expected).float().abs() * 255 * 0.27
    assert levels[:, :, 9:19].max() <= 1.1  # image, from row 7 to 21, away from its border
    assert levels[:, :, :5].max() == levels[:, :, 23:].max() == 0  # padding
    assert abs(reduced.score([reduced.view.of(whole)])["q_align"] - reduced.score([whole])["q_align"]) < 0.05


def test_a_checkpoint_of_another_kind_is_one_line(one_align, tmp_path):
    import shutil

    with pytest.raises(UserError, match="do not exist"):
        QAlign.load(tmp_path / "nothing")
    broken = shutil.copytree(one_align, tmp_path / "broken")
    (broken / "tokenizer.json").unlink()
    (broken / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        QAlign.load(broken)
    from safetensors.torch import load_file, save_file

    lacking = shutil.copytree(one_align, tmp_path / "lacking")
    tensors = load_file(lacking / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, lacking / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks lm_head\.weight"):
        QAlign.load(lacking)
