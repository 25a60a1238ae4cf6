"""The loss of a VAE against closed forms, PyWavelets, pyiqa's LPIPS and finite differences."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import pywt
import torch

from uhr.base.errors import UserError
from uhr.models.metrics.lpips import NETWORKS, LpipsNetwork
from uhr.train.objectives.vae.base import Coded
from uhr.train.objectives.vae.perceptual import Perceptual
from uhr.train.objectives.vae.reconstruction import (
    ReconstructionLoss,
    peak_signal_to_noise,
    squared_error,
    wavelet_error,
)

CPU = torch.device("cpu")
HEADS = {"network_file": "net.pth", "heads_file": "heads.pth"}


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def lpips(tmp_path_factory):
    """pyiqa's LPIPS on AlexNet with random weights, and our configuration of the same weights."""
    from pyiqa.archs import lpips_arch

    torch.manual_seed(0)
    real = lpips_arch.models.alexnet
    with pytest.MonkeyPatch.context() as patched:
        # it would fetch weights even with pretrained=False
        patched.setattr(lpips_arch.models, "alexnet", lambda **_: real(weights=None))
        theirs = lpips_arch.LPIPS(net="alex", pnet_rand=True, pretrained=False).eval()
    for index in range(5):
        torch.nn.init.uniform_(getattr(theirs, f"lin{index}").model[1].weight)
    folder = tmp_path_factory.mktemp("lpips")
    # its slices keep the numbers of torchvision's layers
    features = {
        f"features.{name.partition('.')[2]}": value for name, value in theirs.net.state_dict().items()
    }
    heads = {name: value for name, value in theirs.state_dict().items() if name.startswith("lin")}
    torch.save(features, folder / "net.pth")
    # the form in which LPIPS's own files were saved
    torch.save(heads, folder / "heads.pth", _use_new_zipfile_serialization=False)
    files = {field: str(folder / name) for field, name in HEADS.items()}
    return theirs, Perceptual(network="alexnet", **files)


def test_the_perceptual_term_is_lpips(lpips):
    theirs, config = lpips
    ours = LpipsNetwork.load(config, CPU)
    one, two = draw(0, 3, 3, 64, 80), draw(1, 3, 3, 64, 80)
    with torch.no_grad():
        expected = theirs(two, one, normalize=False).flatten()
        torch.testing.assert_close(ours(one, two), expected, rtol=1e-5, atol=1e-7)
        assert ours(one, one).abs().max() == 0


def test_vgg16_compares_after_the_layers_that_lpips_names():
    from torchvision.models import vgg16

    with torch.device("meta"):
        features = vgg16().features
    known = NETWORKS["vgg16"]
    # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
    assert [isinstance(features[end], torch.nn.ReLU) for end in known.ends] == [True] * 5
    assert tuple(features[end - 1].out_channels for end in known.ends) == known.channels
    pools = [i for i, layer in enumerate(features) if isinstance(layer, torch.nn.MaxPool2d)]
    assert [end + 1 for end in known.ends] == pools


def test_an_image_without_any_feature_has_a_gradient(lpips):
    _, config = lpips
    distance = LpipsNetwork.load(config, CPU)
    for layer in distance.layers:
        if isinstance(layer, torch.nn.Conv2d):
            # what ReLU leaves is zero everywhere
            layer.bias.data.fill_(-1e3)
    found = draw(0, 1, 3, 64, 64).requires_grad_()
    distance(draw(1, 1, 3, 64, 64), found).sum().backward()
    assert torch.equal(found.grad, torch.zeros_like(found))


def test_the_wavelet_term_is_the_mean_of_pywavelets_detail_bands():
    one, two = draw(0, 2, 3, 16, 12), draw(1, 2, 3, 16, 12)
    _, details = pywt.dwt2((two - one).double().numpy(), "haar", axes=(-2, -1))
    expected = np.mean([np.abs(band).mean(axis=(1, 2, 3)) for band in details], axis=0)
    np.testing.assert_allclose(wavelet_error(one, two), expected, rtol=1e-5)


def test_the_wavelet_term_sees_no_change_of_blocks_and_the_squared_error_does():
    images = draw(0, 2, 3, 16, 16)
    blocks = draw(1, 2, 3, 8, 8).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert wavelet_error(images, images + blocks).max() < 1e-6
    torch.testing.assert_close(squared_error(images, images + blocks), blocks.square().mean(dim=(1, 2, 3)))


def test_psnr_is_that_of_pixels_from_0_to_255():
    one, two = draw(0, 1, 3, 16, 16), draw(1, 1, 3, 16, 16)
    pixels = [((x + 1) * 127.5)[0].double().numpy() for x in (one, two)]
    expected = cv2.PSNR(*(np.moveaxis(p, 0, -1) for p in pixels), R=255)
    assert peak_signal_to_noise(one, two).item() == pytest.approx(expected, rel=1e-5)
    # what is out of range is clipped before it is compared
    assert peak_signal_to_noise(one.sign(), 3 * one.sign()).item() == pytest.approx(160, abs=1e-3)


@pytest.fixture
def loss(lpips):
    _, config = lpips
    return ReconstructionLoss(perceptual=config)


def coded(images: torch.Tensor) -> Coded:
    latents = torch.zeros(len(images), 16, 2, 2)
    return Coded(latents, latents, images)


def test_the_loss_is_the_weighted_sum_of_its_parts_with_the_papers_weights(loss):
    one, two = draw(0, 2, 3, 64, 64), draw(1, 2, 3, 64, 64)
    errors = loss.open(CPU)(one, coded(two))
    parts = errors.parts
    expected = 1.0 * parts["l2"] + 0.1 * parts["perceptual"] + 0.2 * parts["wavelet"]
    torch.testing.assert_close(errors.loss, expected)
    assert loss.notes() == []


def test_it_computes_in_float32_whatever_the_vae_does(loss):
    one, two = draw(0, 2, 3, 64, 64), draw(1, 2, 3, 64, 64).bfloat16()
    errors = loss.open(CPU)(one, coded(two))
    torch.testing.assert_close(errors.loss, loss.open(CPU)(one, coded(two.float())).loss, rtol=0, atol=0)
    assert errors.loss.dtype == torch.float32


@pytest.mark.parametrize("part", ["l2", "wavelet", "perceptual"])
def test_gradients_are_those_of_finite_differences(loss, part, lpips):
    _, config = lpips
    weights = {name: float(name == part) for name in ("l2", "wavelet")}
    perceptual = config.model_copy(update={"weight": float(part == "perceptual")})
    single = loss.model_copy(update={**weights, "perceptual": perceptual}).open(CPU)
    target, found = draw(0, 1, 3, 64, 64), draw(1, 1, 3, 64, 64)
    variable = found.clone().requires_grad_()
    single(target, coded(variable)).loss.sum().backward()
    for seed in range(3):
        # random factors of the gradient itself: along other directions float32 sees no change
        direction = draw(2 + seed, 1, 3, 64, 64).abs() * variable.grad / variable.grad.abs().max()
        step = 2e-3
        with torch.no_grad():
            up, down = (single(target, coded(found + s * direction)).loss.sum() for s in (step, -step))
        expected = (up.double() - down.double()) / (2 * step)
        slope = (variable.grad * direction).double().sum()
        assert slope.item() == pytest.approx(expected.item(), rel=5e-3)


def test_a_term_of_weight_zero_is_left_out_and_said_to_be(loss):
    off = loss.model_copy(update={"perceptual": Perceptual(weight=0), "wavelet": 0.0})
    off.check("phases.main.objective")
    errors = off.open(CPU)(draw(0, 1, 3, 8, 8), coded(draw(1, 1, 3, 8, 8)))
    assert set(errors.parts) == {"l2"}
    assert [note.partition(" is off")[0] for note in off.notes()] == [
        "the wavelet term of the loss",
        "the perceptual term of the loss",
    ]
    with pytest.raises(ValueError, match="all weights are 0"):
        ReconstructionLoss(l2=0, wavelet=0, perceptual=Perceptual(weight=0))


def test_missing_files_are_named_with_what_to_fetch():
    with pytest.raises(UserError) as caught:
        ReconstructionLoss().check("phases.main.objective")
    text = f"{caught.value.what}: {caught.value.fix}"
    assert "needs files of LPIPS (vgg16)" in text
    assert "https://download.pytorch.org/models/vgg16-397923af.pth" in text
    assert "--set phases.main.objective.perceptual.heads_file=FILE" in text
    assert "--set phases.main.objective.perceptual.weight=0" in text


def test_files_of_another_network_and_damaged_files_are_refused(lpips, tmp_path):
    _, config = lpips
    with pytest.raises(UserError, match=r"is not torchvision's vgg16: features.0.weight has the shape"):
        config.model_copy(update={"network": "vgg16"}).check("objective")
    swapped = config.model_copy(update={"heads_file": config.network_file})
    with pytest.raises(UserError, match=r"is not LPIPS for alexnet: lin0.model.1.weight is missing"):
        swapped.check("objective")
    (tmp_path / "net.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match="is no file of weights"):
        config.model_copy(update={"network_file": str(tmp_path / "net.pth")}).check("objective")
    with pytest.raises(UserError, match=r"nowhere.pth does not exist"):
        config.model_copy(update={"network_file": "nowhere.pth"}).check("objective")


def test_a_run_knows_its_files_by_their_hashes(lpips, tmp_path):
    _, config = lpips
    pinned = config.pinned("objective")
    moved = tmp_path / "moved.pth"
    moved.write_bytes(Path(config.heads_file).read_bytes())
    again = pinned.model_copy(update={"heads_file": str(moved)}).pinned("objective")
    assert again.sha256 == pinned.sha256
    heads = torch.load(moved, weights_only=True)
    torch.save({name: 2 * value for name, value in heads.items()}, moved)
    with pytest.raises(UserError, match=r"SHA-256 \w{12}..., and the run began with"):
        pinned.model_copy(update={"heads_file": str(moved)}).pinned("objective")
    published = pinned.published()
    assert (published.network_file, published.heads_file) == ("net.pth", "heads.pth")
