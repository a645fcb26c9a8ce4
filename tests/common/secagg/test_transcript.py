"""Parameters, groups and the transcript: what the two ends must agree on."""

import dataclasses
from typing import Any

import pytest
from support.secagg.cohort import Cohort

from grandrounds.common.errors import EnvelopeError, ProtocolError, StudyError
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import SERVER, Adverts, Survivors
from grandrounds.common.secagg.parameters import RosterEntry, SecaggParameters, default_threshold, largest_corrupt
from grandrounds.common.secagg.transcript import check_group, open_message, transcript_hash


def parameters(sites: int = 5, **changes: Any) -> SecaggParameters:
    fields: dict[str, Any] = {
        "manifest": "ab" * 32,
        "roster": tuple(RosterEntry(name=f"site-{i}", public_key=f"{i:064x}") for i in range(1, sites + 1)),
        "server_key": "ff" * 32,
        "threshold": default_threshold(sites),
        "corrupt_sites": 1,
        "modulus_bits": 32,
        "dimension": 3,
    }
    return SecaggParameters(**(fields | changes))


@pytest.mark.parametrize("sites", range(3, 101))
def test_the_default_threshold_is_sound_and_the_largest_corrupt_is_the_largest(sites: int) -> None:
    threshold = default_threshold(sites)
    corrupt = largest_corrupt(sites, threshold)
    assert threshold >= 2 * sites / 3
    assert corrupt >= 1
    parameters(sites, threshold=threshold, corrupt_sites=corrupt)
    assert 2 * threshold <= sites + corrupt + 1 or threshold - (corrupt + 1) < 2


@pytest.mark.parametrize(
    "changes",
    [
        {"sites": 2, "threshold": 2},
        {"threshold": 6},
        {"threshold": 3, "corrupt_sites": 1},
        {"corrupt_sites": 3},
        {"corrupt_sites": 0},
        {"modulus_bits": 24},
        {"dimension": 0},
    ],
    ids=str,
)
def test_unsound_parameters_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(StudyError):
        parameters(**changes)


@pytest.mark.parametrize(
    ("name", "public_key"), [("site-1", "aa" * 32), ("new", f"{1:064x}"), ("new", "ff" * 32), (SERVER, "aa" * 32)]
)
def test_a_roster_with_a_doubled_site_or_key_or_the_server_is_refused(name: str, public_key: str) -> None:
    roster = (*parameters(4).roster, RosterEntry(name=name, public_key=public_key))
    with pytest.raises(StudyError, match="roster"):
        parameters(roster=roster)


def test_points_are_places_in_the_roster_whoever_takes_part() -> None:
    p = parameters()
    assert [p.point(name) for name in p.names] == [1, 2, 3, 4, 5]
    assert p.in_order({"site-5", "site-2"}) == ("site-2", "site-5")


@pytest.mark.parametrize(
    ("group", "complaint"),
    [
        (("site-1", "site-2", "site-3"), "3 sites where 4 are needed"),
        ((), "without site-1"),
        (("site-2", "site-3", "site-4"), "without site-1"),
        (("site-1", "site-2", "site-3", "intruder"), "cannot be in it"),
        (("site-1", "site-2", "site-3", "site-5"), "cannot be in it"),
        (("site-1", "site-2", "site-2", "site-3"), "roster order"),
        (("site-2", "site-1", "site-3", "site-4"), "roster order"),
    ],
    ids=str,
)
def test_a_group_is_enough_known_sites_in_order_with_the_reader(group: tuple[str, ...], complaint: str) -> None:
    p = parameters()
    within = p.names[:4]
    check_group(p, within, what="U2", within=within, member="site-1")
    with pytest.raises(ProtocolError, match=complaint):
        check_group(p, group, what="U2", within=within, member="site-1")


def test_a_message_opens_only_from_its_sender_in_its_study_and_attempt() -> None:
    cohort = Cohort()
    message = Survivors(u3=cohort.names)
    wire = cohort.server_says(message)
    assert open_message(cohort.parameters, wire, Survivors, attempt=1, senders=(SERVER,))[1] == message
    other_study = dataclasses.replace(cohort.parameters, manifest="cd" * 32)
    other_server = dataclasses.replace(cohort.parameters, server_key="cd" * 32)
    for p, kind, attempt, senders in (
        (other_study, Survivors, 1, (SERVER,)),
        (other_server, Survivors, 1, (SERVER,)),
        (cohort.parameters, Adverts, 1, (SERVER,)),
        (cohort.parameters, Survivors, 2, (SERVER,)),
        (cohort.parameters, Survivors, 1, cohort.names),
    ):
        with pytest.raises(EnvelopeError):
            open_message(p, wire, kind, attempt=attempt, senders=senders)


def test_a_site_cannot_speak_for_another() -> None:
    cohort = Cohort()
    wire = bytearray(cohort.site_says("site-1", Survivors(u3=cohort.names)))
    forged = bytes(wire.replace(b'"sender":"site-1"', b'"sender":"site-2"'))
    with pytest.raises(EnvelopeError, match="does not verify"):
        open_message(cohort.parameters, forged, Survivors, attempt=1, senders=("site-2",))


def test_the_transcript_depends_on_begin_and_on_every_advert_and_their_order() -> None:
    cohort = Cohort()
    a, b, c = (Envelope.parse(cohort.site_says(name, Survivors(u3=()))) for name in cohort.names[:3])
    transcripts = [
        transcript_hash(begin, adverts)
        for begin, adverts in (
            ("00" * 32, [a, b, c]),
            ("01" * 32, [a, b, c]),
            ("00" * 32, [a, b]),
            ("00" * 32, [b, a, c]),
        )
    ]
    assert len(set(transcripts)) == len(transcripts)
