"""A registry's ledger: what it comes to, and what no honest one contains."""

import re
from typing import Any

import pytest

from grandrounds.common.crypto.identity import Identity
from grandrounds.common.errors import LedgerError, StudyError
from grandrounds.common.ledger.chain import Entry, EntryType
from grandrounds.deploy.registry.entries import (
    REGISTRY_BOOK,
    Asset,
    Chosen,
    Facts,
    Incident,
    Noted,
    Opened,
    Received,
    Reference,
    Released,
    Withdrawn,
)
from grandrounds.deploy.registry.releases import Registry
from grandrounds.deploy.registry.spent import spent
from grandrounds.deploy.views.registry import log_lines, release_figures, release_lines

KEY = Identity.from_bytes(b"k" * 32)
NOW: dict[str, Any] = {"at": "2026-11-30T12:00:00Z", "by": "ada"}
FIRST, SECOND = (Reference(name="letters", version=version) for version in (1, 2))


def opened() -> Opened:
    return Opened(called="adapters", **NOW)


def released(version: int, *, assets: tuple[str, ...] = ("north",), name: str = "letters", **changes: Any) -> Released:
    facts: dict[str, Any] = {
        "study_id": f"{version:064x}",
        "manifest_sha256": "ab" * 32,
        "title": None,
        "setting": "federation",
        "base_model": "tiny",
        "base_sha256": "cd" * 32,
        "privacy_unit": "patient",
        "sites_per_patient": 1,
        "epsilon": 1.5,
        "delta": 1e-4,
        "evaluation": "synthetic notes",
        "perplexity_before": 20.0,
        "perplexity_after": 16.0,
        "gain": None,
        "files": {},
    }
    return Released(
        adapter=Reference(name=name, version=version),
        facts=Facts.model_validate(facts | changes),
        assets=tuple(Asset(site=asset, key="ef" * 32, called=asset) for asset in assets),
        **NOW,
    )


def lines(*bodies: Noted, key: Identity = KEY) -> list[bytes]:
    """The ledger of what was noted, whether it can be or not."""
    sealed: list[Entry] = []
    for body in bodies:
        sealed.append(
            Entry.seal(
                key,
                entry_type=body.type,
                body=body.fields,
                sequence=len(sealed),
                previous=sealed[-1].hash if sealed else "00" * 32,
                book=REGISTRY_BOOK,
            )
        )
    return [entry.line for entry in sealed]


STORY = (
    opened(),
    released(1),
    Received(adapter=FIRST, receiver="Bergen", **NOW),
    released(2),
    Incident(what="a copy was mailed", about=(SECOND,), **NOW),
    Withdrawn(adapter=SECOND, reason="names in its texts", **NOW),
    Chosen(adapter=FIRST, reason="the last that served", **NOW),
)


def test_the_version_in_use_is_the_newest_until_it_is_withdrawn_and_an_earlier_one_is_chosen() -> None:
    used = [Registry.of(lines(*STORY[:length])).in_use.get("letters") for length in range(1, len(STORY) + 1)]
    assert used == [None, 1, 1, 2, 2, None, 1]
    registry = Registry.of(lines(*STORY))
    assert registry.find("letters").adapter == FIRST
    second = registry.find("letters@2")
    assert second.withdrawn == STORY[5] and second.incidents == (STORY[4],)
    assert registry.find("letters@1").received == (STORY[2],)
    said = "\n".join([*release_lines(registry, second), *log_lines(registry.notes)])
    assert "WITHDRAWN    2026-11-30T12:00:00Z: names in its texts" in said and "incident (letters@2): a copy" in said
    figures = release_figures(registry, second)
    assert figures["withdrawn"]["reason"] == "names in its texts" and not figures["in_use"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (opened(), "opened once"),
        (released(3, study_id=f"{2:064x}"), "its study is letters@2"),
        (released(4, study_id="77" * 32), "not the next version"),
        (Withdrawn(adapter=SECOND, reason="again", **NOW), "was withdrawn on 2026-11-30: names in its texts"),
        (Chosen(adapter=SECOND, reason="why not", **NOW), "was withdrawn"),
        (Received(adapter=SECOND, receiver="Oslo", **NOW), "was withdrawn"),
        (Chosen(adapter=FIRST, reason="why not", **NOW), "letters@1 is in use"),
        (Withdrawn(adapter=Reference(name="letters", version=9), reason="x", **NOW), "letters@9 is no release"),
        (Incident(what="x", about=(Reference(name="notes", version=1),), **NOW), "notes@1 is no release"),
    ],
)
def test_what_no_honest_registry_contains_is_refused(body: Noted, why: str) -> None:
    with pytest.raises(LedgerError, match=why):
        Registry.of(lines(*STORY, body))


def test_no_entry_can_be_taken_out_moved_changed_or_signed_by_another() -> None:
    story = lines(*STORY)
    for place in range(len(story) - 1):
        with pytest.raises(LedgerError, match="not whole"):
            Registry.of(story[:place] + story[place + 1 :])
    for other in ([*story, story[-1]], [story[0].replace(b"ada", b"bob"), *story[1:]], []):
        with pytest.raises(LedgerError, match="not whole"):
            Registry.of(other)
    foreign = Identity.from_bytes(b"f" * 32)
    last = Entry.parse(story[-1], REGISTRY_BOOK)
    forged = Entry.seal(
        foreign,
        entry_type=last.type,
        body=last.body,
        sequence=last.sequence,
        previous=last.previous,
        book=REGISTRY_BOOK,
    )
    with pytest.raises(LedgerError, match="another key"):
        Registry.of([*story[:-1], forged.line])


def test_an_entry_of_one_kind_of_ledger_is_none_of_another() -> None:
    registered = lines(opened())[0]
    with pytest.raises(LedgerError, match="does not verify"):
        Entry.parse(registered)
    study = Entry.seal(KEY, entry_type=EntryType.STUDY, body={}, sequence=0, previous="00" * 32)
    with pytest.raises(LedgerError, match="does not verify"):
        Registry.of([study.line])


def test_a_release_is_found_by_its_version_or_as_the_one_in_use_and_else_asked_for() -> None:
    registry = Registry.of(lines(*STORY[:6]))
    for written, why in {
        "notes": "no release here.*letters",
        "letters": "no version of letters is in use.*letters@1, letters@2",
        "letters@3": "no release here.*letters@1, letters@2",
        "letters@x": "no release here",
        "letters@\u0661": "no release here",
    }.items():
        with pytest.raises(StudyError) as refused:
            registry.find(written)
        assert re.search(why, refused.value.diagnostics()), written
    assert registry.find("letters@2").adapter == SECOND


def test_what_an_asset_s_patients_spent_adds_up_over_studies_whatever_became_of_them() -> None:
    story = (
        opened(),
        released(1, assets=("north", "west")),
        released(2, epsilon=2.0),
        released(1, name="notes", study_id="99" * 32, epsilon=None, delta=None, assets=("west",)),
        released(3, study_id="98" * 32, privacy_unit="record", assets=("west",)),
        Withdrawn(adapter=FIRST, reason="x", **NOW),
    )
    rows = [
        (row.asset.called, str(row.release.adapter), row.own_epsilon, row.epsilon, row.delta)
        for row in spent(Registry.of(lines(*story)))
    ]
    assert rows == [
        ("north", "letters@1", 1.5, 1.5, 1e-4),
        ("north", "letters@2", 2.0, 3.5, 2e-4),
        ("west", "letters@1", 1.5, 1.5, 1e-4),
        ("west", "notes@1", None, None, None),  # without noise nothing bounds what was learnt
        ("west", "letters@3", None, None, None),  # a claim about records is none about patients
    ]
