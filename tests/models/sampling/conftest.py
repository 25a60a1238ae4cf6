"""What the tests of `uhr sample` share."""

import pytest

from uhr.cli import main


@pytest.fixture
def uhr(capsys):
    """Runs `uhr sample`; (stdout, stderr)."""

    def run(*words, code=0):
        found = main(["sample", *(str(word) for word in words)])
        said = capsys.readouterr()
        assert found == code, said.err
        return said

    return run
