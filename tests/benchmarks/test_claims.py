"""How benchmarks end."""

import pytest

from benchmarks.claims import conclude


@pytest.mark.parametrize(("slow", "code"), [(True, 0), (None, 0), (False, 1)])
def test_a_benchmark_ends_with_1_if_a_claim_does_not_hold(slow, code, capsys):
    with pytest.raises(SystemExit) as end:
        conclude({"it is fast": True, "it is slow": slow})
    assert end.value.code == code
    word = "FAILS" if code else "holds"
    assert capsys.readouterr().out.split("\n") == ["", "holds  it is fast", f"{word}  it is slow", ""]
