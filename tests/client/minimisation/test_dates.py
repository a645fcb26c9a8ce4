"""Dates are moved in the form in which they are written, and nothing else is."""

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grandrounds.client.minimisation.dates import shifted

# Ways to write a day that say all of it, and that have one form for each day.
FORMS = ("%Y-%m-%d", "%m/%d/%Y", "%d.%m.%Y", "%Y/%m/%d", "%d-%b-%Y", "%d %b %Y", "%B %d, %Y", "%d %B %Y")


@pytest.mark.parametrize(
    ("written", "moved"),
    [
        ("2024-02-20", "2024-03-01"),
        ("2024-02-20T23:59:00Z", "2024-03-01T23:59:00Z"),
        ("[**2101-12-25**]", "[**2102-01-04**]"),
        ("2/20/2024", "3/1/2024"),
        ("02/20/24 10:15", "03/01/24 10:15"),
        ("2/20/2024-2/22/2024", "3/1/2024-3/3/2024"),
        ("2024-02-20-2024-02-22", "2024-03-01-2024-03-03"),
        ("120/80/2024-02-20", "120/80/2024-03-01"),
        ("20/02/2024", "01/03/2024"),  # there is no twentieth month
        ("20.2.2024", "1.3.2024"),
        ("20.02.24", "01.03.24"),
        ("20. 2. 2024", "1. 3. 2024"),
        ("20-02-2024", "01-03-2024"),
        ("20. Februar 2024", "1. März 2024"),
        ("20. Feb. 2024", "1. Mär. 2024"),
        ("DEN 20. DEZEMBER 2023", "DEN 30. DEZEMBER 2023"),
        ("20 February 2024", "1 March 2024"),
        ("20th of February 2024", "1st of March 2024"),
        ("20th Feb 2024", "1st Mar 2024"),
        ("20-FEB-2024", "01-MAR-2024"),
        ("20-Feb-24", "01-Mar-24"),
        ("20/Feb/2024", "01/Mar/2024"),
        ("20/feb/24", "01/mar/24"),
        ("20FEB2024", "01MAR2024"),
        ("2024-Feb-20", "2024-Mar-01"),
        ("2024/DEC/25", "2025/JAN/04"),
        ("19.2.-20.2.2024", "29.2.-1.3.2024"),
        ("28.12. - 03.01.2024", "07.01. - 13.01.2024"),
        ("28. 2. bis 1. 3. 2024", "9. 3. bis 11. 3. 2024"),
        ("February 20, 2024", "March 1, 2024"),
        ("Feb. 20, 2024", "Mar. 1, 2024"),
        ("February 20th,\n2024", "March 1st,\n2024"),
        ("september 30 1999", "october 10 1999"),
        ("12/31/68", "01/10/69"),  # of two digits: the only century that has no February of its own is the last
    ],
)
def test_a_date_is_moved_and_written_as_it_was(written: str, moved: str) -> None:
    assert shifted(f"on {written}, again", 10, day_first=False) == f"on {moved}, again"


@pytest.mark.parametrize(
    "text",
    [
        "2024-02-30 and 31.4.2024, 13/13/2024, 30 February 2024",  # days that are none
        "0-0-1, 1-1-10 mg; 120/80; 98.6; version 1.2.20.5, 10.12.20.24",
        "in May 2024, on 3/7, at 10:15, Ward 5/2024; 12024-02-20; 2024-02-200",
        "9999-12-31",
        "31.2.-31.4.2024; 20FEB24, 120FEB20245, 2024-Feb-30, 2024-Feb/20",
        "20 Junİ 2024, 20 mars 2024",
    ],
)
def test_what_is_no_date_stays(text: str) -> None:
    assert shifted(text, 10, day_first=False) == text


def test_the_day_comes_first_where_a_site_says_so() -> None:
    assert shifted("3/7/2024", 1, day_first=False) == "3/8/2024"
    assert shifted("3/7/2024", 1, day_first=True) == "4/7/2024"
    assert shifted("13-7-2024; 7/13/2024", 1, day_first=True) == "14-7-2024; 7/14/2024"


def test_a_value_before_a_date_is_no_day_of_a_range() -> None:
    for value in ("creatinine 1.3", "1.3", "version 1.1.3.", "31.2."):
        assert shifted(f"{value}-7.3.2024", 10, day_first=True) == f"{value}-17.3.2024"


DAYS = st.dates(min_value=date(1901, 1, 1), max_value=date(2098, 12, 31))


@given(DAYS, st.integers(-365, 365), st.sampled_from(FORMS))
def test_a_text_about_a_day_becomes_the_same_text_about_another_day(day: date, days: int, form: str) -> None:
    other = day + timedelta(days=days)
    for name in ("%B", "%b"):
        if name in form and 5 in (day.month, other.month):  # May is whole and short
            return
    wide = "-" in form  # in words a day has no zero, but between hyphens
    written, moved = (
        each.strftime(form if wide or "%b" not in form.lower() else form.replace("%d", str(each.day)))
        for each in (day, other)
    )
    assert shifted(f"({written}).", days, day_first=False) == f"({moved})."
