"""Colours and fonts of pages have one home."""

import re
from pathlib import Path

import uhr
from uhr.base.pages.template import THEME, template

ROOT = Path(uhr.__file__).parent
PAGES = [
    file.resolve()
    for folder in (ROOT, *(ROOT / name for name in ("manifests", "curate", "models", "train")))
    for kind in ("*.css", "*.html")
    for file in folder.rglob(kind)
]


def test_no_page_names_a_font_or_defines_a_colour_of_the_theme_again():
    defined = re.compile(r"(--[\w-]+)\s*:|(system-ui|monospace)")
    theirs = {name for name, _ in defined.findall(THEME.read_text())} - {"--under"}  # what lies under a table
    assert {"--ink", "--paper", "--kept-ink", "--sans"} <= theirs
    others = set(PAGES) - {THEME.resolve()}
    assert len(others) >= 8
    for file in others:
        assert {
            name for pair in defined.findall(file.read_text()) for name in pair if name
        } & theirs == set(), file
        assert "system-ui" not in file.read_text(), file


def test_a_page_that_uses_a_colour_of_the_theme_has_the_theme():
    for file in set(PAGES):
        text = file.read_text()
        if file.suffix == ".html" and "<head>" in text:
            assert "theme.css" in text, file


def test_values_are_escaped_and_control_characters_shown(tmp_path):
    (tmp_path / "page.html").write_text("<p>{{ value }}</p><style>{% include 'theme.css' %}</style>")
    page = template(tmp_path / "page.html", extra="curate").render(value="<b>\u202e\x07")
    assert "<p>&lt;b&gt;" in page
    assert "\u202e" not in page
    assert "\x07" not in page
    assert "--ink" in page
