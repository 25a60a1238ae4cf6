"""A recipe that differs from another one has its values and sources, but for those that it states."""

import pytest
from pydantic import ValidationError

from uhr.train.objectives.flow import Flow
from uhr.train.recipes import recipe
from uhr.train.recipes.core.shared import changed, derived

STAGE1 = "gca-stage1"


def test_a_derived_recipe_has_all_values_and_sources_that_it_does_not_state():
    base = recipe(STAGE1)
    found = derived(base, {"clip": "mine"}, clip=2.0)
    assert (found.clip, found.source("clip")) == (2.0, "mine")
    assert found.model_dump(exclude={"clip"}) == base.model_dump(exclude={"clip"})
    assert {**found.sources, "clip": ""} == {**base.sources, "clip": ""}


def test_a_source_replaces_those_of_what_is_below_its_path():
    base = recipe(STAGE1)
    assert base.source("phases.0.objective.g_min") != base.source("phases.0.objective")
    phase = changed(base.phases[0], objective=Flow())
    found = derived(base, {"phases.objective": "mine"}, phases=(phase,))
    assert {path for path in found.sources if path.startswith("phases.objective")} == {"phases.objective"}
    assert found.source("phases.0.timesteps.mean") == base.source("phases.0.timesteps.mean")


@pytest.mark.parametrize("values", [{"clip": -1.0}, {"clipp": 1.0}])
def test_what_is_changed_is_checked_as_a_new_recipe_is(values):
    with pytest.raises(ValidationError, match="clip"):
        derived(recipe(STAGE1), {}, **values)
