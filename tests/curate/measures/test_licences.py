"""Licences in the ways that sources write them, and policies over them."""

import pytest

from uhr.base.errors import UserError
from uhr.curate.measures.licences import LENIENT, LicencePolicy, spdx


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("CC-BY-4.0", "CC-BY-4.0"),
        ("cc-by-sa-4.0", "CC-BY-SA-4.0"),
        ("CC BY 4.0", "CC-BY-4.0"),
        ("CC BY-NC-SA 3.0", "CC-BY-NC-SA-3.0"),
        ("Creative Commons Attribution 4.0 International", "CC-BY-4.0"),
        ("Creative Commons Attribution-NonCommercial-ShareAlike 2.0 Generic", "CC-BY-NC-SA-2.0"),
        ("Creative Commons Attribution 4.0 International License", "CC-BY-4.0"),
        ("https://creativecommons.org/licenses/by/4.0/", "CC-BY-4.0"),
        ("http://www.creativecommons.org/licenses/by-nc-nd/2.5/deed.en", "CC-BY-NC-ND-2.5"),
        ("https://creativecommons.org/licenses/by/3.0/de/", "CC-BY-3.0-DE"),
        ("https://creativecommons.org/licenses/by/3.0/deed.de", "CC-BY-3.0"),
        ("https://creativecommons.org/licenses/by-sa/3.0/at/deed.de", "CC-BY-SA-3.0-AT"),
        ("https://creativecommons.org/licenses/by-sa/4.0/legalcode", "CC-BY-SA-4.0"),
        ("https://creativecommons.org/licenses/by/3.0/igo/", "CC-BY-3.0-IGO"),
        ("https://creativecommons.org/licenses/by/2.5/scotland/", None),
        ("https://creativecommons.org/publicdomain/zero/1.0/legalcode", "CC0-1.0"),
        ("http://creativecommons.org/publicdomain/mark/1.0/", "CC-PDM-1.0"),
        ("CC0", "CC0-1.0"),
        ("CC0 1.0 Universal (Licence)", "CC0-1.0"),
        ("Public Domain Mark 1.0", "CC-PDM-1.0"),
        ("MIT", "MIT"),
        ("cc0-1.0 or cc-by-4.0", "CC0-1.0 OR CC-BY-4.0"),
        ("LicenseRef-Pexels", "LicenseRef-Pexels"),
        ("CC BY", None),
        ("https://creativecommons.org/licenses/by/9.0/", None),
        ("© all rights reserved", None),
        ("", None),
        ("(" * 3000, None),
    ],
)
def test_a_licence_is_understood_in_its_usual_forms(text, licence):
    assert spdx(text) == licence


def test_aliases_are_compared_without_case_scheme_and_slash():
    aliases = {"https://www.pexels.com/license/": "LicenseRef-Pexels"}
    for text in ("http://pexels.com/license", "HTTPS://WWW.pexels.com/License/"):
        assert spdx(text, aliases) == "LicenseRef-Pexels"


POLICY = LicencePolicy(allow=["cc0-1.0", "CC-BY-4.0"])


@pytest.mark.parametrize(
    ("stated", "embedded", "licence", "problem"),
    [
        ("CC0", None, "CC0-1.0", None),
        (None, "http://creativecommons.org/licenses/by/4.0/", "CC-BY-4.0", None),
        ("CC0", "https://example.org/rights", "CC0-1.0", None),
        ("CC0", "cc-by-4.0", "CC0-1.0", "conflict: CC0-1.0 is stated, and CC-BY-4.0 embedded"),
        (None, None, None, "missing"),
        ("", None, None, "missing"),
        ("Pexels", None, None, "unknown: Pexels"),
        ("cc-by-nc-4.0", None, "CC-BY-NC-4.0", "not allowed: CC-BY-NC-4.0"),
        ("MIT OR CC0-1.0", None, "MIT OR CC0-1.0", None),
        ("MIT AND CC0-1.0", None, "MIT AND CC0-1.0", "not allowed: MIT AND CC0-1.0"),
        ("CC-BY-4.0 AND CC0-1.0", None, "CC-BY-4.0 AND CC0-1.0", None),
        ("MIT OR CC-BY-4.0 AND CC0-1.0", None, "MIT OR CC-BY-4.0 AND CC0-1.0", None),
        (
            "(CC0-1.0 OR MIT) AND CC-BY-NC-4.0",
            None,
            "(CC0-1.0 OR MIT) AND CC-BY-NC-4.0",
            "not allowed: (CC0-1.0 OR MIT) AND CC-BY-NC-4.0",
        ),
    ],
)
def test_a_policy_says_why_it_rejects(stated, embedded, licence, problem):
    assert POLICY.judge(stated, embedded) == (licence, problem)
    assert LENIENT.judge(stated, embedded) == (licence, None), "what no policy asks for is no problem"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("allow: [CC-BY]", "'CC-BY' is no SPDX identifier"),
        ("aliases: {Pexels: pexels}", "LicenseRef-NAME"),
        ("missing: maybe", "missing"),
        ("allowed: [MIT]", "allow"),
    ],
)
def test_a_mistake_in_a_policy_is_named(tmp_path, text, message):
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        LicencePolicy.read(str(file))
