"""Requests and items are plain values: through JSON and back they are the same."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.config import build
from uhr.base.errors import UserError
from uhr.models.generate.request import Adapter, Item, Original, Request, parse_size
from uhr.models.samplers import SAMPLERS, sampler_class

text = st.text(st.characters(exclude_categories=["Cs"]))
texts = text.filter(bool)
numbers = st.floats(allow_nan=False, allow_infinity=False)
sizes = st.none() | st.tuples(st.integers(1, 10**5), st.integers(1, 10**5))
paths = st.none() | st.builds(Path, text)
adapters = st.lists(st.builds(Adapter, name=texts, scale=numbers)).map(tuple)
values = st.none() | st.booleans() | st.integers() | numbers | text
options = st.dictionaries(texts, values | st.lists(values) | st.dictionaries(texts, values))

requests = st.builds(
    Request,
    sampler=texts, model=texts, base=st.none() | texts, spec=st.none() | texts, size=sizes,
    scale=st.none() | numbers, steps=st.none() | st.integers(), guidance=st.none() | numbers,
    adapters=adapters, offload=st.none() | texts, quantize=st.none() | texts,
    transformer=paths, vae=paths, options=options,
)  # fmt: skip
originals = st.none() | st.builds(Original, prompt=text, model=text, instruction=text)
items = st.builds(
    Item, prompt=text, name=text, negative=st.none() | text, seed=st.integers(0, 2**63 - 1), size=sizes,
    image=paths, original=originals,
)  # fmt: skip


@given(requests | items)
def test_through_json_and_back_nothing_changes(value):
    tree = json.loads(json.dumps(value.model_dump(mode="json")))
    assert type(value).model_validate(tree) == value
    assert type(value).model_validate_json(value.model_dump_json()) == value


@given(texts, numbers)
def test_an_adapter_is_a_path_and_a_scale(name, scale):
    assert Adapter.parse(f"{name}={scale!r}") == Adapter(name=name, scale=scale)


def test_a_path_with_an_equals_sign_is_a_path_where_it_is_one(tmp_path):
    folder = tmp_path / "a=b"
    assert Adapter.parse(f"{folder}=0.5") == Adapter(name=str(folder), scale=0.5)
    for strange in (str(folder), "style=nan", "style=inf", "style="):
        with pytest.raises(UserError, match="is not a number"):
            Adapter.parse(strange)
    folder.mkdir()
    assert Adapter.parse(str(folder)) == Adapter(name=str(folder))
    assert Adapter.parse(f"{folder}=0.5").scale == 0.5


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_sizes_are_read_as_people_write_them(width, height):
    assert parse_size(f"{width}x{height}") == parse_size(f"{width}X{height}") == (width, height)


@pytest.mark.parametrize(
    "size", ["", "x", "64", "64x", "x64", "64x64x64", "-64x64", "6.4x64", "64 x 64", "²x64"]
)
def test_what_is_no_size_is_one_line(size):
    with pytest.raises(UserError, match="write it as WIDTHxHEIGHT"):
        parse_size(size)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_is_one_that_torch_takes(seed):
    with pytest.raises(UserError, match="'seed' should be"):
        build(Item, {"prompt": "", "seed": seed}, "here")


@pytest.mark.parametrize("number", ["nan", "inf", -math.inf])
def test_a_number_that_is_not_finite_is_rejected_wherever_one_is_given(number):
    for more in ({"guidance": number}, {"scale": number}, {"adapters": [{"name": "a", "scale": number}]}):
        with pytest.raises(UserError, match="should be a finite number"):
            build(Request, {"sampler": "euler", "model": "m", **more}, "here")
    for sampler in SAMPLERS:
        with pytest.raises(UserError, match="'true_cfg_scale' should be a finite number"):
            build(sampler_class(sampler, "flux1").Options, {"true_cfg_scale": number}, "here")
