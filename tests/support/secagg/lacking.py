"""Sites that lack one check, or one habit: what stands in an opponent's way is shown by taking it away."""

import copy
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

from grandrounds.client.worker.attempt import ClientAttempt, Turn
from grandrounds.common.errors import ProtocolError
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import Advert, Consistency, Unmask, pack
from grandrounds.common.secagg import keys
from grandrounds.common.secagg.noise_chain import noise_chain
from grandrounds.common.secagg.parameters import RosterEntry, SecaggParameters
from grandrounds.common.secagg.transcript import check_group, open_message, refused, transcript_hash
from grandrounds.common.system.content import Content


class TakesAnyAdvert(ClientAttempt):
    """Whoever signed them, for whichever Begin."""

    def _check_adverts(self, wires: Sequence[bytes]) -> tuple[dict[str, Advert], bytes]:
        envelopes = [Envelope.parse(wire) for wire in wires]
        return {e.sender: Advert.of(e) for e in envelopes}, transcript_hash(self._begin_hash, envelopes)


class IgnoresBegin(ClientAttempt):
    """Neither its adverts nor its transcript say which Begin it was shown."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self._begin_hash = "00" * 32


class TakesAnySize(ClientAttempt):
    sets: ClassVar[tuple[str, ...]] = ()

    def _check_group(self, group: Sequence[str], *, what: str, within: Iterable[str]) -> None:
        parameters = _unsound(self._parameters, threshold=1) if what in self.sets else self._parameters
        check_group(parameters, group, what=what, within=within, member=self._name)


class TakesAnyU1(TakesAnySize):
    sets = ("U1",)


class TakesAnyU2(TakesAnySize):
    sets = ("U2",)


class TakesAnyU3(TakesAnySize):
    sets = ("U3",)


class CountsDoubles(ClientAttempt):
    """A set is as large as the list that it comes in."""

    def _check_group(self, group: Sequence[str], *, what: str, within: Iterable[str]) -> None:
        if not set(group) <= set(within) or self._name not in group or len(group) < self._parameters.threshold:
            raise refused(what, why="it is too small, or has sites that cannot be in it")


class TakesAnyCiphertext(ClientAttempt):
    """A ciphertext that does not open is as good as one that does."""

    def _decrypt(self, peer: str, ciphertext: bytes) -> tuple[bytes, bytes]:
        try:
            return super()._decrypt(peer, ciphertext)
        except ProtocolError:
            return secrets.token_bytes(32) + b"\0", secrets.token_bytes(32) + b"\0"


class UnmasksUnsigned(ClientAttempt):
    def _check_consistencies(self, wires: Sequence[bytes]) -> None:
        pass


class TakesAnyView(ClientAttempt):
    """t sites of its own survivors must have signed, whatever it was."""

    def _check_consistencies(self, wires: Sequence[bytes]) -> None:
        signers = [
            open_message(self._parameters, wire, Consistency, attempt=self._attempt, senders=self._u3)[0].sender
            for wire in wires
        ]
        self._check_group(signers, what="U4", within=self._u3)


class AnswersTwice(ClientAttempt):
    """It has no turns, and drops no secret."""

    @contextmanager
    def _taking(self, turn: Turn) -> Iterator[None]:
        held, own, links = dict(self._held_shares), self._secrets, dict(self._links)
        yield
        self._held_shares |= held
        self._secrets = own
        self._links |= links


class KeepsItsSecrets(ClientAttempt):
    """Its secrets are drawn once, as if they were written down, and serve whenever it begins anew."""

    written: ClassVar[dict[tuple[str, str], keys.AttemptSecrets]] = {}

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        key = self._identity.public_key, self._name
        self._secrets = self.written.setdefault(key, self._secrets)
        self._links, self._layer_keys = noise_chain(
            self._secrets.noise,
            self._parameters.noise_levels,
            manifest=self._parameters.manifest,
            attempt=self._attempt,
            sender=self._name,
        )


class GivesBothShares(ClientAttempt):
    def unmask(self, message: Content) -> bytes:
        link = self._links[self._parameters.levels_reached(self._u3)[-1]]
        both = [b"".join(self._held_shares[site]) for site in self._u2]
        return self._seal(Unmask(noise_link=link.hex()), payload=pack(both))


class ShowsAnotherLink(ClientAttempt, ABC):
    """The link that it shows goes by another number of sites than that of the survivors."""

    @abstractmethod
    def _reached(self) -> int:
        """How many sites it goes by."""

    def unmask(self, message: Content) -> bytes:
        links = dict(self._links)
        envelope = Envelope.parse(super().unmask(message))
        level = max(level for level in links if level <= max(self._reached(), self._parameters.threshold))
        return self._seal(Unmask(noise_link=links[level].hex()), payload=envelope.payload)


class ShowsOneLinkTooMany(ShowsAnotherLink):
    def _reached(self) -> int:
        return len(self._u3) + 1


class ShowsTheLinkOfThoseWhoShared(ShowsAnotherLink):
    """It is the same with its masked input, when nobody can know who will last."""

    def _reached(self) -> int:
        return len(self._u2)


class TakesParametersFromBegin(ClientAttempt):
    """What Begin says beyond its fields replaces what the manifest says: a threshold, or strangers with their keys."""

    def __init__(self, *, parameters: SecaggParameters, begin: Envelope, **fields: Any) -> None:
        body = dict(begin.body)
        strangers = tuple(RosterEntry(name=n, public_key=k) for n, k in body.pop("strangers", {}).items())
        threshold = body.pop("threshold", parameters.threshold)
        parameters = _unsound(parameters, threshold=threshold, roster=parameters.roster + strangers)
        super().__init__(parameters=parameters, begin=replace(begin, body=body), **fields)


def _unsound(parameters: SecaggParameters, **changes: object) -> SecaggParameters:
    """The parameters with changes that a study may not have."""
    changed = copy.copy(parameters)
    for name in ("names", "_keys", "_positions"):  # derived from the roster, once
        vars(changed).pop(name, None)
    vars(changed).update(changes)
    return changed
