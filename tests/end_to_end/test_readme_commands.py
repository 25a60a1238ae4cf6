"""Each `uhr` command that README.md and docs/ show, as it is there, in its order, after the demo."""

import json
import shlex
import subprocess
import sys

import pytest


def commands(blocks) -> list[str]:
    lines = [line for block in blocks for line in block.text.splitlines()]
    return [line for line in lines if line.startswith("uhr ")]


@pytest.fixture
def here(documents, walked, monkeypatch):
    """The demo's folder as the current one, with every file that the documents show."""
    files = documents.write_files(walked.folder)
    monkeypatch.chdir(walked.folder)
    monkeypatch.syspath_prepend(walked.folder)
    yield walked.folder
    for file in files:
        sys.modules.pop(file.stem, None)
        sys.modules.pop(file.parent.name, None)
        sys.modules.pop(f"{file.parent.name}.{file.stem}", None)


SMALLER = {
    "phases.0.steps=10": "phases.0.steps=3 --set runtime.precision=float32",
    "--size 512x512": "--size 256x256",
    "--prompts demo/wide": "--prompts demo/wide --engine local --workers 0",
}
"""What is shorter here than the documents show it, or quicker: a CPU computes bfloat16 slowly. Each is in
one command of theirs."""


def smaller(command: str) -> str:
    for shown, here in SMALLER.items():
        command = command.replace(shown, here)
    return command


def test_every_command_of_the_documents_works(documents, here, warm_curation_workers, capsys):
    from uhr.cli import main

    shown = commands(documents.blocks("bash"))
    assert shown[0] == "uhr demo"  # the fixture has done it
    assert len(shown) > 30
    assert all(sum(part in command for command in shown) == 1 for part in SMALLER)
    for command in map(smaller, shown[1:]):
        code = main(shlex.split(command)[1:])
        assert code == 0, f"{command}\n{capsys.readouterr().err}"


def test_every_command_for_an_object_store_works(documents, here, s3, capsys):
    from uhr.cli import main

    (block,) = [block for block in documents.blocks("sh") if block.name == "s3"]
    shown = commands([block])
    assert len(shown) == 2
    for command in shown:
        arguments = shlex.split(command.replace("s3://bucket/", f"s3://{s3.bucket}/"))[1:]
        if "--prompts" in arguments:
            arguments += ["--workers", "0"]  # a process of its own would only cost time here
        assert main(arguments) == 0, f"{command}\n{capsys.readouterr().err}"
    for name in ("lake.png", "lake.json", "lakes/set.json"):
        assert s3.puts(name), name


def test_the_python_of_the_documents_runs(documents, here, monkeypatch):
    import datasets

    from uhr.manifests.manifest import Manifest

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", here / "datasets")
    blocks = [block for block in documents.blocks("python") if not block.is_file]
    assert len(blocks) == 5
    found: dict = {}
    for block in blocks:
        exec(compile(block.text, str(block.document), "exec"), found)
    assert (found["image"].size, found["larger"].size) == ((256, 256), (384, 384))
    assert 0 < Manifest.open(here / "demo/rich-halves").info.counts["rows"] == found["rich"].count()


OWN_PROCESS = [
    "doctor --json",
    "curate run quickstart --source demo/pictures/photographs --out own/set --engine local --workers 1",
    "curate status own/set --json",
    "curate explain own/set bus.jpg --json",
    "curate show quickstart",
    "curate stages --json",
    "manifest show own/set --json",
    "manifest slice own/set --where 'width > 256' --sample 3 --out own/slice --json",
    "manifest lineage own/slice --json",
    "manifest verify own/slice --json",
    "manifest report own/slice",
    "models list --json",
    "models show tiny-flux1 --json",
    "models make-tiny own/model",
    "sample list --json",
    "sample euler --model own/model --prompt x --size 128x128 --steps 2 --out own/x.png",
    "train recipes --json",
    "train show lora --json",
    "train plan lora --model own/model --json",
    "train encode own/slice --model own/model --out own/encoded",
    "train run lora --model own/model --data own/encoded --out own/run --set phases.0.steps=2 "
    "--set runtime.precision=float32",
    "train resume own/run",
    "train export own/run --out own/adapter",
]
"""Each command once as a user starts it, in an order in which one finds what another left."""


def test_every_command_works_as_a_process_of_its_own(walked, warm):
    for command in OWN_PROCESS:
        done = warm.uhr(*shlex.split(command), cwd=walked.folder, warm_workers=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout.strip(), command
        if command.endswith("--json"):
            json.loads(done.stdout)


def test_a_cold_process_generates_an_image(walked):
    """With nothing imported before, as users start it."""
    command = "sample euler --model demo/tiny-flux1 --prompt x --size 128x128 --steps 1 --out cold.png"
    done = subprocess.run(
        [sys.executable, "-m", "uhr", *command.split()],
        cwd=walked.folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (walked.folder / "cold.png").is_file()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("curate run quikstart --source demo/pictures --out x", "did you mean quickstart"),
        ("curate run quickstart --source demo/nowhere --out x", "nowhere"),
        (
            "curate run quickstart --source demo/pictures --out x --set rules.bad='entropi > 3'",
            "did you mean entropy",
        ),
        ("curate run quickstart --source demo/pictures --out x --set rules.bad='entropy >'", "rule 'bad'"),
        ("curate run quickstart --source demo/pictures --out x --set limts.seconds=3", "did you mean limits"),
        ("manifest slice demo/manifest --where 'widht > 3' --out x", "did you mean width"),
        ("manifest show demo/pictures", "manifest"),
        ("train run lora --model demo/tiny-flux1 --data demo/slice --out x", "encode"),
        ("train resume demo/nowhere", "nowhere"),
        ("sample eular --model demo/tiny-flux1 --prompt x --out x.png", "did you mean euler"),
        ("sample euler --model demo/tiny-flux1 --prompt x --size 100x100 --out x.png", "96x96 or 112x112"),
        ("models show flux1-dave", "uhr models list"),
        ("curate", None),
        ("no-such-command", "no-such-command"),
    ],
)
def test_a_mistake_is_one_line_with_the_fix_and_not_exit_code_0(
    walked, command, message, monkeypatch, capsys
):
    from uhr.cli import main

    monkeypatch.chdir(walked.folder)
    assert main(shlex.split(command)) != 0
    error = capsys.readouterr().err.strip()
    assert "Traceback" not in error
    if message is not None:
        assert len(error.splitlines()) == 1, error
        assert message in error
    assert not (walked.folder / "x").exists()
    assert not (walked.folder / "x.png").exists()
