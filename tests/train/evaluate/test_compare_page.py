"""The page of a comparison, in a browser: tables, rows, and the viewer down to single pixels."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

SIZE = (320, 240)

PAPER = [{"source": "A paper, table 1", "columns": ["FID"], "rows": {"theirs": [143.11]}}]


@pytest.fixture(scope="module")
def page_folder(tmp_path_factory):
    """Results `a` and `b` of three prompts; every image of b has one brighter pixel, at (100, 60)."""
    import os

    from uhr.cli import main
    from uhr.pixels.decode import png

    folder, before = tmp_path_factory.mktemp("page of 50% #1"), Path.cwd()
    os.chdir(folder)
    prompts = ["a lake <script>alert(1)</script>", "</script> a house", "a dog"]
    Path("prompts.txt").write_text("\n".join(prompts))
    metrics = [{"metric": "glcm"}, {"metric": "compression-ratio"}]
    tree = {"name": "mini", "about": "small", "prompts": {"file": "prompts.txt"}, "size": "320x240"}
    Path("mini.yaml").write_text(yaml.safe_dump({**tree, "metrics": metrics, "paper": PAPER}))
    for arm in "ab":
        Path(arm).mkdir()
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 200, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
            pixels[60, 100] = (0, 0, 0) if arm == "a" else (40, 0, 0)
            Path(f"{arm}/{number}.png").write_bytes(png(pixels))
        assert main(["eval", "run", "mini.yaml", "--images", arm, "--out", f"result-{arm}", "--json"]) == 0
    os.chdir(before)
    return folder


@pytest.fixture
def open_page(page_folder, browser, uhr):
    """`open_page(*options)`: write the page and open it in a tab."""

    def make(page, *options):
        given = (
            page_folder / "result-a",
            f"ours={page_folder / 'result-b'}",
            "--out",
            page_folder / "page.html",
        )
        code, _, err = uhr("eval", "compare", *given, *options)
        assert code == 0, err
        page.open((page_folder / "page.html").as_uri())

    return make


def loaded(page):
    page.until("[...document.querySelectorAll('.pane img')].every((one) => one.complete && one.naturalWidth)")


def pixel(page, x, y, tmp_path):
    """The colour of a pixel of the window."""
    from uhr.pixels.decode import decode

    return decode(page.screenshot(tmp_path / "shot.png").read_bytes()).rgb()[y, x].astype(int)


@pytest.mark.parametrize("embed", [0, 64], ids=["linked", "embedded"])
def test_two_images_are_compared_pixel_by_pixel_without_a_network(open_page, browser, tmp_path, embed):
    with browser.page(1400, 900) as page:
        open_page(page, "--embed", embed)
        assert page.texts("h2")[:3] == [
            "Values",
            "Paired differences from result-a",
            "Their values, not computed here",
        ]
        assert "143.11" in page.text(".theirs")
        # of three prompts no difference is clear, and no dot is filled
        dots = page.run(
            "[...document.querySelectorAll('#differences circle')].map((one) => one.classList.value)"
        )
        assert dots
        assert all("hollow" in each.split() for each in dots)
        assert page.texts(".prompt")[0].endswith("a lake <script>alert(1)</script>")
        page.click(".row:nth-child(1) .open", 1)
        loaded(page)
        page.click("#one")
        assert page.text("#scale") == "100 %"
        places = page.run(
            "[...document.querySelectorAll('.pane img')].map((one) => one.getBoundingClientRect().width)"
        )
        assert places == [SIZE[0]] * 2
        # zoom and drag move both
        page.click("#four")
        page.call("Input.dispatchMouseEvent", type="mouseWheel", x=300, y=400, deltaX=0, deltaY=-240)
        page.until("document.getElementById('scale').textContent === '800 %'")
        moves = page.run("[...document.querySelectorAll('.pane img')].map((one) => one.style.transform)")
        assert moves[0] == moves[1]
        middle = "(() => { const [x, y, scale] = document.querySelector('#pane-left img').style.transform"
        middle += ".match(/-?[\\d.]+/g).map(Number), b = document.querySelector('#pane-left')"
        middle += (
            ".getBoundingClientRect(); return [(b.width / 2 - x) / scale, (b.height / 2 - y) / scale]; })()"
        )
        before = page.run(middle)
        page.click("#difference")
        # the same place at the same scale, in a pane of another size
        assert (page.text("#scale"), page.run(middle)) == ("800 %", pytest.approx(before, abs=0.01))
        page.click("#one")
        assert "|result-a - ours| x 4" in page.text("#said")
        x, y = page.run(
            "(() => { const b = document.querySelector('#pane-left img').getBoundingClientRect();"
            " return [Math.floor(b.x + 100.5), Math.floor(b.y + 60.5)]; })()"
        )
        # 40 levels apart, times 4; the codec of embedded images is not exact
        assert pixel(page, x, y, tmp_path)[0] == pytest.approx(160, abs=2 if embed == 0 else 60)
        assert pixel(page, x + 30, y, tmp_path).max() <= (2 if embed == 0 else 60)
        page.click("#flip")
        assert page.text("#pane-right .label").startswith("ours · glcm")
        page.press("ArrowRight")
        loaded(page)
        assert page.text("#where").startswith("1") or "0001" in page.text("#where")
        page.press("Escape")
        assert page.run("document.getElementById('viewer').hidden")
        assert page.faults == []
        assert [url for url in page.requests if url.startswith("http")] == []
        assert not page.is_wider_than_its_window()


def test_rows_are_found_and_ordered_by_their_differences(open_page, browser, page_folder):
    with browser.page() as page:
        open_page(page)
        names = page.texts(".row .prompt b")
        data = json.loads(page.run("document.getElementById('data').textContent"))
        page.choose("#order", "0")
        apart = [row["apart"]["0"] for row in data["rows"]]
        assert page.texts(".row .prompt b") == [
            names[at] for at in np.argsort([-one for one in apart], kind="stable")
        ]
        page.write("#find", "HOUSE")
        assert page.texts(".row .prompt b") == ["0001"]
        assert "zhang2025diffusion4k" in page.run("document.getElementById('bibtex').textContent")
        assert page.faults == []


def test_an_image_that_changed_or_is_gone_is_one_line(page_folder, uhr, tmp_path):
    shutil.copytree(page_folder / "b", tmp_path / "kept")
    file = page_folder / "b" / "1.png"
    given = (page_folder / "result-a", page_folder / "result-b", "--out", tmp_path / "page.html")
    file.write_bytes((page_folder / "a" / "1.png").read_bytes())
    assert "has changed since it was scored" in uhr("eval", "compare", *given)[2]
    file.unlink()
    code, _, err = uhr("eval", "compare", *given)
    assert (code, "1.png cannot be used" in err, (tmp_path / "page.html").exists()) == (1, True, False)
    shutil.copy(tmp_path / "kept" / "1.png", file)
    assert "is a folder" in uhr("eval", "compare", *given[:2], "--out", tmp_path)[2]


def test_a_narrow_dark_window_can_be_read(open_page, browser):
    with browser.page(390, 844) as page:
        page.dark()
        open_page(page)
        assert not page.is_wider_than_its_window()
        # a name is not broken after every letter
        assert (
            page.run(
                "Math.max(...[...document.querySelectorAll('#values tr')].map((one) => one.offsetHeight))"
            )
            < 150
        )
        colours = page.run(
            "['color', 'backgroundColor'].map((name) => getComputedStyle(document.body)[name])"
        )
        ink, ground = (sum(map(int, each[4:-1].split(","))) for each in colours)
        assert ink > 600 > 150 > ground
        page.click(".open")
        top, bottom = page.run(
            "[...document.querySelectorAll('.pane')].map((one) => one.getBoundingClientRect().top)"
        )
        assert bottom > top
        assert page.faults == []


def test_a_wide_table_scrolls_in_its_own_box_in_a_narrow_window(open_page, browser):
    edges = """((box, names) => [box, names[0], names.at(-1)].map((one) => one.getBoundingClientRect()).map(
        (one) => [one.left, one.right]))(document.querySelector('#differences').parentElement,
        [...document.querySelectorAll('#differences thead th')])"""
    with browser.page(390, 844) as page:
        open_page(page)
        box, first, last = page.run(edges)
        assert last[1] > box[1]
        assert not page.is_wider_than_its_window()
        page.run("document.querySelector('#differences').parentElement.scrollLeft = 1e4")
        (_, names, last), start = page.run(edges), first
        assert box[0] <= last[0] < last[1] <= box[1]
        # the names of the rows stay in sight
        assert names == start


TRANSFORMS = "[...document.querySelectorAll('.pane img')].map((one) => one.style.transform)"


def placed(page):
    """The one placement of both images: x, y, scale."""
    import re

    one, other = page.run(TRANSFORMS)
    assert one == other
    return tuple(map(float, re.findall(r"-?[\d.]+(?:e-?\d+)?", one)))


def test_two_fingers_zoom_both_images_about_their_middle(open_page, browser):
    with browser.page(390, 844) as page:
        open_page(page)
        page.click(".open")
        loaded(page)
        page.click("#one")
        x, y, scale = placed(page)
        left, top = page.run(
            "(() => { const b = document.querySelector('#pane-left').getBoundingClientRect();"
            " return [b.x, b.y]; })()"
        )
        # both fingers go from 40 to 120 px apart, and their middle goes 10 px to the right
        page.fingers(
            [(left + 180, top + 90), (left + 165, top + 90), (left + 150, top + 90)],
            [(left + 220, top + 90), (left + 245, top + 90), (left + 270, top + 90)],
        )
        after = placed(page)
        assert after[2] == pytest.approx(3 * scale, rel=1e-6)
        # what was under the middle still is
        assert (200 - x) / scale == pytest.approx((210 - after[0]) / after[2], abs=0.01)
        assert (90 - y) / scale == pytest.approx((90 - after[1]) / after[2], abs=0.01)
        # one finger of the other image moves both, and nothing is held afterwards
        bottom = page.run("document.querySelector('#pane-right').getBoundingClientRect().y")
        page.fingers([(left + 100, bottom + 50), (left + 130, bottom + 30)])
        moved = placed(page)
        assert moved == pytest.approx((after[0] + 30, after[1] - 20, after[2]))
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=left + 10, y=top + 10)
        assert placed(page) == moved
        assert page.faults == []
