"""Text encoders are on the CPU where they do not fit the GPU."""

from types import SimpleNamespace

import pytest
import torch

from uhr.models.estimate.devices import RESERVED
from uhr.models.zoo import load_text_encoders, open_model
from uhr.train.encode.work.memory import text_device


@pytest.mark.parametrize("family", ["tiny_flux", "tiny_flux2"])
def test_they_go_to_the_cpu_where_their_weights_do_not_fit(family, request, monkeypatch, capsys):
    model = open_model(request.getfixturevalue(family))
    loaded = load_text_encoders(model, "bfloat16")
    modules = [part for part in vars(loaded).values() if isinstance(part, torch.nn.Module)]
    size = sum(p.nbytes for module in modules for p in module.parameters())
    assert size
    # buffers are counted too
    for memory, place in ((1.02 * size, "cuda:1"), (0.98 * size, "cpu")):
        card = SimpleNamespace(total_memory=round(memory) + RESERVED)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, card=card: card)
        assert text_device(model, "bfloat16", "cuda:1") == place
        assert ("captions are encoded on the CPU" in capsys.readouterr().err) == (place == "cpu")
    assert text_device(model, "bfloat16", "cpu") == "cpu"
