import pytest

from cplane.browser import PageOptions
from cplane.errors import InvalidArguments


def test_options_become_playwrights_arguments() -> None:
    options = PageOptions.read({"timezone": "Europe/Berlin", "authenticate": {"username": "a", "password": "b"}})
    assert options.new_context() == {
        "timezone_id": "Europe/Berlin",
        "http_credentials": {"username": "a", "password": "b"},
        "accept_downloads": False,
    }


def test_an_unknown_option_is_named_and_the_known_ones_are_listed() -> None:
    with pytest.raises(InvalidArguments, match=r"colour: Extra inputs .*it takes isolation, .*locale") as caught:
        PageOptions.read({"colour": "red"})
    assert [problem.path for problem in caught.value.problems] == ["/colour"]


def test_an_impossible_value_is_named() -> None:
    with pytest.raises(InvalidArguments, match="viewport/width"):
        PageOptions.read({"viewport": {"width": 0, "height": 10}})
    with pytest.raises(InvalidArguments, match=r"locale: .*language tag"):
        PageOptions.read({"locale": "de_DE"})


def test_passwords_are_not_shown() -> None:
    options = PageOptions.read(
        {
            "authenticate": {"username": "a", "password": "secret"},
            "proxy": {"server": "http://p:1", "password": "secret"},
        }
    )
    assert "secret" not in repr(options)


def test_pages_that_are_recorded_differently_do_not_stand_in_for_each_other() -> None:
    plain, off, light, full = (PageOptions(trace=trace) for trace in (None, "off", "on-failure", "on"))
    assert plain.key == off.key
    assert len({off.key, light.key, full.key}) == 3
    shared = {PageOptions(isolation="shared", trace=trace).key for trace in (None, "off", "on-failure", "on")}
    assert shared == {plain.key}  # a shared context is not recorded, whatever is wanted
