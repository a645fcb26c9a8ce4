"""The program's pin: what runs is what the study names, or it says both and why."""

import json

import pytest

from grandrounds.common.errors import StudyError
from grandrounds.common.system.code_pin import check_code, check_code_of
from grandrounds.common.system.package_hash import running_sha256
from grandrounds.common.version import __version__

RUNNING = running_sha256()
OTHER = "12" * 32


def test_the_program_that_runs_is_accepted() -> None:
    check_code(version=__version__, sha256=RUNNING)


@pytest.mark.parametrize(("version", "sha256"), [(__version__, OTHER), ("9.9", RUNNING), ("9.9", OTHER)])
def test_another_program_is_refused_with_both_hashes_and_what_to_do(version: str, sha256: str) -> None:
    with pytest.raises(StudyError) as refusal:
        check_code(version=version, sha256=sha256)
    words = refusal.value.diagnostics()
    assert f"the study runs grandrounds {version} with files of SHA-256 {sha256}" in words
    assert f"installed here is {__version__} with files of {RUNNING}" in words
    assert "install the wheel of that hash anew" in words


def test_a_study_of_another_program_is_refused_also_where_its_other_fields_mean_nothing_here() -> None:
    text = json.dumps({"package_version": "9.9", "package_sha256": OTHER, "a_field_of_version_9": {}})
    with pytest.raises(StudyError, match=r"the study runs grandrounds 9\.9"):
        check_code_of(text.encode())
    check_code_of(text.replace("9.9", __version__).replace(OTHER, RUNNING).encode())


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[]", b"3", b"null", b"{}", b"[" * 100_000])
def test_what_names_no_program_is_left_to_who_reads_it(text: bytes) -> None:
    check_code_of(text)
