"""The Inception network of FID, from either of its files, and the resize rules.

docs/metrics.md has how far its features and distances differ from those of clean-fid, torchmetrics and
pytorch-fid on the same weights; here its differences from torchvision's network are checked.
"""

import numpy as np
import pytest
import torch

from uhr.base.errors import UserError
from uhr.models.metrics.features import Features
from uhr.models.metrics.registry import metric
from uhr.models.metrics.resizing import bilinear, clean, rule, square
from uhr.models.metrics.sets.inception import CLASSES, WIDTH, fid_inception, load_network

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return fid_inception().eval()


@pytest.fixture(scope="module")
def state_file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(network.state_dict(), path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "pool"),
    [
        ("Mixed_5b", lambda x: torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)),
        ("Mixed_6e", lambda x: torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)),
        ("Mixed_7b", lambda x: torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)),
        ("Mixed_7c", lambda x: torch.nn.functional.max_pool2d(x, 3, 1, 1)),
    ],
)
def test_the_pooled_branch_is_that_of_tensorflows_network(network, name, pool):
    block = getattr(network, name)
    x = torch.rand(2, block.branch1x1.conv.in_channels, 5, 5, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = block(x)
        branch = block.branch_pool.conv(pool(x))
        expected = torch.relu(block.branch_pool.bn(branch))
    torch.testing.assert_close(found[:, -expected.shape[1] :], expected)


def test_features_and_probabilities_of_a_state_dict(network, state_file):
    loaded = load_network(state_file)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 299, 299, 3)).astype(np.float32)
    features, probabilities = loaded(pixels)
    with torch.inference_mode():
        logits = network(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 128 - 1)
        # without the bias of the last layer
        expected = (logits - network.fc.bias).softmax(dim=1)
    assert features.shape == (1, WIDTH)
    np.testing.assert_allclose(probabilities, expected.numpy(), rtol=1e-3)
    assert load_network(state_file) is loaded  # several metrics share it


class Script(torch.nn.Module):
    """What StyleGAN2's TorchScript has: `layers`, which give the features, and `output`."""

    def __init__(self, classes: int = CLASSES):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, WIDTH)
        )
        self.output = torch.nn.Linear(WIDTH, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.layers(x))


@pytest.fixture(scope="module")
def script_file(tmp_path_factory):
    torch.manual_seed(0)
    path = str(tmp_path_factory.mktemp("script") / "inception-2015-12-05.pt")
    torch.jit.script(Script()).save(path)
    return path


def test_features_of_a_torch_script_and_what_its_metrics_share(script_file):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (320, 340, 3), dtype=np.uint8) for _ in range(12)]
    named = {name: metric(name, weights=script_file) for name in ("fid", "kid", "inception-score")}
    extractors = [made.extractor for made in named.values()]
    assert len({str(extractor.identity()) for extractor in extractors}) == 1
    features = Features.merge([extractors[0].features(image, n) for n, image in enumerate(images)])
    with torch.inference_mode():
        torch.manual_seed(0)
        pixels = torch.from_numpy(clean(images[3])).permute(2, 0, 1)[None]
        expected = Script().layers((pixels - 128) / 128).numpy()
    np.testing.assert_allclose(features.rows("features", np.array([3])), expected, rtol=1e-5, atol=1e-6)
    assert named["fid"].name == "fid/inception-v3-2015/clean-299"
    (same,) = named["fid"].compare(features, features).values()
    assert same.value == pytest.approx(0, abs=1e-6)
    (score,) = named["inception-score"].compare(None, features).values()
    assert score.value >= 1
    patches = metric("patch-fid", weights=script_file, crops=2)
    assert patches.name == "patch-fid/inception-v3-2015/native-2x299"
    with pytest.raises(UserError, match=r"generated images .*clean-299.*native-2x299"):
        patches.compare(features, features)


def test_files_of_other_networks_are_one_line(tmp_path, network):
    torch.jit.script(Script(classes=1000)).save(str(tmp_path / "other.pt"))
    with pytest.raises(UserError, match=r"output layer of \(1000, 2048\), not \(1008, 2048\)"):
        load_network(str(tmp_path / "other.pt"))
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "linear.pt"))
    with pytest.raises(UserError, match="is not FID's Inception network"):
        load_network(str(tmp_path / "linear.pt"))
    state = {**network.state_dict(), "fc.weight": torch.zeros(1000, WIDTH), "fc.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "imagenet.pth")
    with pytest.raises(UserError, match=r"is not FID's Inception network.*name https://nvlabs"):
        load_network(str(tmp_path / "imagenet.pth"))
    with pytest.raises(UserError, match="do not exist"):
        load_network(str(tmp_path / "missing.pth"))


def test_the_clean_rule_is_pillows_filter_on_floats_for_each_channel():
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (350, 612, 3), dtype=np.uint8)
    found = clean(image)
    for channel in range(3):
        plane = Image.fromarray(image[..., channel].astype(np.float32), mode="F")
        expected = np.asarray(plane.resize((299, 299), resample=Image.BICUBIC)).clip(0, 255)
        assert (found[..., channel] == expected).all()
    assert (found != found.round()).any()


@pytest.mark.parametrize("size", [(420, 500), (500, 333), (400, 400), (300, 410)])
def test_the_squares_of_diffusion_4k_are_torchvisions(size):
    from torchvision.transforms import functional as transforms

    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    planes = torch.from_numpy(image).permute(2, 0, 1)
    expected = transforms.center_crop(transforms.resize(planes, 400), [400, 400])
    assert (square(image, 400) == expected.permute(1, 2, 0).numpy()).all()
    name, resize = rule("diffusion-4k", 400)
    assert name == "diffusion-4k-400-299"
    assert (resize(image) == bilinear(square(image, 400))).all()


def test_a_side_belongs_to_the_rule_that_has_one():
    with pytest.raises(UserError, match="needs the side"):
        rule("diffusion-4k", None)
    with pytest.raises(UserError, match="'clean' has no side, and side is 400"):
        rule("clean", 400)
