"""Templates: values are escaped and made printable in every context, and a missing value is an error."""

from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from echo_cli.reports.html import figure, short, templates

TEXT = "<b>\x1b'\n\t\u2028"
SHOWN = "&lt;b&gt;\\x1b&#39;\n\t\\u2028"


@pytest.mark.parametrize(
    "template",
    [
        "{{ text }}",
        "{{ [text] | join(',') }}",
        "{{ 'a' ~ text }}",
        "{{ '{}'.format(text) }}",
        "{{ text | short(99) }}",
        "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(text) }}",
        "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}{{ text }}{% endcall %}",
    ],
)
def test_a_value_is_escaped_and_printable(template: str) -> None:
    assert templates().from_string(template).render(text=TEXT).removeprefix("a") == SHOWN


def test_a_value_that_is_missing_is_an_error() -> None:
    for template in ("{{ missing }}", "{{ text.missing }}", "{% for x in missing %}{% endfor %}"):
        with pytest.raises(UndefinedError):
            templates().from_string(template).render(text=TEXT)


def test_json_cannot_end_the_element_or_the_attribute_that_it_stands_in() -> None:
    found = templates().from_string("{{ text | tojson }}").render(text={"b": "</script>'&", "a": 1})
    assert found == r'{"b":"\u003c/script\u003e\u0027\u0026","a":1}'
    with pytest.raises(ValueError, match="JSON"):
        templates().from_string("{{ text | tojson }}").render(text=float("nan"))


def test_pieces_are_counted_as_the_script_counts_what_it_is_shown() -> None:
    assert (
        templates().from_string("{{ text | script_lengths }}").render(text=["ab", "\U0001f600", "\x1b", ""])
        == "2 2 4 0"
    )


def test_figures_have_three_decimals_where_they_say_something_and_names_an_end() -> None:
    assert [figure(value) for value in (None, 0, 1.23456, -0.001, 1e-4, 123456.0)] == [
        *("–", "0.000", "1.235", "-0.001", "1.00e-04", "1.23e+05")
    ]
    assert short("abc", 3) == "abc" and short("abcd", 3) == "ab…"
