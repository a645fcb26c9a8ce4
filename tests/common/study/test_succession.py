"""Successors: sites join, leave and change keys; the privacy parameters, the schedule, serials and charges go on."""

from copy import deepcopy
from functools import cache
from typing import Any

import pytest
from support.ledger.ledger_forger import drafts, resealed
from support.ledger.ledger_history import History, countersignatures, history_study
from support.study.federation import small_manifest, small_study

from grandrounds.common.crypto.identity import Identity
from grandrounds.common.errors import LedgerError, StudyError
from grandrounds.common.ledger import entries
from grandrounds.common.ledger.replay import VerifiedLedger
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.study.manifest import Manifest
from grandrounds.common.study.succession import MAY_CHANGE, check_successor

UNITS = {f"site-{i}": 4 for i in range(1, 6)}
JOINED = UNITS | {"site-6": 8}
LEFT = {site: units for site, units in UNITS.items() if site != "site-2"}
EXCHANGED = {"site-1": 4, "site-2": 4, "site-6": 4, "site-7": 4, "site-8": 4}


@cache
def first():
    """A study of which one round is over."""
    made = History(study=history_study(rounds=9))
    made.attempt()
    return made


@pytest.fixture
def history():
    return first().fork()


SUCCESSORS: dict[str, dict[str, Any]] = {
    "a site joins": {"sites": JOINED},
    "a site leaves": {"sites": LEFT},
    "one joins and one leaves": {"sites": LEFT | {"site-6": 4}},
    "two sites rotate their keys": {"rotate": ["site-2", "site-4"]},
    "all sites rotate their keys": {"rotate": list(UNITS)},
    "the server rotates its key": {"server": Identity.generate()},
    "a new threshold": {"sites": JOINED, "threshold": 5},
    "another version of the program": {"package_version": "99.0"},
    "all at once": {"sites": LEFT | {"site-6": 4}, "rotate": ["site-3"], "server": Identity.generate()},
    "another order": {"sites": dict(reversed(UNITS.items()))},
}


@pytest.mark.parametrize("kind", SUCCESSORS)
def test_serials_rounds_and_charges_go_on_through_a_successor(history, kind):
    before, paid = history.verified, history.paid
    history.succeed(**SUCCESSORS[kind])
    assert history.attempt().survivors == history.sites
    verified = history.verified
    assert [attempt.attempt for attempt in verified.attempts] == [1, 2]
    assert [round_.round for round_ in verified.rounds] == [1, 2]
    assert [attempt.manifest for attempt in verified.attempts] == [m.sha256 for m in verified.manifests]
    assert verified.charges == before.charges | {site: paid.get(site, 0) + 1 for site in history.sites}
    assert verified.charges == history.paid
    assert verified.manifest.study_id == before.manifest.study_id


def test_the_schedule_counts_attempts_before_and_after_alike():
    history = History(study=history_study(rounds=2, max_attempts=2))
    history.attempt([(site, "advert") for site in UNITS])
    history.succeed(JOINED)
    history.attempt()
    with pytest.raises(LedgerError, match="no attempt left"):
        history.writer().append(_next(history))


def _next(history):
    last = history.verified.rounds[-1]
    return entries.AttemptBegun(attempt=3, round=2, invited=history.sites, adapter_sha256=last.adapter_sha256)


def test_a_site_that_comes_back_goes_on_with_what_it_paid(history):
    history.succeed(LEFT)
    history.attempt()
    history.succeed(UNITS)
    history.attempt()
    assert history.verified.charges == {site: 2 if site == "site-2" else 3 for site in UNITS}
    assert history.paid == history.verified.charges


def test_a_key_that_was_rotated_out_signs_nothing_any_more(history):
    old = history.identities["site-2"]
    history.succeed(rotate=["site-2"])
    history.identities["site-2"] = old
    history.restart("site-2")
    assert "site-2" not in history.attempt().survivors
    assert history.verified.attempts[-1].dropouts == {"site-2": "advert"}


def refusal(answer):
    return Envelope.parse(answer).body["code"]


def test_workers_of_the_manifest_before_and_of_the_one_after_refuse_each_others_begins(history):
    earlier = dict(history.workers)
    _, old = history.fork().begin()
    history.succeed(JOINED, server=Identity.generate())
    _, new = history.begin()
    for site in UNITS:
        assert refusal(earlier[site].handle(new[site])) == "manifest"
        assert refusal(history.workers[site].handle(old[site])) == "manifest"
    assert refusal(history.workers["site-6"].handle(old["site-1"])) == "manifest"
    assert earlier["site-1"].charges == 1


def test_a_site_refuses_the_ledger_of_a_successor_that_it_did_not_sign(history):
    other = history.fork()
    history.succeed(JOINED)
    other.succeed(UNITS | {"site-6": 16})
    other.begin()
    assert refusal(history.workers["site-6"].handle(history.begin_with(other.lines))) == "ledger"
    assert history.attempt().survivors == history.sites


# --- who must sign ----------------------------------------------------------------------------------------------------


def signed_by(history, manifest, identities, leave_out=frozenset(), server=None):
    """The ledger with a successor and the signatures of all but ``leave_out`` (site, key); then an attempt begins."""
    server = server or history.server
    history.servers[server.public_key] = server
    found = deepcopy(drafts(history.lines))
    closed = found[-1]["body"]
    place = (len(found), history.verified.ledger.head)
    entry = {"author": server.public_key}
    found.append(entry | {"type": "study", "body": {"manifest": manifest.model_dump(mode="json")}})
    for signature in countersignatures(manifest, identities, first().identities, place=place):
        if (signature.site, signature.key) not in leave_out:
            found.append(
                entry | {"type": "countersignature", "body": {"countersignature": signature.model_dump(mode="json")}}
            )
    begun = {"attempt": 2, "round": 2, "invited": list(manifest.secagg_parameters.names)}
    found.append(entry | {"type": "attempt-begun", "body": begun | {"adapter_sha256": closed["adapter_sha256"]}})
    return resealed(history, found)


@pytest.mark.parametrize("kind", SUCCESSORS)
def test_each_site_of_a_successor_must_sign_it(history, kind):
    changes = dict(SUCCESSORS[kind])
    manifest, identities = history.successor(**changes)
    VerifiedLedger.of(signed_by(history, manifest, identities, server=changes.get("server")))
    for site, key in manifest.site_keys.items():
        lines = signed_by(history, manifest, identities, {(site, key)}, changes.get("server"))
        with pytest.raises(LedgerError, match="lacks signatures of its sites"):
            VerifiedLedger.of(lines)


def test_as_many_of_the_roster_before_must_sign_as_must_answer(history):
    manifest, identities = history.successor(EXCHANGED)
    old = {site: identity.public_key for site, identity in first().identities.items()}
    leaving = [(site, old[site]) for site in ("site-3", "site-4", "site-5")]
    VerifiedLedger.of(signed_by(history, manifest, identities, set(leaving[:1])))
    with pytest.raises(LedgerError, match="lacks signatures of its sites"):
        VerifiedLedger.of(signed_by(history, manifest, identities, set(leaving[:2])))


def test_a_new_key_does_not_count_for_the_roster_before(history):
    manifest, identities = history.successor(rotate=list(UNITS))
    old = [(site, identity.public_key) for site, identity in first().identities.items()]
    VerifiedLedger.of(signed_by(history, manifest, identities, set(old[:1])))
    with pytest.raises(LedgerError, match="lacks signatures of its sites"):
        VerifiedLedger.of(signed_by(history, manifest, identities, set(old[:2])))


def test_the_server_before_signs_nothing_under_a_successor_that_has_another(history):
    server = Identity.generate()
    manifest, identities = history.successor(server=server)
    history.servers[server.public_key] = server
    lines = signed_by(history, manifest, identities, server=server)
    VerifiedLedger.of(lines)
    with pytest.raises(LedgerError, match="not signed by the study's server"):
        VerifiedLedger.of(signed_by(history, manifest, identities))


# --- what must stay ---------------------------------------------------------------------------------------------------


def manifests():
    return first().manifest, first().successor(JOINED)[0]


def replaced(section, path, change):
    """The section with one field changed, whether or not the whole is still valid."""
    name, *rest = path
    value = getattr(section, name)
    return section.model_copy(update={name: replaced(value, rest, change) if rest else change(value)})


def fields_of(section, prefix=()):
    """The path of every field that is no section itself."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if hasattr(value, "model_fields"):
            yield from fields_of(value, (*prefix, name))
        else:
            yield (*prefix, name)


def another(value):
    """Something else of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return "another" if len(value) < 32 else "ab" * 32
    if isinstance(value, tuple):
        return value[:-1] or ("another",)
    if isinstance(value, dict):
        return dict(list(value.items())[:-1]) if value else {"another": 2}
    assert value is None
    return 0.5


@pytest.mark.parametrize(
    "path",
    fields_of(
        small_manifest(
            small_study(), {f"site-{i}": Identity.generate() for i in range(1, 6)}, Identity.generate(), dimension=7
        )
    ),
    ids=".".join,
)
def test_what_is_not_named_as_what_may_change_stays(path):
    before, after = manifests()
    name = ".".join(path)
    changed = replaced(after, path, another)
    assert changed != after
    if name in MAY_CHANGE - {"version", "previous"}:
        check_successor(before, changed)
        return
    with pytest.raises(StudyError):
        check_successor(before, changed)


def test_nothing_that_the_claim_is_computed_from_may_change():
    before, after = manifests()
    assert not {name for name in MAY_CHANGE if "privacy" in name}
    assert after.schedule == before.schedule
    assert after.delta == before.delta
    assert after.max_attempts == before.max_attempts


@pytest.mark.parametrize("trust", ["distributed", "local"])
@pytest.mark.parametrize("kind", SUCCESSORS)
def test_every_successor_is_covered_by_the_same_schedule(trust, kind):
    noisy = History(study=small_study(trust=trust, noise_multiplier=8.0))
    manifest, _ = noisy.successor(**SUCCESSORS[kind])
    check_successor(noisy.manifest, manifest)
    assert manifest.schedule == noisy.manifest.schedule is not None
    assert manifest.noise_stddev(1) > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 3}, "version 3 after 1"),
        ({"version": 1}, "version 1 after 1"),
        ({"previous": "ab" * 32}, "names another manifest"),
        ({"study_id": "ab" * 32}, "it changes study_id"),
        ({"sites": UNITS | {"site-3": 5}}, "units of site-3"),
    ],
)
def test_a_manifest_that_does_not_follow_says_why(changes, words):
    manifest, _ = first().successor(**changes)
    with pytest.raises(StudyError, match=words):
        check_successor(first().manifest, manifest)


def test_nominal_units_do_not_change_by_leaving_and_coming_back(history):
    history.succeed(LEFT)
    with pytest.raises(LedgerError, match="units of site-2"):
        history.succeed(UNITS | {"site-2": 9})


def test_two_successors_of_one_manifest_are_two_histories(history):
    other = history.fork()
    history.succeed(JOINED)
    other.succeed(LEFT)
    assert isinstance(history.manifest, Manifest)
    with pytest.raises(LedgerError, match="different history"):
        history.verified.continued(other.lines)
