"""What ``make audit`` says of what is known of the packages."""

from dependencies.audit import verdict

SAFE = {"name": "tiny", "version": "1.0", "vulns": []}
VULNERABLE = {"name": "leaky", "version": "2.0", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}]}
UNKNOWN = {"name": "own", "skip_reason": "not found"}


def test_a_vulnerability_is_named_and_fails() -> None:
    status, text = verdict([SAFE, VULNERABLE, UNKNOWN])
    assert status == 1
    assert text.splitlines() == [
        "leaky 2.0: CVE-1, mended in 2.1",
        "Nothing is known of own.",
        "1 of 2 packages have a published vulnerability.",
    ]


def test_none_passes() -> None:
    assert verdict([SAFE]) == (0, "0 of 1 packages have a published vulnerability.")


def test_where_nothing_is_known_or_nobody_can_be_asked_it_says_so() -> None:
    for found in ([UNKNOWN], None):
        status, text = verdict(found)
        assert status == 0
        assert text.startswith("Nothing was compared")
