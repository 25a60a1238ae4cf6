"""`uhr doctor` answers without importing anything; with --deep it says what fails, and how."""

import importlib.metadata
import json
import subprocess
import sys

import pytest

from uhr import doctor
from uhr.cli import main
from uhr.doctor import Requirement

TOPS = sorted({requirement.module.partition(".")[0] for requirement in doctor.REQUIREMENTS})


def test_without_deep_no_package_is_imported_and_every_version_is_reported():
    code = (
        "import sys; from uhr.cli import main; assert main(['doctor', '--json']) == 0\n"
        f"print(sorted(set(sys.modules) & set({TOPS!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    tree, _, imported = done.stdout.rstrip().rpartition("\n")
    assert imported == "[]"
    found = json.loads(tree)
    assert found["accelerator"] is None
    versions = {row["package"]: row["version"] for row in found["packages"]}
    assert versions["torch"] == importlib.metadata.version("torch")
    assert versions.keys() == {requirement.package for requirement in doctor.REQUIREMENTS}
    assert {row["works"] for row in found["packages"] if row["version"]} == {None}


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Packages on the path of other processes: one that does not import, one that crashes, and a torch whose
    driver is too old."""
    (tmp_path / "jinja2.py").write_text("raise RuntimeError('built for\\nanother Python')")
    (tmp_path / "yaml.py").write_text("import os; os.abort()")
    (tmp_path / "torch.py").write_text(
        "import warnings\n"
        "class cuda:\n"
        "    def is_available():\n"
        "        warnings.warn('CUDA initialization: the NVIDIA driver is too old')\n"
        "        return False\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(
        doctor,
        "REQUIREMENTS",
        (
            Requirement("duckdb", "duckdb", "", "slices"),
            Requirement("jinja2", "jinja2", "curate", "reports"),
            Requirement("pyyaml", "yaml", "curate", "configuration"),
            Requirement("numpy", "no_such_module", "curate", "arrays"),
            Requirement("no-such-package", "json", "curate", "nothing"),
        ),
    )
    return tmp_path


def test_deep_reports_what_does_not_import_and_what_torch_says_of_a_driver(broken, capsys):
    assert main(["doctor", "--deep", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["works"], row["fault"]) for row in found["packages"]] == [
        (True, ""),
        (False, "RuntimeError: built for another Python"),
        (False, "the import ended the process (exit code -6)"),
        (False, "installed, but its module no_such_module is missing"),
        (False, "not installed"),
    ]
    assert found["accelerator"]["device"] == "cpu"
    assert found["accelerator"]["fault"] == "CUDA initialization: the NVIDIA driver is too old"

    assert main(["doctor", "--deep"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "torch says: CUDA initialization: the NVIDIA driver is too old" in lines
    assert [line.split()[0] for line in lines[-5:]] == ["ok", "BROKEN", "BROKEN", "BROKEN", "MISSING"]


def test_deep_reports_a_package_that_ends_the_process_without_an_error(broken):
    """A loop that waited for this module's line would never end."""
    (broken / "yaml.py").write_text("import os; os._exit(0)")
    rows = {row["package"]: row for row in doctor.examine(deep=True)["packages"]}
    assert rows["pyyaml"]["fault"] == "the import ended the process (exit code 0)"
    assert rows["pyyaml"]["works"] is False


def test_deep_reports_a_gpu_that_is_there_and_cannot_compute(broken):
    (broken / "torch.py").write_text(
        "class cuda:\n"
        "    is_available = lambda: True\n"
        "    get_device_name = lambda: 'Old GPU'\n"
        "    mem_get_info = lambda: (1, 2)\n"
        "def ones(*size, device):\n"
        "    raise RuntimeError('no kernel image is available')\n"
    )
    assert doctor.examine(deep=True)["accelerator"] == {
        "device": "cuda",
        "name": "Old GPU",
        "memory_bytes": 2,
        "fault": "RuntimeError: no kernel image is available",
    }


def test_deep_reports_a_torch_that_does_not_import_or_crashes(broken):
    (broken / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    found = doctor.examine(deep=True)["accelerator"]
    fault = "ImportError: libcudart.so.13: cannot open shared object file"
    assert (found["device"], found["fault"]) == ("none", fault)
    (broken / "torch.py").write_text(
        "import os, sys\nprint('bad magic', file=sys.stderr, flush=True); os.abort()"
    )
    found = doctor.examine(deep=True)["accelerator"]
    assert (found["device"], found["fault"]) == ("none", "torch crashed: bad magic")


@pytest.mark.parametrize("module", ["duckdb", "no_such_module"])
def test_a_core_package_that_is_missing_is_exit_code_1(module, monkeypatch, capsys):
    package = "no-such-package" if module == "duckdb" else "duckdb"
    monkeypatch.setattr(doctor, "REQUIREMENTS", (Requirement(package, module, "", "slices"),))
    assert main(["doctor"]) == 1
    assert ("MISSING" if module == "duckdb" else "BROKEN") in capsys.readouterr().out


def test_the_exit_code_says_whether_a_preset_runs_here(capsys, tmp_path):
    assert main(["doctor", "--preset", "as-is", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["preset_fault"] is None
    assert not all(stage["runs"] for stage in found["preset"]), "without a stage that may be skipped it runs"
    # without models for watermarks and aesthetics it runs
    assert main(["doctor", "--preset", "gca-patches", "--json"]) == 0
    patches = [stage for stage in json.loads(capsys.readouterr().out)["preset"] if not stage["runs"]]
    assert [stage["stage"] for stage in patches] == ["watermark", "embedding", "laion_aesthetic"]
    assert main(["doctor", "--preset", "multiaspect-4k"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    fault = (
        "The preset does not run: stage 'safety' cannot run: no model is named: --set 'stages.safety.nsfw="
    )
    assert last.startswith(fault), "the fix is that of `curate run`"
    # each of its stages can be skipped or runs, and a required rule needs one of them
    needy = tmp_path / "needy.yaml"
    entry = "{stage: artimuse, if_missing: skip, adds: [artimuse]}"
    needy.write_text(
        f"stages: [header, {entry}]\nrules: {{taste: {{where: artimuse > 50, required: true}}}}\n"
    )
    assert main(["doctor", "--preset", str(needy)]) == 1
    assert "rule 'taste' is required" in capsys.readouterr().out.splitlines()[-1]
