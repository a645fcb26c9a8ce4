"""Long numbers are replaced; values and dates are not."""

import pytest

from grandrounds.client.minimisation.numbers import without_numbers


def replaced(text: str) -> str:
    return without_numbers(text, day_first=False)


@pytest.mark.parametrize(
    "number",
    [
        *("123 456 789", "123-456-789", "123 456 789 012"),
        *("00123456", "123456", "4929 1234 5678 9012", "123-45-6789", "943 476 5919", "555-123-4567", "555.123.4567"),
        *("+49 30 901820", "+1 (555) 123-4567", "(0151) 234 5678", "0151 2345678", "020 7946 0018", "030/90182-0"),
    ],
)
def test_a_long_number_is_replaced_whole(number: str) -> None:
    assert replaced(f"No. {number}, seen") == "No. [NUMBER], seen"


@pytest.mark.parametrize(
    "text",
    [
        "BP 120/80, HR 98, T 37.5, SpO2 99 %; 0.5 mg 1-0-1; 12 345; 1,250,000/ul; G2P1; 5 - 10",
        "12 345 678; RR 110-120 130; 120 80",
        "on 2024-03-07 and 07.03.2024, 3/7/2024, 07-Mar-24",
    ],
)
def test_values_and_dates_stay(text: str) -> None:
    assert replaced(text) == text


def test_days_that_are_none_are_numbers() -> None:
    assert replaced("99999999, 2024-02-20: 123456") == "[NUMBER], 2024-02-20: [NUMBER]"


def test_what_is_replaced_once_stays() -> None:
    assert replaced(replaced("MRN 00123456")) == replaced("MRN 00123456")
