"""A server that lies from the start: other adapters, parameters, rosters or attempts for each site."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.secagg.cohort import Cohort
from support.secagg.lacking import IgnoresBegin, KeepsItsSecrets, TakesAnyAdvert, TakesParametersFromBegin
from support.secagg.opponent import Opponent, surrounded
from support.study.federation import Federation, small_study

from grandrounds.client.state import adapter_copy
from grandrounds.client.worker.attempt import ClientAttempt
from grandrounds.client.worker.worker import ComputeUpdate
from grandrounds.common.crypto.identity import Identity
from grandrounds.common.errors import EnvelopeError, ProtocolError
from grandrounds.common.model.adapter import loaded, vector_bytes
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import SERVER, Begin, pack, unpack
from grandrounds.common.secagg import transcript
from grandrounds.common.secagg.parameters import SecaggParameters

VICTIM = "site-2"
ACCOMPLICE = "site-5"
Loot = tuple[list[int], list[int]]


def begin_with(cohort: Cohort, **additions: object) -> bytes:
    """A Begin that says more than its fields."""
    body = cohort.begin().model_dump(mode="json") | additions
    context: dict[str, Any] = {"manifest": cohort.manifest, "attempt": 1, "exchange": "begin", "sender": SERVER}
    return Envelope.seal(cohort.server, **context, body=body).to_bytes()


# --- other adapters, or rounds ----------------------------------------------------------------------------------------


def only_the_victim_moves(machine: type[ClientAttempt]) -> Loot:
    """All but the victim are sent where they have nothing to add, so that the sum is the victim's update."""
    cohort = Cohort(sites=5, machine=machine)
    begins = {name: cohort.server_says(cohort.begin(round=1 + (name == VICTIM))) for name in cohort.names}
    opponent = Opponent(cohort, [ACCOMPLICE], begins=begins)
    opponent.updates = {name: update * (name == VICTIM) for name, update in opponent.updates.items()}
    opponent.collect_shares()
    opponent.collect_inputs()
    signatures = opponent.sign(opponent.names, opponent.names)
    for name in opponent.honest:
        opponent.unmask(name, opponent.names, signatures)
    return opponent.loot(*opponent.honest), opponent.truth(VICTIM)


def test_sites_on_different_begins_are_never_in_one_sum() -> None:
    """Were the hash of Begin not compared, no ciphertext would cross: it is in the transcript as well."""
    loot, truth = only_the_victim_moves(IgnoresBegin)
    assert loot == truth
    for machine, complaint in ((TakesAnyAdvert, "does not open"), (ClientAttempt, "was shown another Begin")):
        with pytest.raises(ProtocolError, match=complaint):
            only_the_victim_moves(machine)


def test_sites_on_one_begin_have_one_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest names the first adapter by hash; at the adapter of zeros these sites have nothing to add."""

    def release(manifest: object, site: str) -> ComputeUpdate:
        return lambda adapter, mechanism: (loaded(adapter) * int(site[-1])).astype("<u4")

    federation = Federation(study=small_study(), dimension=7, release=release)

    def sum_of_lies() -> list[int] | None:
        attempt = federation.attempt()
        honest = Envelope.parse(attempt.messages()[VICTIM])
        begin, (_, *ledger) = Begin.of(honest), unpack(honest.payload)
        for site in federation.workers:
            adapter = np.ones(7, dtype=np.float32) if site == VICTIM else federation.adapter
            lie = federation.server_says(begin, pack([pack([vector_bytes(adapter), b"", b""]), *ledger]))
            attempt.receive(site, federation.workers[site].handle(lie))
        if attempt.dropouts:
            assert attempt.reasons == {VICTIM: "it refused: adapter"}
            return None
        attempt.advance()
        while not attempt.done:
            federation.exchange(attempt)
        return attempt.aggregate.tolist()

    assert sum_of_lies() is None
    monkeypatch.setattr(adapter_copy, "check_state", lambda *state: None)
    federation = replace(federation)
    assert sum_of_lies() == [2] * 7


# --- other parameters -------------------------------------------------------------------------------------------------


def lower_threshold(machine: type[ClientAttempt]) -> Loot:
    """Two sites are enough, says the server: the victim masks with the accomplice alone."""
    cohort = Cohort(sites=5, machine=machine)
    opponent = Opponent(cohort, [ACCOMPLICE], begins=dict.fromkeys(cohort.names, begin_with(cohort, threshold=2)))
    opponent.collect_shares()
    opponent.collect_inputs(lambda name: (VICTIM, ACCOMPLICE) if name == VICTIM else opponent.names)
    signatures = opponent.sign(("site-1", ACCOMPLICE), opponent.names)
    opponent.unmask("site-1", opponent.names, signatures)
    opponent.unmask("site-3", opponent.names, opponent.sign(("site-3", ACCOMPLICE), opponent.names))
    opponent.unmask("site-4", opponent.names, opponent.sign(("site-4", ACCOMPLICE), opponent.names))
    return opponent.loot(VICTIM, masked_with=[ACCOMPLICE]), opponent.truth(VICTIM)


def invented_sites(machine: type[ClientAttempt]) -> Loot:
    """Strangers of the server's making are a threshold of peers."""
    cohort = Cohort(machine=machine)
    strangers = {f"stranger-{i}": Identity.generate() for i in range(3)}
    public_keys = {name: identity.public_key for name, identity in strangers.items()}
    invited = [VICTIM, *strangers]
    begin = begin_with(cohort, invited=invited, strangers=public_keys)
    return surrounded(cohort, cohort.client(VICTIM, begin), strangers)


@pytest.mark.parametrize("attack", [lower_threshold, invented_sites])
def test_the_server_chooses_no_parameter(attack: Callable[[type[ClientAttempt]], Loot]) -> None:
    loot, truth = attack(TakesParametersFromBegin)
    assert loot == truth
    with pytest.raises(EnvelopeError, match="body of the wrong form"):
        attack(ClientAttempt)


@pytest.mark.parametrize("parameter", ["threshold", "corrupt_sites", "modulus_bits", "update_range", "roster"])
def test_begin_has_no_place_for_a_parameter(parameter: str) -> None:
    cohort = Cohort()
    cohort.client(VICTIM, begin_with(cohort))
    with pytest.raises(EnvelopeError, match="body of the wrong form"):
        cohort.client(VICTIM, begin_with(cohort, **{parameter: 1}))


def test_an_invented_site_is_not_invited_in_the_roster_s_words_either() -> None:
    cohort = Cohort()
    with pytest.raises(ProtocolError, match="cannot be in it"):
        cohort.client(VICTIM, begin_with(cohort, invited=[VICTIM, "stranger-0", "stranger-1"]))


# --- old attempts, and other studies ----------------------------------------------------------------------------------


def the_same_attempt_again(machine: type[ClientAttempt]) -> Loot:
    """Once to open the victim's seed, as one who survived, and once its mask key, as one who did not."""
    cohort = Cohort(sites=5, machine=machine)
    first, second = Opponent(cohort, [ACCOMPLICE]), Opponent(cohort, [ACCOMPLICE])
    for opponent, u3 in ((first, cohort.names), (second, ("site-1", "site-3", "site-4", ACCOMPLICE))):
        opponent.collect_shares()
        opponent.collect_inputs()
        signatures = opponent.sign(u3, u3)
        for name in ("site-1", "site-3", "site-4"):
            opponent.unmask(name, u3, signatures)
    second.seed_shares[VICTIM] = first.seed_shares[VICTIM]
    return second.loot(VICTIM), second.truth(VICTIM)


def test_a_site_that_begins_anew_has_nothing_of_what_it_had() -> None:
    loot, truth = the_same_attempt_again(KeepsItsSecrets)
    assert loot == truth
    loot, truth = the_same_attempt_again(ClientAttempt)
    assert loot != truth


@pytest.mark.parametrize(("manifest", "attempt"), [("ab" * 32, 2), ("cd" * 32, 1)])
@pytest.mark.parametrize(
    ("exchange", "then"),
    [("shares", "in this site's name"), ("masked-input", "does not open"), ("unmask", "different views")],
)
def test_what_was_said_in_another_attempt_or_study_is_refused_by_its_context_and_by_its_content(
    manifest: str, attempt: int, exchange: str, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Cohort()
    message = recorded.attempt().until(exchange).server.messages()[VICTIM]

    def replayed() -> None:
        cohort = Cohort(manifest=manifest, identities=recorded.identities, server=recorded.server)
        cohort.attempt(attempt).until(exchange).answer(VICTIM, message)

    with pytest.raises(EnvelopeError, match="or another study"):
        replayed()

    def signed_by_a_sender(parameters: SecaggParameters, envelope: Envelope, **context: object) -> None:
        envelope.verify(parameters.key_of(envelope.sender))

    monkeypatch.setattr(transcript, "verify_sender", signed_by_a_sender)
    with pytest.raises(ProtocolError, match=then):
        replayed()


@pytest.mark.parametrize("exchange", ["shares", "masked-input", "consistency", "unmask"])
def test_a_machine_made_anew_for_the_same_begin_cannot_go_on_with_the_attempt(exchange: str) -> None:
    """It has other secrets than those that the peers were shown."""
    cohort = Cohort()
    attempt = cohort.attempt().until(exchange)
    message = attempt.server.messages()[VICTIM]
    attempt.clients[VICTIM] = cohort.client(VICTIM, cohort.server_says(cohort.begin()))
    attempt.clients[VICTIM].advertise()
    with pytest.raises(ProtocolError, match=r"in this site's name|SHARE was due"):
        attempt.answer(VICTIM, message)
