"""What the command does around every other: where it searches for modules."""

import os
import sys

from uhr import cli
from uhr.runtime.worker import search_path


def test_a_command_searches_the_working_folder_last_and_only_while_it_runs(tmp_path, monkeypatch):
    before = [folder for folder in sys.path if folder]
    monkeypatch.setattr(sys, "path", list(before))
    monkeypatch.chdir(tmp_path)
    seen = []

    def command(args, **_):
        if args == ["demo"]:  # which runs other commands
            assert cli.main(["inner"]) == 0
        seen.append((list(sys.path), search_path()))

    monkeypatch.setattr(cli, "_command", lambda group: command)
    assert cli.main(["demo"]) == 0
    assert len(seen) == 2
    for here, in_workers in seen:
        assert here == [*before, ""]
        assert in_workers[-1] == os.getcwd()
    assert sys.path == before


def test_a_users_own_recipe_is_found_in_the_working_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes_of_mine.py").write_text(
        "from uhr.train.recipes.lora import RECIPE\nmine = RECIPE.model_copy(update={'about': 'of mine'})\n"
    )
    assert cli.main(["train", "show", "recipes_of_mine:mine"]) == 0, capsys.readouterr().err
    assert "of mine" in capsys.readouterr().out
