"""What starts from `tests/processes.py` is a process like any other."""

import os
import signal
import subprocess
import sys
import time

import pytest

REPORT = (
    "import os, sys; print(os.getcwd(), os.environ.get('MARK'), sys.argv, __name__, sys.path[0]); "
    "print('late', file=sys.stderr); sys.exit(3)"
)


def test_output_exit_code_folder_environment_and_arguments_are_those_of_a_cold_process(
    warm_curation, tmp_path
):
    arguments, env = ["-c", REPORT, "a", "b c"], {**os.environ, "MARK": "x y", "PYTHONPATH": str(tmp_path)}
    found = warm_curation.run(arguments, cwd=tmp_path, env=env)
    cold = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout, found.stderr) == (3, cold.stdout, cold.stderr)


@pytest.mark.parametrize(
    "code", ["raise ValueError('no')", "raise KeyboardInterrupt", "import os; os.abort()", "import atexit; "
             "atexit.register(print, 'bye')", "import multiprocessing; assert __name__ == '__main__'"]
)  # fmt: skip
def test_it_ends_as_a_cold_process_ends(warm_curation, code):
    cold = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    found = warm_curation.run(["-c", code])
    assert (found.returncode, found.stdout) == (cold.returncode, cold.stdout)
    assert found.stderr.splitlines()[-1:] == cold.stderr.splitlines()[-1:]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_it(warm_curation, number):
    process = warm_curation.start(["-c", "import time; print('up', flush=True); time.sleep(60)"])
    while "up" not in process.stdout():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(20) == -number
    assert ("KeyboardInterrupt" in process.stderr()) == (number == signal.SIGINT)


def test_a_new_session_is_a_group_of_its_own(warm_curation):
    process = warm_curation.start(["-c", "import time; time.sleep(60)"], new_session=True)
    assert os.getpgid(process.pid) == process.pid
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(20) == -signal.SIGKILL


def test_nothing_of_one_process_is_in_the_next(warm_curation):
    assert (
        warm_curation.run(["-c", "import uhr; uhr.mark = 1; import os; os.environ['MARK'] = '1'"]).returncode
        == 0
    )
    code = "import uhr, os; print(hasattr(uhr, 'mark'), 'MARK' in os.environ)"
    assert warm_curation.run(["-c", code]).stdout == "False False\n"
