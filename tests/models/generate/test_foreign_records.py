"""A record may come from anybody: it runs no code, fetches nothing, and names files of this machine alone."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from uhr.models.generate import record

pytestmark = pytest.mark.usefixtures("short_prompts")


@pytest.fixture
def foreign_record(uhr, tiny_flux, tmp_path, monkeypatch):
    """A maker of somebody's PNG by euler, with changes to its record, in the working folder."""
    own = ("euler", "--model", tiny_flux, "--out", tmp_path / "own.png", "--prompt", "a lake")
    uhr(*own, "--steps", 2, "--size", "64x64", "--device", "cpu")
    monkeypatch.chdir(tmp_path)

    def make(**changes):
        found = record.read_record(tmp_path / "own.png")
        for name, change in changes.items():
            found[name] = change if isinstance(change, list) else found[name] | change
        record.write(Path("strange.png"), Image.open(tmp_path / "own.png"), found)
        return "strange.png"

    return make


def test_a_record_runs_no_code_that_the_user_does_not_name(uhr, foreign_record, tmp_path):
    code = "from pathlib import Path; Path('ran').touch(); X = 1"
    (tmp_path / "strange_module_of_somebody.py").write_text(code)
    name = "strange_module_of_somebody:X"
    image = foreign_record(request={"sampler": name})
    for more in ((), ("--sampler", "euler"), ("--sampler", "other:X")):
        error = uhr("--repeat", image, "--out", "two.png", *more, code=1).err
        assert f"names the sampler '{name}': if you trust its code, name it: --sampler {name}" in error
    assert not Path("ran").exists()
    assert (
        "is not a sampler: derive it"
        in uhr("--repeat", image, "--out", "two.png", "--sampler", name, code=1).err
    )
    assert Path("ran").exists()
    # what is to be copied into a shell is quoted
    image = foreign_record(request={"sampler": "a:b; echo c"})
    assert "--sampler 'a:b; echo c'" in uhr("--repeat", image, "--out", "two.png", code=1).err


def test_a_sampler_of_the_users_own_is_repeated_by_its_name(uhr, tiny_flux, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = "from uhr.models.samplers.euler import EulerPipeline\n\n\nclass Own(EulerPipeline):\n    pass\n"
    Path("sampler_of_the_users_own.py").write_text(lines)
    own = "sampler_of_the_users_own:Own"
    uhr(own, "--model", tiny_flux, "--prompt", "a", "--out", "one.png", "--steps", 1, "--size", "64x64")
    assert "name it" in uhr("--repeat", "one.png", "--out", "two.png", code=1).err
    assert "identical: all" in uhr("--repeat", "one.png", "--out", "two.png", "--sampler", own).out


class Hub:
    """Replaces `huggingface_hub.snapshot_download`: it has one folder, in its cache or not."""

    def __init__(self, folder, cached):
        self.folder, self.cached, self.requests = folder, cached, []

    def __call__(self, repository, *, revision, local_files_only=False, **_):
        from huggingface_hub.errors import LocalEntryNotFoundError

        self.requests.append((repository, revision, local_files_only))
        if local_files_only and not self.cached:
            raise LocalEntryNotFoundError("not here")
        return str(self.folder)


@pytest.mark.parametrize("lone", [False, True])
def test_a_record_fetches_nothing_that_the_user_does_not_name(
    lone, uhr, tiny_flux, foreign_record, tmp_path, monkeypatch
):
    import huggingface_hub

    backbone = tmp_path / "backbone.safetensors"
    shutil.copy(tiny_flux / "transformer" / "diffusion_pytorch_model.safetensors", backbone)
    names = {"name": str(backbone), "base": "strange/repo"} if lone else {"name": "strange/repo"}
    image = foreign_record(model={**names, "revision": "deadbeef"}, request={"spec": "tiny-flux1"})
    hub = Hub(tiny_flux, cached=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    # a file is named, and the record names the rest
    for more in ((), ("--model", backbone)) if lone else ((),):
        error = uhr("--repeat", image, "--out", "two.png", *more, code=1).err
        assert "nor in the hub's cache" in error
        assert "name it: --model strange/repo" in error
    assert hub.requests
    assert all(local for _, _, local in hub.requests)
    hub.cached = True
    assert "identical: all" in uhr("--repeat", image, "--out", "two.png").out
    assert {(name, local) for name, _, local in hub.requests} == {("strange/repo", True)}
    hub.cached, hub.requests = False, []
    own = ("--model", "strange/repo@deadbeef")
    assert "identical: all" in uhr("--repeat", image, "--out", "three.png", *own).out
    assert not any(local for _, _, local in hub.requests)


def test_adapters_weights_and_images_of_a_record_are_paths_and_nothing_else(uhr, foreign_record, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    for changes in (
        {"request": {"adapters": [{"name": "strange/lora", "scale": 1}]}, "adapters": [{}]},
        {"request": {"transformer": "strange/weights"}},
        {"request": {"vae": "https://example.org/vae.safetensors"}},
        {"item": {"image": "https://example.org/x.png"}},
    ):
        assert "does not exist" in uhr("--repeat", foreign_record(**changes), "--out", "two.png", code=1).err
