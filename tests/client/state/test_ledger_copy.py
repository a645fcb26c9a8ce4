"""A site's copy of the ledger: it grows by what continues it; whoever shows it another history is refused by a code."""

import shutil
from copy import deepcopy

import pytest
from support.ledger.ledger_forger import drafts, next_begun, resealed
from support.ledger.ledger_history import History, two_rounds
from support.study.federation import reserved, small_study

from grandrounds.client.state.site_state import SiteState
from grandrounds.common.crypto.identity import sha256
from grandrounds.common.errors import LedgerError, StorageError
from grandrounds.common.ledger.replay import VerifiedLedger
from grandrounds.common.privacy.accountant import epsilon
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import Adverts, Refusal, RefusalCode, pack

SITE = "site-2"
OTHERS = ("site-1", "site-3", "site-4", "site-5")
EVERYBODY = tuple(sorted({SITE, *OTHERS}))


@pytest.fixture
def history():
    """Two attempts of two rounds, in which all took part."""
    return two_rounds().fork()


def code(answer):
    """The code of a refusal; the exchange of another answer; nothing for silence."""
    if not answer:
        return ""
    envelope = Envelope.parse(answer)
    return Refusal.of(envelope).code if envelope.exchange == Refusal.exchange else envelope.exchange


def held(history, site=SITE):
    """The ledger that the site has on disk."""
    return history.budgets[site].ledger(history.manifest.study_id)


def begun(history):
    """The entries of an attempt that begins next; none of them is stored."""
    stored = list(history.lines)
    history.begin()
    drafted = drafts(history.lines)
    history.lines[:] = stored
    return drafted


# --- what it lacks comes with the next Begin --------------------------------------------------------------------------


def test_a_site_has_the_ledger_up_to_the_begin_that_it_answered(history):
    assert held(history) == history.lines[: len(held(history))]
    assert drafts(held(history))[-1]["body"]["attempt"] == 2


def test_a_begin_brings_only_what_a_site_lacks(history):
    _, messages = history.begin()
    lacking = len(history.lines) - len(held(history))
    assert len(messages[SITE]) < sum(map(len, history.lines[-lacking:])) + 2000


def test_a_site_that_was_away_is_sent_all_that_it_missed(history):
    for _ in range(2):
        assert history.attempt(away=[SITE]).survivors == OTHERS
    known = len(held(history))
    assert history.attempt().survivors == EVERYBODY
    assert held(history) == history.lines[: len(held(history))]
    assert len(held(history)) > known


@pytest.mark.parametrize("exchange", ["advert", "shares", "masked-input", "consistency", "unmask"])
def test_a_site_that_is_lost_at_any_exchange_is_whole_in_the_next_attempt(history, exchange):
    history.attempt([(SITE, exchange)])
    assert history.attempt().survivors == EVERYBODY


@pytest.mark.parametrize("exchange", ["advert", "shares", "masked-input", "consistency", "unmask"])
def test_a_server_that_crashed_sends_everything_again_and_finds_all_sites_whole(history, exchange):
    history.attempt(until=exchange)
    history.told.clear()
    _, messages = history.begin()
    assert all(len(message) > sum(map(len, history.lines)) for message in messages.values())
    del history.lines[-1]
    assert history.attempt().survivors == EVERYBODY
    assert history.paid == history.verified.charges


def test_a_server_that_is_wrong_about_what_a_site_has_brings_all_of_it_in_the_attempt_after(history):
    history.attempt(away=[SITE])
    history.told[SITE] = len(history.lines)
    assert history.attempt().survivors == OTHERS
    assert history.told[SITE] == 0
    assert history.attempt().survivors == EVERYBODY


def test_a_worker_that_starts_anew_goes_on_with_the_ledger_that_is_on_disk(history):
    before = held(history)
    history.restart(SITE)
    assert history.attempt().survivors == EVERYBODY
    assert held(history)[: len(before)] == before


# --- another history --------------------------------------------------------------------------------------------------


def without(entry_type, attempt):
    def lie(found):
        return [d for d in found if (d["type"], d["body"].get("attempt")) != (entry_type, attempt)]

    return lie


def swapped(found):
    return [*found[:-2], found[-1], found[-2]]


def edited(found):
    found = deepcopy(found)
    found[-1]["body"]["round"] += 1
    return found


FORGED = {
    "an attempt that is missing": without("attempt-begun", 1),
    "the end of an attempt that is missing": without("attempt-ended", 2),
    "a round that is missing": without("round-closed", 2),
    "a countersignature that is missing": lambda found: [found[0], *found[2:]],
    "two entries in another order": swapped,
    "an entry twice": lambda found: [*found, found[-1]],
    "an entry of another round": edited,
}


@pytest.mark.parametrize("forged", FORGED)
def test_another_history_is_refused_and_the_next_honest_attempt_finds_the_site_whole(history, forged):
    before = held(history)
    lines = resealed(history, FORGED[forged](begun(history)))
    last = max(i for i, line in enumerate(lines) if b"attempt-begun" in line)
    assert code(history.workers[SITE].handle(history.begin_with(lines[: last + 1]))) == RefusalCode.LEDGER
    assert held(history) == before
    assert history.attempt().survivors == EVERYBODY


@pytest.mark.parametrize("keep", [0, 3, -3, -2])
def test_a_ledger_that_was_cut_is_refused(history, keep):
    lines = resealed(history, begun(history))
    begin = history.begin_with(lines, shown=lines[:keep])
    assert code(history.workers[SITE].handle(begin)) == RefusalCode.LEDGER
    assert history.attempt().survivors == EVERYBODY


def test_any_byte_of_an_entry_that_changed_is_refused(history):
    lines = resealed(history, begun(history))
    for at in range(0, len(lines[-1]), 7):
        damaged = bytearray(lines[-1])
        damaged[at] ^= 1
        begin = history.begin_with(lines, shown=[*lines[:-1], bytes(damaged)])
        assert code(history.workers[SITE].handle(begin)) == RefusalCode.LEDGER
    assert history.attempt().survivors == EVERYBODY


def test_a_ledger_that_was_refused_once_for_its_begin_is_refused_whichever_begin_names_it(history):
    """What is named is not what is shown."""
    lines = resealed(history, begun(history))
    shorter = history.begin_with(lines, shown=held(history))
    assert code(history.workers[SITE].handle(shorter)) == RefusalCode.LEDGER


def test_two_histories_shown_to_two_sites_come_to_nothing_and_neither_can_be_left(history):
    one = resealed(history, begun(history))
    other = deepcopy(begun(history))
    ended = next(d for d in other if d["type"] == "attempt-ended" and d["body"]["attempt"] == 2)
    ended["body"]["dropouts"] = {"site-5": "unmask"}
    del ended["body"]["unmasks"][-1]
    other = resealed(history, other)
    assert one[-1] != other[-1]
    adverts = {
        site: history.workers[site].handle(history.begin_with(one if site == SITE else other)) for site in EVERYBODY
    }
    assert set(map(code, adverts.values())) == {"advert"}
    # The transcripts' Begins differ, so that either side refuses the other's adverts.
    relayed = history.server_says(Adverts(), pack([adverts[site] for site in EVERYBODY]), attempt=3)
    assert {code(history.workers[site].handle(relayed)) for site in EVERYBODY} == {RefusalCode.PROTOCOL}
    assert set(history.paid.values()) == {2}
    # Later, the branch that a site was not shown is another history to it.
    history.lines[:] = other
    history.told.clear()
    history.attempt(close=False)
    assert history.verified.attempts[-1].survivors == OTHERS
    assert history.verified.attempts[-1].dropouts == {SITE: "advert"}
    history.lines[:] = one
    history.told.clear()
    history.attempt()
    assert not history.verified.attempts[-1].unmasked
    assert history.verified.attempts[-1].dropouts == dict.fromkeys(OTHERS, "advert")


def test_a_statement_that_was_left_out_shows_once_its_site_sees_the_ledger(history):
    history.attempt([(site, "masked-input") for site in ("site-4", "site-5")])
    forged = drafts(history.lines)
    body = forged[-1]["body"]
    body["adverts"], body["masked_inputs"] = body["adverts"][2:], body["masked_inputs"][2:]
    body["dropouts"] |= {"site-1": "advert", "site-2": "advert"}
    history.lines[:] = resealed(history, forged)
    assert history.verified.charges[SITE] == 2 < history.paid[SITE]
    _, messages = history.begin()
    answers = {site: code(history.workers[site].handle(message)) for site, message in messages.items()}
    assert answers == dict.fromkeys(EVERYBODY, "advert") | dict.fromkeys((SITE, "site-1"), RefusalCode.LEDGER)
    assert history.verified.most_charges(SITE) == 3, "and none but the attempt that runs could take what it paid"


# --- a state that is not the last ------------------------------------------------------------------------------------


def folder_budget(history, folder):
    history.budgets[SITE].close()
    history.budgets[SITE] = SiteState.open(folder)
    history.restart(SITE)


def test_a_site_whose_state_was_set_back_says_so_and_its_peers_go_on_without_it(tmp_path):
    history = History()
    history.budgets[SITE] = reserved(SiteState.open(tmp_path / "state"), history.manifest)
    history.restart(SITE)
    history.attempt([(SITE, "shares")])
    shutil.copytree(tmp_path / "state", tmp_path / "older")
    history.attempt()
    history.attempt()
    folder_budget(history, tmp_path / "older")
    history.told.clear()
    _, messages = history.begin()
    assert code(history.workers[SITE].handle(messages[SITE])) == RefusalCode.SET_BACK
    del history.lines[-1]
    assert history.attempt(close=False).survivors == OTHERS
    # Whoever puts the last state back in is whole again.
    folder_budget(history, tmp_path / "state")
    assert history.attempt().survivors == EVERYBODY


def test_a_state_that_was_set_back_behind_what_only_its_site_knows_is_found_by_its_own_serial(tmp_path):
    """Nothing on the ledger shows it, since nothing was paid for; the serial is what the ledger says."""
    history = History()
    history.budgets[SITE] = reserved(SiteState.open(tmp_path / "state"), history.manifest)
    history.restart(SITE)
    shutil.copytree(tmp_path / "state", tmp_path / "older")
    history.attempt([(site, "advert") for site in EVERYBODY])
    folder_budget(history, tmp_path / "older")
    history.told.clear()
    assert history.attempt().survivors == EVERYBODY
    assert history.paid[SITE] == 1


@pytest.mark.parametrize("reserves", [False, True])
def test_a_site_that_lost_its_whole_state_after_it_paid_says_that_it_was_set_back(history, reserves):
    history.budgets[SITE] = SiteState.in_memory()
    if reserves:
        reserved(history.budgets[SITE], history.manifest)
    history.restart(SITE)
    history.told.clear()
    _, messages = history.begin()
    assert code(history.workers[SITE].handle(messages[SITE])) == RefusalCode.SET_BACK
    assert held(history) == []


def test_a_site_that_did_not_join_begins_nothing():
    history = History()
    history.budgets[SITE] = SiteState.in_memory()
    history.restart(SITE)
    _, messages = history.begin()
    assert code(history.workers[SITE].handle(messages[SITE])) == RefusalCode.BUDGET
    assert held(history) == []
    del history.lines[-1]
    reserved(history.budgets[SITE], history.manifest)
    assert history.attempt().survivors == EVERYBODY


# --- the end ----------------------------------------------------------------------------------------------------------


def ended(history, report=b"", **changes):
    """The ledger with the study's end, not stored."""
    body = {"charges": history.verified.charges, "files": {"report.json": sha256(report or history.report())}} | changes
    found = drafts(history.lines)
    return resealed(history, [*found, {**found[0], "type": "study-closed", "body": body}])


def test_every_site_signs_the_end_once_it_has_all_that_came_before(history):
    history.attempt(away=[SITE])
    assert {code(answer) for answer in history.close().values()} == {"closed"}
    assert history.verified.closing_signatures == set(EVERYBODY)
    assert held(history) == history.lines[: -len(EVERYBODY)]


def test_after_the_end_no_attempt_begins(history):
    history.close()
    lines = resealed(history, [*drafts(history.lines), next_begun(drafts(history.lines))])
    assert code(history.workers[SITE].handle(history.begin_with(lines))) == RefusalCode.LEDGER
    with pytest.raises(LedgerError, match="the study was closed before"):
        VerifiedLedger.of(lines)


@pytest.mark.parametrize(
    "lie",
    [
        lambda history: (history.lines, history.report()),
        lambda history: (ended(history)[:-1], history.report()),
        lambda history: (ended(history), history.report(epsilon=1.0)),
        lambda history: (ended(history, charges={**history.verified.charges, SITE: 1}), history.report()),
        lambda history: (ended(history, files={}), history.report()),
        lambda history: (ended(history, b"{}"), b"{}"),
        lambda history: (ended(history, b"\xff"), b"\xff"),
        lambda history: (ended(history, b"[" * 9999), b"[" * 9999),
    ],
    ids=["no end", "cut", "another report", "other charges", "no report", "no claim", "no text", "nested deep"],
)
def test_a_site_signs_no_end_that_does_not_fit_what_it_knows(history, lie):
    before = held(history)
    assert code(history.workers[SITE].handle(history.close_with(*lie(history)))) == RefusalCode.LEDGER
    assert held(history) == before
    assert {code(answer) for answer in history.close().values()} == {"closed"}


ADAPTER = "adapter/adapter_model.safetensors"


def ended_with(history, files):
    return ended(history, files={name: sha256(content) for name, content in files.items()})


def test_a_site_keeps_what_the_study_leaves_before_it_signs(history):
    files = {"report.json": history.report(), ADAPTER: history.weights, "study.json": b"{}"}
    kept, worker = [], history.workers[SITE]
    worker._keep = lambda files: kept.append((files, held(history)))
    before, lines = held(history), ended_with(history, files)
    close = history.close_with(lines, *(files[name] for name in sorted(files)))
    assert code(worker.handle(close)) == "closed"
    assert kept == [(files, before)]
    assert code(worker.handle(close)) == "closed", "asked again it signs again"


@pytest.mark.parametrize(
    "lie",
    [
        lambda contents: contents[:-1],
        lambda contents: [*contents, b""],
        lambda contents: contents[::-1],
        lambda contents: [contents[0] + b" ", *contents[1:]],
        lambda contents: [],
    ],
    ids=["one missing", "one more", "exchanged", "altered", "none"],
)
def test_a_site_keeps_and_signs_nothing_where_a_file_is_not_as_it_is_named(history, lie):
    files, worker = {"report.json": history.report(), ADAPTER: history.weights}, history.workers[SITE]
    kept: list[dict[str, bytes]] = []
    worker._keep = kept.append
    before, contents = held(history), [files[name] for name in sorted(files)]
    close = history.close_with(ended_with(history, files), *lie(contents))
    assert code(worker.handle(close)) == RefusalCode.LEDGER
    assert (kept, held(history)) == ([], before)


@pytest.mark.parametrize(
    "name",
    [
        "../report.json",
        "/etc/passwd",
        "adapter/../../key",
        "adapter/.hidden",
        "adapter/a/b",
        "adapter/",
        "key",
        "state",
        "adapter\\x",
        "adapter/x\n",
        "report.html\0",
        "",
    ],
)
def test_no_end_names_a_file_elsewhere_than_in_the_study_s_folder(history, name):
    kept: list[dict[str, bytes]] = []
    worker = history.workers[SITE]
    worker._keep = kept.append
    files = {"report.json": history.report(), name: b"numbers"}
    close = history.close_with(ended_with(history, files), *(files[name] for name in sorted(files)))
    assert code(worker.handle(close)) == RefusalCode.LEDGER
    assert kept == []


def test_a_site_that_cannot_keep_the_results_says_so_and_signs_later(history):
    def full(files):
        raise StorageError("the disk is full", why="it keeps them", fix="free space")

    worker, files, before = history.workers[SITE], {"report.json": history.report()}, held(history)
    worker._keep, kept = full, worker._keep
    close = history.close_with(ended_with(history, files), *files.values())
    assert code(worker.handle(close)) == RefusalCode.STORAGE
    assert held(history) == before
    worker._keep = kept
    assert code(worker.handle(close)) == "closed"


def test_a_site_signs_no_end_that_leaves_out_what_it_paid(history):
    history.attempt([(site, "masked-input") for site in ("site-4", "site-5")])
    body = drafts(history.lines)[-1]["body"]
    body["adverts"], body["masked_inputs"] = body["adverts"][2:], body["masked_inputs"][2:]
    body["dropouts"] |= {"site-1": "advert", "site-2": "advert"}
    history.lines[:] = resealed(history, [*drafts(history.lines)[:-1], {**drafts(history.lines)[-1], "body": body}])
    answers = history.close()
    assert {site for site, answer in answers.items() if code(answer) == "closed"} == {"site-3", "site-4", "site-5"}
    assert history.verified.closing_signatures == {"site-3", "site-4", "site-5"}


def test_a_site_signs_no_report_that_claims_less_than_it_computes_itself():
    history = History(study=small_study(noise_multiplier=8.0, training={"rounds": 1, "max_attempts": 2}))
    history.attempt()
    assert history.manifest.schedule
    own = epsilon(history.manifest.schedule, delta=history.manifest.delta).epsilon
    refused = RefusalCode.LEDGER
    for claimed, expected in ((own * 0.999, refused), (0.0, refused), (None, refused), (own, "closed")):
        report = history.report(claimed)
        close = history.close_with(ended(history, report), report)
        assert code(history.workers[SITE].handle(close)) == expected
