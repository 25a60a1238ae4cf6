"""The report in a real browser: offline, filtered, and readable in any window."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from uhr.manifests.manifest import Manifest
from uhr.manifests.report import write_report


@pytest.fixture(scope="module")
def file(
    tmp_path_factory: pytest.TempPathFactory,
    make: Callable[..., Manifest],
    make_row: Callable[..., dict[str, Any]],
) -> Path:
    """The report on 200 rows."""
    folder = tmp_path_factory.mktemp("report page")
    rows = [
        make_row(number, caption=f"picture {number} of a lake", blockiness=number * number + 1.0)
        for number in range(200)
    ]
    return write_report(make(folder / "set", rows), folder / "a report.html")


@pytest.fixture
def page(browser: Any, file: Path) -> Iterator[Any]:
    """The report, opened as a file. At the end it must have had no faults, and requested nothing."""
    with browser.page() as page:
        page.open(file.as_uri())
        yield page
        assert page.faults == []
        assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []


def visible(page: Any) -> list[str]:
    return [text.split("\n")[0] for text in page.texts(".gallery .image .name, .unseen .image code")]


def test_the_gallery_is_filtered_by_group_score_and_name(page: Any) -> None:
    assert page.text("#found") == "120 images"
    page.choose("#find-group", "1")
    page.run("document.querySelector('#find-group').dispatchEvent(new Event('input', {bubbles: true}))")
    page.until("document.querySelector('#found').innerText === '60 images'")
    assert all(text.startswith("Rejected") for text in page.texts(".group-head b"))
    page.choose("#find-score", "0")
    page.write("#find-low", "1")
    page.write("#find-high", "2")
    page.until("document.querySelector('#found').innerText !== '60 images'")
    values = page.texts(".image .value")
    assert values
    assert all(1 <= float(text.split()[-2]) <= 2 for text in values if "entropy" in text)
    page.write("#find", "no such name")
    page.until("document.querySelector('#found').innerText === '0 images'")
    assert visible(page) == []


def test_any_two_scores_are_drawn_with_the_thresholds_of_rules(page: Any) -> None:
    names = page.run("document.querySelector('#scatter-plot').dataset.names.split(' ')")
    assert names[0] == "entropy", "columns that rules compare come first"
    assert page.text(".needs-script") == ""
    count = "document.querySelectorAll('#scatter-plot circle').length"
    assert page.run(count) == 180
    assert page.run("document.querySelectorAll('#scatter-plot .cut').length") == 1
    for name, cuts in (("blockiness", 0), ("entropy", 1)):
        page.choose("#scatter-x", str(names.index(name)))
        assert page.run(count) == 180
        assert page.run("document.querySelectorAll('#scatter-plot .cut').length") == cuts
        label = page.run("document.querySelector('#scatter-plot svg').getAttribute('aria-label')")
        assert label.endswith(f"over {name}: 180 samples")
    page.choose("#scatter-x", str(names.index("blockiness")))
    assert "blockiness, logarithmic" in page.run("document.querySelector('#scatter-plot svg').textContent")


@pytest.mark.parametrize("width", [1280, 760, 390])
def test_nothing_is_cut_or_covered_in_any_window(page: Any, width: int) -> None:
    page.resize(width)
    page.run("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert not page.is_wider_than_its_window()
    for number in range(page.run("document.querySelectorAll('svg').length")):
        mark = f"one.classList.toggle('now', n === {number})"
        page.run(f"document.querySelectorAll('svg').forEach((one, n) => {mark})")
        assert page.overlaps("svg.now text") == []
    assert page.overlaps(".card, .tile") == []


def test_the_page_is_dark_where_the_system_is_and_its_texts_stay_legible(page: Any) -> None:
    luma = """(of) => {
        const [r, g, b] = of.match(/[\\d.]+/g).map(Number);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    }"""
    styles = """[
            ["body", "color"], ["body", "backgroundColor"],
            [".tile", "backgroundColor"], [".tile span", "color"],
        ].map(([one, what]) => luma(getComputedStyle(document.querySelector(one))[what]))"""
    found = {}
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.call("Emulation.setEmulatedMedia", features=features)
        found[scheme] = page.run(f"(() => {{ const luma = {luma}; return {styles}; }})()")
    ink, ground, card, soft = found["light"]
    assert max(ink, soft) < 110 < 230 < min(ground, card)
    ink, ground, card, soft = found["dark"]
    assert max(ground, card) < 50 < 140 < min(ink, soft)


def test_a_table_that_goes_on_has_a_shadow_at_its_edge(page: Any) -> None:
    page.resize(390, 900)
    table = "document.querySelector('.card.scroll')"
    assert page.run(f"{table}.scrollWidth > {table}.clientWidth")
    assert "gradient" in page.run(f"getComputedStyle({table}).backgroundImage")
