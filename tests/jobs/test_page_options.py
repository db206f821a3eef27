"""Page options become arguments of Playwright; invalid ones are refused by name."""

import pytest

from cplane.browser import PageOptions
from cplane.errors import InvalidArguments


def test_options_become_arguments_of_playwright() -> None:
    options = PageOptions.read({"timezone": "Europe/Berlin", "authenticate": {"username": "a", "password": "b"}})
    assert options.new_context() == {
        "timezone_id": "Europe/Berlin",
        "http_credentials": {"username": "a", "password": "b"},
        "accept_downloads": False,
    }


def test_the_error_for_an_unknown_option_names_it_and_lists_the_known_ones() -> None:
    with pytest.raises(InvalidArguments, match=r"colour: Extra inputs .*known options: isolation, .*locale") as caught:
        PageOptions.read({"colour": "red"})
    assert [problem.path for problem in caught.value.problems] == ["/colour"]


def test_the_error_for_an_impossible_value_names_its_field() -> None:
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


def test_pages_with_different_traces_are_not_interchangeable() -> None:
    plain, off, light, full = (PageOptions(trace=trace) for trace in (None, "off", "on-failure", "on"))
    assert plain.key == off.key
    assert len({off.key, light.key, full.key}) == 3
    shared = {PageOptions(isolation="shared", trace=trace).key for trace in (None, "off", "on-failure", "on")}
    assert shared == {plain.key}  # a shared context is never traced


def test_a_viewport_has_up_to_100_million_device_pixels() -> None:
    PageOptions.read({"viewport": {"width": 10_000, "height": 10_000}})
    PageOptions.read({"device_scale_factor": 10})
    with pytest.raises(
        InvalidArguments, match="a viewport of 10,000 × 10,001 pixels is larger than 100,000,000 device"
    ):
        PageOptions.read({"viewport": {"width": 10_000, "height": 10_001}})
    with pytest.raises(InvalidArguments, match="a viewport of 5,001 × 5,000 pixels at 2 device pixels per CSS pixel"):
        PageOptions.read({"viewport": {"width": 5001, "height": 5000}, "device_scale_factor": 2})
