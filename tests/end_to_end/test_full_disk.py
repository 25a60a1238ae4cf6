"""A disk without space: one line says which file, what is safe and how to go on; nothing is half-written."""

import resource
import shutil
import subprocess
import sys

import pytest

TRAIN = (
    "train run lora --model {small}/model --data {small}/encoded --out {disk}/run --set phases.0.steps=6 "
    "--set runtime.device=cpu --set runtime.precision=float32 --set runtime.checkpoint_every=2"
)
SAMPLE = "sample euler --model {small}/model --size 128x128 --steps 1"
SET = SAMPLE + " --prompts {small}/prompts.txt --engine local --workers {workers} --out {disk}/set"
CURATE = "curate run quickstart --source {small}/images --out {disk}/set --engine local --workers {workers}"

WRITERS = {
    "make-tiny": ("models make-tiny {disk}/model", 60, "model", []),
    "curate": (CURATE, 8, "set", ["set"]),
    "curate, workers": (CURATE.replace("{workers}", "1"), 60, "set/units", ["set"]),
    "slice": ("manifest slice {small}/set --out {disk}/slice", 60, "slice", []),
    "report": ("manifest report {small}/set --out {disk}/report.html", 8, "report.html", []),
    "encode": (
        "train encode {small}/slice --model {small}/model --out {disk}/encoded --device cpu", 24,
        "encoded/units/texts", ["encoded"],
    ),
    "train, log": (TRAIN, 4, "run", ["run"]),
    "train, checkpoint": (TRAIN, 130, "run/checkpoints", ["run"]),
    "export": ("train export {small}/run --out {disk}/adapter", 24, "adapter", []),
    "sample": (SAMPLE + " --prompt a --out {disk}/image.png", 8, "image.png", []),
    "set": (SET, 12, "set/pictures/0000.png", ["set"]),
}  # fmt: skip
"""Command, KiB that it finds, what of the disk its error names, and the names that it may leave there, from
which it goes on."""


@pytest.fixture
def disk(tmp_path):
    """`disk(KiB)`: a file system of that size, empty; called again it grows."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def sized(size):
        options = f"remount,size={size}k" if mounted else f"size={size}k"
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("only root can mount a small disk")
        mounted.append(folder)
        return folder

    yield sized
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.usefixtures("warm_curation_workers")
@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_reports_a_full_disk_leaves_no_partial_file_and_goes_on_with_space(
    writer, small, disk, capfd
):
    from uhr.cli import main

    line, size, named, may_stay = WRITERS[writer]
    folder = disk(size)
    arguments = line.format(small=small, disk=folder, workers=0).split()
    assert main(arguments) == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"uhr: {folder / named}"), error
    assert "No space left on device" in error
    assert "free space" in error
    assert "unexpected" not in error
    assert sorted(path.name for path in folder.iterdir()) == may_stay
    assert not list(folder.rglob(".*.tmp"))
    disk(100_000)
    assert main(arguments) == 0, capfd.readouterr().err


def test_a_read_only_disk_is_read_and_writing_to_it_is_an_error(small, disk, capfd):
    from uhr.cli import main

    folder = disk(100_000)
    shutil.copytree(small / "set", folder / "set")
    shutil.copytree(small / "run", folder / "run")
    (folder / "killed" / "units").mkdir(parents=True)
    (folder / "killed" / "units" / "lock").touch()
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    for arguments in (
        "manifest show {}/set",
        "curate status {}/set",
        "curate status {}/killed",
        "train log {}/run",
    ):
        assert main(arguments.format(folder).split()) == 0, capfd.readouterr().err
    for arguments, fix in {
        "manifest report {}/set": "set/report.html cannot be written: make it writable, or name "
        "another file with --out",
        "train resume {}/run --set phases.0.steps=5": "run cannot be written: make it writable",
        "train export {}/run --out {}/adapter": "adapter cannot be written: make it writable and export",
        "manifest slice {}/set --out {}/slice": "slice cannot be written to: name another folder",
    }.items():
        assert main(arguments.replace("{}", str(folder)).split()) == 1
        assert fix in capfd.readouterr().err.replace(" (Read-only file system)", "")


LIMITED = """
import resource, sys
from uhr.cli import main

size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
sys.exit(main(sys.argv[2:]))
"""


def limited(warm, arguments, size):
    """Run a command as a process that may write no file of more than `size` bytes."""
    return warm.run(["-c", LIMITED, size, *arguments])


def test_a_run_names_the_step_that_is_saved_and_the_command_that_goes_on(small, warm, tmp_path):
    run = shutil.copytree(small / "run", tmp_path / "run")
    more = ("--set", "phases.0.steps=5")
    where = ("--model", small / "model", "--data", small / "encoded")
    done = limited(warm, ["train", "resume", run, *where, *more], 100_000)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        f"uhr: {run / 'checkpoints'} cannot be written (File too large): step 3 is saved; free space, then "
        f"`uhr train resume {run}`"
    )
    left = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert left == ["step-00000002", "step-00000003"]
    again = limited(warm, ["train", "resume", run, *where], resource.RLIM_INFINITY)
    assert again.returncode == 0, again.stderr
    assert (run / "checkpoints" / "step-00000005").is_dir()


@pytest.mark.parametrize(
    "line", ["models make-tiny {disk}/new", "train export {small}/run --out {disk}/deep/new"]
)
def test_weights_that_cannot_be_written_leave_no_folder(line, small, warm, tmp_path):
    done = limited(warm, line.format(small=small, disk=tmp_path).split(), 50_000)
    assert done.returncode == 1
    assert "new cannot be written (File too large): free space" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_written_is_one_line(small):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "uhr", "models", "list"]
        done = subprocess.run(command, check=False, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "nothing more can be written (No space left on device)" in done.stderr
    assert "Traceback" not in done.stderr
