"""The page in a real browser: what a user sees and does, and what another site cannot do."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from uhr.manifests.browse.server import BrowseServer
from uhr.manifests.browse.session import Session
from uhr.manifests.manifest import Manifest
from uhr.manifests.parts import PREVIEW_SCHEMA
from uhr.manifests.schema import sample_id

Make = Callable[..., Manifest]
Row = Callable[..., dict[str, Any]]

ROWS = 150
HOSTILE = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"

READY = (
    "document.querySelector('#results').getAttribute('aria-busy') === 'false'"
    " && document.querySelector('fieldset') !== null"
)


@pytest.fixture(scope="module")
def pictured(
    tmp_path_factory: pytest.TempPathFactory, make: Make, make_row: Row, image: Callable[..., bytes]
) -> Manifest:
    """150 rows with real previews; the last one has hostile texts."""
    rows = [make_row(number, caption=f"picture {number}") for number in range(ROWS - 1)]
    uri = f"zz/{HOSTILE}.jpg"
    hostile = {
        "uri": uri,
        "sample_id": sample_id(uri),
        "caption": HOSTILE,
        "license": HOSTILE[:50],
        "entropy": 7.99,
    }
    rows += [make_row(60, license=HOSTILE[:50]) | hostile, make_row(61) | hostile_twin()]
    jpegs = [
        {"sample_id": row["sample_id"], "jpeg": image(number), "width": 64, "height": 48}
        for number, row in enumerate(rows)
        if row["status"] != "failed"
    ]
    previews = [pa.RecordBatch.from_pylist(jpegs, schema=PREVIEW_SCHEMA)]
    return make(tmp_path_factory.mktemp("pictured") / "set", rows, previews=previews)


def hostile_twin() -> dict[str, Any]:
    """A second row of the same licence, so that it is offered as a value."""
    uri = "zz/twin.jpg"
    return {"uri": uri, "sample_id": sample_id(uri), "license": HOSTILE[:50]}


@pytest.fixture
def server(
    pictured: Manifest,
    tmp_path: Path,
    open_session: Callable[..., Session],
    serve: Callable[..., BrowseServer],
) -> BrowseServer:
    """New manifests are in `tmp_path`."""
    return serve(open_session(pictured, into=tmp_path))


@pytest.fixture
def page(browser: Any, server: BrowseServer) -> Iterator[Any]:
    """The page, loaded. At the end it must have had no faults, and requested nothing from elsewhere."""
    with browser.page() as page:
        page.open(server.url)
        page.until(READY)
        yield page
        assert page.faults == []
        assert {url.split("/")[2] for url in page.requests if url.startswith("http")} == {
            server.url.split("/")[2]
        }
        assert "run" not in page.run("document.title")


def ready(page: Any) -> None:
    """Wait until the rows of the last choice are shown."""
    page.until(READY)


def test_rows_have_images_and_a_page_of_them_is_shown(page: Any) -> None:
    assert page.text("#range") == "1–60 of 151 rows"
    page.until("[...document.images].filter((one) => one.complete && one.naturalWidth === 64).length > 5")
    assert page.text("#counts").startswith("151 rows: ")
    page.click("#next")
    page.until("document.querySelector('#range').innerText === '61–120 of 151 rows'")
    page.write("#page", "3")
    page.press("Enter")
    page.until("document.querySelector('#range').innerText === '121–151 of 151 rows'")
    assert page.texts(".tile .text")[-2].startswith("kept"), "hostile texts are texts"
    assert HOSTILE in page.texts(".tile .text")[-2]
    address = page.run("location.href")
    page.call("Page.reload")
    page.until("document.querySelector('#range').innerText === '121–151 of 151 rows'")
    assert page.run("location.href") == address, "an address keeps its page"


def test_a_condition_values_and_an_order_choose_rows(page: Any) -> None:
    page.write("#where", "entropy > 7")
    page.press("Enter")
    page.choose("#sort", "entropy")  # at once: the counts of the condition must not be lost
    ready(page)
    assert page.text("#range").endswith("of 9 rows")
    page.until("document.querySelector('.tile b')?.innerText === 'entropy 7.99'")
    box = "fieldset[data-column='aspect_bucket'] label"
    labels = page.texts(box)
    assert sum(int(label.split()[1]) for label in labels) == 9
    assert [label.split()[0] for label in labels] == ["4:3", "1:1"]
    page.click(f"{box} input", 1)
    page.until(f"document.querySelector('#range').innerText.endsWith('of {labels[1].split()[1]} rows')")
    ready(page)
    assert page.texts(box) == labels, "other values can be added"
    page.click("#reset")
    page.until("document.querySelector('#range').innerText.endsWith('of 151 rows')")
    assert page.run("document.querySelector('#where').value") == ""


def test_a_range_of_a_number_is_chosen_by_fields_and_handles(page: Any) -> None:
    field = "fieldset.range[data-column='entropy']"
    assert page.texts(f"{field} legend span") == ["entropy, bit"]
    page.write(f"{field} [aria-label='From entropy']", "7.05")
    page.press("Enter")
    page.until("document.querySelector('#range').innerText.endsWith('of 9 rows')")
    ready(page)
    assert page.run(f'document.querySelectorAll("{field} rect.out").length') > 20
    assert "entropy" in page.run("decodeURIComponent(location.hash)")
    # the upper handle, one step down
    page.run(f"document.querySelector(\"{field} [aria-label='Highest entropy']\").focus()")
    page.press("ArrowLeft")
    page.until("!document.querySelector('#range').innerText.endsWith('of 9 rows')")
    ready(page)
    assert page.run(f"document.querySelector(\"{field} [aria-label='To entropy']\").value") != ""
    page.choose("#add-range", "height")
    page.until("document.querySelector(\"fieldset.range[data-column='height']\")")
    page.click(f"{field} .remove")
    page.until("document.querySelector('#range').innerText.endsWith('of 151 rows')")
    ready(page)
    assert page.texts(field) == []


def test_rows_are_chosen_by_reviews_that_are_not_saved(page: Any) -> None:
    for number in (1, 4):
        page.click(".tile .pick input", number)
    page.write("#reviewer", "Ada")
    page.write("#reason", "watermark")
    page.click("#review .reject")
    page.until("document.querySelector(\"fieldset[data-column='review']\")")
    labels = page.texts("fieldset[data-column='review'] label")
    assert [label.split() for label in labels] == [["none", "149"], ["rejected", "2"]]
    page.click("fieldset[data-column='review'] label input", 1)
    page.until("document.querySelector('#range').innerText === '1–2 of 2 rows'")
    assert page.texts(".tile .badge") == ["rejected", "rejected"]
    page.click("#save-slice")
    assert "save the reviews as a manifest first" in page.text("#save")


def test_a_mistake_in_a_condition_is_shown_and_the_rows_stay(page: Any) -> None:
    page.write("#where", "entropi > 7")
    page.press("Enter")
    page.until("document.querySelector('#where-error').innerText")
    assert "did you mean entropy" in page.text("#where-error")
    assert len(page.texts(".tile")) == 60
    assert any("400" in fault for fault in page.faults)
    page.faults.clear()


def test_a_row_is_shown_whole_and_reviewed(page: Any, server: BrowseServer) -> None:
    page.click(".tile .open", 3)
    page.until("document.querySelector('#record .facts')")
    text = page.text("#record")
    for part in (
        "rejected: entropy",
        "entropy >= 4",
        "fail",
        "not evaluated",
        "flat_fraction",
        "not reviewed",
    ):
        assert part in text
    page.until("document.querySelector('#record img').naturalWidth === 64")
    page.press("a")
    page.until("document.querySelector('#record .error').innerText.includes('needs a reason')")
    page.faults.clear()
    page.write("#record-reason", "a good gradient")
    page.click("#record .accept")
    page.until("document.querySelector('#record .decide').innerText.includes('accepted')")
    assert "a good gradient" in page.text("#record .decide")
    page.press("ArrowRight")
    page.until("document.querySelector('#record h2').innerText === 'folder/00004.jpg'")
    page.press("Escape")
    page.until("!document.querySelector('#record').open")
    assert page.texts(".tile .badge") == ["accepted"]
    (review,) = server.session.journal.reviews.values()
    assert (review.verdict, review.reason) == ("accepted", "a good gradient")
    assert review.name


def test_selected_rows_are_reviewed_and_saved_as_a_manifest(page: Any, tmp_path: Path) -> None:
    for number in (1, 4):
        page.click(".tile .pick input", number)
    page.click("#next")
    page.until("document.querySelector('#range').innerText.startsWith('61')")
    page.click(".tile .pick input", 0)
    assert page.text("#selected") == "3 selected"
    page.write("#reviewer", "Ada")
    page.write("#reason", "watermark")
    page.click("#review .reject")
    page.until("document.querySelector('#reviews').innerText.startsWith('3 reviews')")
    for tag, badge in (("logo", "rejected, logo"), ("loog", "rejected, logo, loog")):
        page.write("#tag", tag)
        page.press("Enter")
        page.until(f"document.querySelector('.tile .badge').innerText === '{badge}'")
    page.click("#remove-tag")
    page.until("document.querySelector('.tile .badge').innerText === 'rejected, logo'")
    page.click("#save-reviews")
    page.write("#save-name", "reviewed")
    page.press("Enter")
    page.until("document.querySelector('#save').innerText.includes('Written: 151 rows')")
    rows = Manifest.open(tmp_path / "reviewed").table(where="review = 'rejected'").to_pylist()
    assert [row["uri"] for row in rows] == ["folder/00001.jpg", "folder/00004.jpg", "folder/00060.jpg"]
    assert {(row["review_by"], row["review_reason"], *row["review_tags"]) for row in rows} == {
        ("Ada", "watermark", "logo")
    }


def test_the_filter_is_saved_as_a_slice(page: Any, tmp_path: Path) -> None:
    page.write("#where", "entropy > 7")
    page.press("Enter")
    page.until("document.querySelector('#range').innerText.endsWith('of 9 rows')")
    page.click("#save-slice")
    assert "uhr manifest slice" in page.text("#save")
    page.write("#save-name", "no/folder")
    page.press("Enter")
    page.until("document.querySelector('#save .error').innerText.includes('no name of a folder')")
    page.faults.clear()
    page.write("#save-name", "sharp")
    page.click("#save .main")
    page.until("document.querySelector('#save').innerText.includes('Written: 9 rows')")
    made = Manifest.open(tmp_path / "sharp")
    assert made.info.counts["rows"] == 9
    assert made.info.operation == {"kind": "slice", "status": "any", "where": "entropy > 7"}


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (760, False), (390, False), (390, True)])
def test_nothing_is_cut_or_covered_in_any_window(page: Any, width: int, dark: bool) -> None:
    page.resize(width)
    page.dark(dark)
    page.click(".tile .pick input", 2)
    assert not page.is_wider_than_its_window()
    for selector in ("#bar > *, #bar button, #bar select", ".tile", "header h1, header p", "#review > *"):
        texts = page.overlaps(selector)
        inside = [pair for pair in texts if not selector.startswith("#bar")]
        assert inside == [], selector
    page.click("#unselect")
    if width <= 760:
        assert page.texts("fieldset") == []
        page.click("#show-filters")
    assert page.overlaps("fieldset label span, fieldset label b, legend") == []
    page.click(".tile .open", 1)
    page.until("document.querySelector('#record .facts')")
    assert page.overlaps("#record td, #record th") == []
    assert page.run("document.querySelector('#record').scrollWidth <= innerWidth")


def test_another_site_cannot_reach_it(browser: Any, server: BrowseServer) -> None:
    """Neither a page of another origin that knows the token, nor another name for this machine."""
    with browser.page() as page:
        page.open("data:text/html,<h1>another site</h1>")
        for path, options in (
            ("facts", "{}"),
            ("facts", "{mode: 'no-cors'}"),
            ("slice", "{method: 'POST', mode: 'no-cors', body: JSON.stringify({name: 'stolen'})}"),
        ):
            url = f"{server.url}{path}"
            found = page.run(
                f"fetch('{url}', {options}).then((one) => one.type + one.status, () => 'refused')"
            )
            assert found in ("refused", "opaque0")
        loaded = page.run(
            f"new Promise((done) => {{const one = new Image(); one.onload = () => done('shown');"
            f"one.onerror = () => done('refused'); one.src = '{server.url}thumbnail/0';}})"
        )
        assert loaded == "refused"
        assert not (server.session.into / "stolen").exists()
        page.open(server.url.replace("127.0.0.1", "rebound.test"))
        assert "this is not the name of this machine" in page.text()
        page.open(server.url)
        page.until(READY)
