from pathlib import Path

import pytest

from uhr.base.errors import UserError
from uhr.train.generate.items import MOST_BYTES, Defaults, from_images, from_prompts
from uhr.train.generate.prompts import Line, LocatedLine


def placed(*lines, **common):
    return [
        LocatedLine(Line(prompt=f"p{n}", **line, **common), f"prompts.jsonl line {n + 1}")
        for n, line in enumerate(lines)
    ]


def items_of(lines, **defaults):
    return [entry.item for entry in from_prompts(lines, Path("home"), Defaults(**defaults))]


def test_names_are_numbers_and_seeds_go_up_unless_they_are_given():
    items = items_of(placed({}, {"name": "a/lake", "seed": 7}, {}), seed=100)
    assert [(item.name, item.seed) for item in items] == [("0000", 100), ("a/lake", 7), ("0002", 102)]


def test_numbers_are_as_wide_as_the_last_one_so_that_names_sort_as_lines_do():
    names = [item.name for item in items_of(placed(*[{}] * 10_001))]
    assert names == sorted(names)
    assert len(set(names)) == 10_001


def test_what_a_line_says_goes_before_what_the_command_says():
    plain, own = items_of(
        placed({}, {"negative": "fog", "image": "a.png", "width": 64, "height": 32}),
        negative="rain",
        image=Path("base.png"),
    )
    assert (plain.negative, plain.image, plain.size) == ("rain", Path("base.png"), None)
    assert (own.negative, own.image, own.size) == ("fog", Path("home/a.png"), (64, 32))


@pytest.mark.parametrize(
    "name",
    ["", "..", "a/../b", "/etc/x", "a//b", ".hidden", "a\0b", "a:b", "a\\b", "x.png", "x.JSON/y", "end.",
     "end ", "x" * (MOST_BYTES + 1), "\ud800"],
)  # fmt: skip
def test_a_name_that_no_file_can_have_is_reported_with_its_line(name):
    with pytest.raises(UserError, match=r"prompts\.jsonl line 2: a file cannot be called"):
        items_of(placed({}, {"name": name}))


@pytest.mark.parametrize("names", [("lake", "lake"), ("lake", "LAKE"), ("0001", None)])
def test_a_repeated_name_is_reported_with_both_lines(names):
    with pytest.raises(UserError, match=r"line 2: the name '.*' is already used by prompts\.jsonl line 1"):
        items_of(placed(*({} if name is None else {"name": name} for name in names)))


def images(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_folder_is_a_batch_in_the_order_of_its_paths_and_other_files_are_reported(tmp_path):
    images(tmp_path, "b.JPG", "a/c.png", "notes.txt", ".hidden.png", ".git/x.png", "a/d")
    entries, others = from_images(tmp_path, "more detail", Defaults(seed=5, negative="blur"))
    assert [(e.item.name, e.item.seed) for e in entries] == [("a/c", 5), ("b", 6)]
    assert [e.item.image for e in entries] == [tmp_path / "a/c.png", tmp_path / "b.JPG"]
    assert {(e.item.prompt, e.item.negative) for e in entries} == {("more detail", "blur")}
    assert others == ["a/d", "notes.txt"]


def test_images_that_differ_by_suffix_alone_get_names_that_do_not(tmp_path):
    images(tmp_path, "a.jpg", "a.png", "a-png.jpg", "b.png")
    entries, _ = from_images(tmp_path, "x", Defaults())
    assert [e.item.name for e in entries] == ["a-png-jpg", "a-jpg", "a-png", "b-png"]


def test_a_folder_without_images_is_one_line(tmp_path):
    images(tmp_path, "notes.txt")
    with pytest.raises(UserError, match="contains no image"):
        from_images(tmp_path, "x", Defaults())
