"""A site's own adapter: it follows from the sums; a ledger that names another, or a file with another, is refused."""

from contextlib import closing
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from support.ledger.ledger_history import DIMENSION, History, history_study, round_closed
from support.study.federation import reserved, small_manifest

from grandrounds.client.state import adapter_copy, database
from grandrounds.client.state.adapter_copy import AdapterCopy
from grandrounds.client.state.site_state import SiteState
from grandrounds.common.crypto.identity import Identity, sha256
from grandrounds.common.ledger import entries, steps
from grandrounds.common.ledger.chain import Entry
from grandrounds.common.ledger.replay import begin_of
from grandrounds.common.model.adapter import check_numbers
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import pack, unpack
from grandrounds.common.study.step import DueStep, LastStep, Missing, Trained, step, sum_bytes
from grandrounds.common.system.content import Joined, Stored
from grandrounds.deploy.bench.peak_memory import forget_peak, peak_bytes
from grandrounds.server.rounds.closing import Closing

SITE, NEW = "site-2", "site-6"
UNITS = {f"site-{i}": 4 for i in range(1, 6)}
WEIGHTS = "adapter/adapter_model.safetensors"
TRAININGS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd"},
    "averaged momentum": {"optimizer": "momentum", "averaging": "mean", "averaged_rounds": 9},
    "adam": {"optimizer": "adam"},
    "disk": {"optimizer": "disk", "filter_gain": 0.5},
}


@cache
def two_rounds(training):
    made = History(study=history_study(rounds=9, **TRAININGS[training]))
    made.attempt()
    made.attempt()
    return made


@pytest.fixture(params=TRAININGS)
def history(request):
    return two_rounds(request.param).fork()


@pytest.fixture
def adam():
    return two_rounds("adam").fork()


@pytest.fixture(params=["averaged momentum", "disk"])
def averaged(request):
    return two_rounds(request.param).fork()


def sent(message):
    """What a Begin brings of the adapter."""
    return Missing.parse(unpack(Envelope.parse(message).payload)[0], dimension=DIMENSION)


def said(answer):
    """The exchange of an answer, or the code of a refusal."""
    envelope = Envelope.parse(answer)
    return envelope.body.get("code") or envelope.exchange


def answers(history, messages):
    return {site: said(history.workers[site].handle(message)) for site, message in messages.items()}


def own(history, site=SITE):
    """The adapter that the site has on disk, and after which round."""
    state, study = history.budgets[site], history.manifest.study_id
    return state.adapter_round(study), bytes(state.adapter(study)[0][:])


def the(history):
    return history.last_step.after.adapter.astype("<f4").tobytes()


# --- what an honest server sends --------------------------------------------------------------------------------------


def test_a_site_comes_to_the_server_s_adapter_by_the_sum_alone(history):
    before = the(history)
    _, messages = history.begin()
    for message in messages.values():
        assert sent(message).before is None
        assert sent(message).total == history.last_step.total
    assert set(answers(history, messages).values()) == {"advert"}
    assert {own(history, site) for site in UNITS} == {(2, before)}


def test_a_site_that_was_restarted_goes_on_with_the_adapter_on_its_disk(history):
    _, messages = history.begin()
    history.restart(SITE)
    assert said(history.workers[SITE].handle(messages[SITE])) == "advert"
    assert own(history) == (2, the(history))


def test_for_another_attempt_at_a_round_nothing_of_the_adapter_is_sent(history):
    history.attempt([(site, "shares") for site in UNITS])
    _, messages = history.begin()
    assert (sent(messages[SITE]).before, sent(messages[SITE]).total) == (None, b"")
    history.restart(SITE)
    assert set(answers(history, messages).values()) == {"advert"}


def test_a_site_that_was_away_is_sent_the_state_before_the_last_round_and_its_sum(history):
    history.attempt(away=[SITE])
    history.attempt(away=[SITE])
    _, messages = history.begin()
    assert own(history)[0] < 3
    assert sent(messages[SITE]).before.adapter_sha256 == history.verified.rounds[-2].adapter_sha256
    assert sent(messages["site-1"]).before is None
    assert set(answers(history, messages).values()) == {"advert"}
    assert own(history) == own(history, "site-1") == (4, the(history))


def test_a_site_that_was_away_answers_nothing_where_it_is_sent_the_sum_alone(history):
    history.attempt(away=[SITE])
    history.attempt(away=[SITE])
    history.begin()
    last = Entry.parse(history.lines[-1])
    alone = pack([Missing(total=history.last_step.total).packed(), *history.lines])
    message = history.server_says(begin_of(last), alone, attempt=last.body["attempt"])
    assert {site: said(history.workers[site].handle(message)) for site in (SITE, "site-1")} == {
        SITE: "adapter",
        "site-1": "advert",
    }


def test_at_the_end_a_site_that_was_away_is_sent_everything_and_the_others_what_they_lack(history):
    history.attempt(away=[SITE])
    files = {"report.json": history.report()}
    closing = Closing(ledger=history.writer(), files=files, last_step=history.last_step)
    parts = {site: unpack(Envelope.parse(message).payload) for site, message in closing.messages().items()}
    lines = {site: len(unpack(lines)) for site, (lines, *_) in parts.items()}
    missing = {site: Missing.parse(sent, dimension=DIMENSION) for site, (_, sent, *_) in parts.items()}
    assert (lines[SITE], missing[SITE].before is None) == (len(history.lines), False)
    assert (lines["site-1"], missing["site-1"].before is None) == (3, True), "the attempt's end, its round, the study's"


def test_a_site_that_joins_takes_the_state_that_the_sites_before_it_signed(history):
    history.succeed(UNITS | {NEW: 8})
    _, messages = history.begin()
    assert sent(messages[NEW]).before is not None
    assert set(answers(history, messages).values()) == {"advert"}
    assert own(history, NEW) == own(history, "site-1") == (2, the(history))


@pytest.mark.parametrize("first", [True, False])
def test_a_site_whose_state_has_no_adapter_begins_with_what_it_is_sent(first):
    history = History(study=history_study())
    if not first:
        history.attempt()
    _, messages = history.begin()
    state = reserved(SiteState.in_memory(), history.manifest)
    for site in UNITS:
        assert (sent(messages[site]).before is None) is (not first)
    assert state.adapter_round(history.manifest.study_id) is None
    assert set(answers(history, messages).values()) == {"advert"}


def test_what_is_too_large_for_memory_is_stepped_in_files_to_the_same_bits(adam, monkeypatch):
    for module in (adapter_copy, database):
        monkeypatch.setattr(module, "BLOCK_BYTES", 0)
    for _ in range(2):
        round_ = adam.attempt(close=False)
        held = adam.workers[SITE]._adapters.adapter()
        assert isinstance(held, Stored)
        assert held[:] == the(adam)
        adam.close_round(round_)
    assert set(answers(adam, adam.begin()[1]).values()) == {"advert"}
    assert own(adam) == (4, the(adam))


def test_a_step_and_what_is_kept_of_it_take_no_memory_that_grows_with_the_adapter(tmp_path):
    """A step of Adam: three vectors before it, three after it, and the sum."""
    d = 4_300_000
    study = history_study(optimizer="adam")
    identities = {site.name: Identity.generate() for site in study.sites}
    manifest = small_manifest(study, identities, Identity.generate(), dimension=d)
    with (tmp_path / "numbers").open("wb+") as file, closing(SiteState.open(tmp_path / "state")) as state:
        reserved(state, manifest)
        file.truncate(4 * d)
        numbers, remembered = Stored(file), Joined([Stored(file), Stored(file), np.ones(2).tobytes()])
        copy = AdapterCopy(state, manifest)
        state.begin(manifest.study_id, 1, adapter=(1, numbers, remembered))
        before = forget_peak()
        after = copy._take_step(
            DueStep(
                manifest=manifest,
                before=copy._trained,
                total=numbers,
                survivors=list(identities),
                round=2,
                attempt=2,
                shown=(),
            )
        )
        check_numbers(after.numbers, dimension=d)
        assert after.adapter_sha256 != after.optimizer_sha256
        state.begin(manifest.study_id, 2, adapter=(2, after.numbers, after.optimizer))
        assert peak_bytes() - before < 4 * d


# --- a server that lies -----------------------------------------------------------------------------------------------


def lies(history, change, **entry):
    """A third round whose entry names what ``change`` makes of its step; the Begin of the next attempt, by site.

    ``entry`` is what it says otherwise.
    """
    round_ = history.attempt(close=False)
    before = history.last_step.after
    total = bytes(sum_bytes(history.manifest, round_.aggregate))
    after = step(
        DueStep(
            manifest=history.manifest,
            before=before,
            total=total,
            survivors=round_.survivors,
            round=round_.number,
            attempt=round_.outcomes[-1].attempt,
            shown=(),
        )
    )
    honest = LastStep(after=after, before=before, total=total)
    history.last_step = change(honest)
    closed = round_closed(history.manifest, round_.outcomes[-1].attempt, round_.number, history.last_step)
    round_.ledger.append(closed.model_copy(update=entry))
    return history.begin()[1]


def another_adapter(last):
    return replace(last, after=replace(last.after, adapter=last.after.adapter + np.float32(1)))


def one_bit_of_the_adapter(last):
    adapter = last.after.adapter.copy()
    adapter.view(np.uint32)[3] ^= 1
    return replace(last, after=replace(last.after, adapter=adapter))


def another_optimizer(last):
    return replace(last, after=replace(last.after, optimizer=bytes(len(last.after.optimizer))))


def the_adapter_before(last):
    return replace(last, after=last.before)


LIES = [another_adapter, one_bit_of_the_adapter, another_optimizer, the_adapter_before]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_no_site_answers_for_an_adapter_that_the_sum_did_not_make(adam, lie):
    assert set(answers(adam, lies(adam, lie)).values()) == {"adapter"}
    assert {budget.adapter_round(adam.manifest.study_id) for budget in adam.budgets.values()} == {2}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_without_the_comparison_every_site_would(adam, lie, monkeypatch):
    monkeypatch.setattr(steps, "check_state", lambda *state: None)
    monkeypatch.setattr(adapter_copy, "check_state", lambda *state: None)
    assert set(answers(adam, lies(adam, lie)).values()) == {"advert"}


def test_no_site_answers_where_the_ledger_names_another_average_than_the_rounds(averaged):
    messages = lies(averaged, lambda last: last, average_sha256="ab" * 32)
    assert set(answers(averaged, messages).values()) == {"adapter"}


@pytest.mark.parametrize(
    "change",
    [
        lambda last: replace(last, total=b""),
        lambda last: replace(last, total=last.total[:-1]),
        lambda last: replace(last, total=bytes([last.total[0] ^ 1]) + last.total[1:]),
        lambda last: replace(last, total=bytes(len(last.total))),
    ],
    ids=["none", "shorter", "another", "zeros"],
)
def test_a_sum_other_than_the_ledger_names_is_refused(adam, change):
    history, honest = adam, adam.last_step
    history.begin()
    history.last_step = change(honest)
    for site in UNITS:
        message = history.begin_with(history.lines)
        assert said(history.workers[site].handle(message)) == "adapter"
    history.last_step = honest
    assert said(history.workers[SITE].handle(history.begin_with(history.lines))) == "advert"


@pytest.mark.parametrize("what", ["adapter", "optimizer"])
def test_a_site_that_was_away_takes_no_state_that_the_others_did_not_sign(adam, what):
    adam.attempt(away=[SITE])
    adam.attempt(away=[SITE])
    adam.begin()
    honest = adam.last_step
    other = {"adapter": honest.before.adapter + np.float32(1), "optimizer": bytes(len(honest.before.optimizer))}
    adam.last_step = replace(honest, before=replace(honest.before, **{what: other[what]}))
    message = adam.begin_with(adam.lines)
    assert said(adam.workers[SITE].handle(message)) == "adapter"
    assert said(adam.workers["site-1"].handle(message)) == "advert", "who holds its own needs no other"
    adam.last_step = honest
    assert said(adam.workers[SITE].handle(adam.begin_with(adam.lines))) == "advert"


def test_a_study_begins_with_the_adapter_of_its_manifest():
    history = History(study=history_study())
    history.begin()
    history.last_step = LastStep(after=Trained(adapter=np.ones(DIMENSION, np.float32)))
    assert said(history.workers[SITE].handle(history.begin_with(history.lines))) == "adapter"


# --- the end ----------------------------------------------------------------------------------------------------------


def closed_with(history, weights):
    """What each site answers to the end of the study, whose adapter's file is ``weights``."""
    files = {WEIGHTS: weights, "report.json": history.report()}
    writer = history.writer()
    hashes = {name: sha256(content) for name, content in files.items()}
    writer.append(entries.StudyClosed(charges=writer.verified.charges, files=hashes))
    close = history.close_with(history.lines, *(files[name] for name in sorted(files)))
    return {said(history.workers[site].handle(close)) for site in history.sites}


def numbers(history, vector):
    return save({"model.layer.lora_B.weight": vector[None]})


def test_a_study_that_leaves_the_sites_own_adapter_is_signed(history):
    assert closed_with(history, history.weights) == {"closed"}


def test_where_an_average_is_left_no_site_signs_a_study_that_leaves_the_last_adapter(averaged):
    twin = averaged.fork()
    assert closed_with(averaged, averaged.weights) == {"closed"}
    assert closed_with(twin, numbers(averaged, averaged.last_step.after.adapter)) == {"adapter"}


FOREIGN = {
    "another": lambda history: numbers(history, history.last_step.after.adapter + np.float32(1)),
    "that of the round before": lambda history: numbers(history, history.last_step.before.adapter),
    "one of other numbers": lambda history: numbers(history, np.zeros(3, np.float32)),
    "one of another type": lambda history: numbers(history, history.last_step.after.adapter.astype(np.float64)),
    "none": lambda history: save({}),
    "something else": lambda history: b"numbers",
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_no_site_signs_a_study_that_leaves_another_adapter(adam, foreign):
    assert closed_with(adam, FOREIGN[foreign](adam)) == {"adapter"}


def test_without_the_comparison_every_site_would_sign_it(adam, monkeypatch):
    monkeypatch.setattr(adapter_copy, "trained_sha256", lambda weights, *, kind: adam.last_step.after.adapter_sha256)
    assert closed_with(adam, b"numbers") == {"closed"}


def test_no_site_signs_an_end_after_a_round_that_was_not_stepped_by_its_sum(adam):
    lies(adam, another_adapter)
    del adam.lines[-1]  # nobody was told of the attempt
    assert closed_with(adam, adam.weights) == {"adapter"}
