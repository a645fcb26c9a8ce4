"""The client's side of secure aggregation: what one site answers in one attempt, each answer given once.

After Bonawitz et al. 2017, figure 4, with an active adversary; ``common/secagg/PROTOCOL.md`` says why each check.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum, auto
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ...common.crypto.identity import Identity
from ...common.protocol.envelope import Envelope
from ...common.protocol.messages import (
    SERVER,
    Advert,
    Adverts,
    Begin,
    Ciphertexts,
    Consistencies,
    Consistency,
    MaskedInput,
    Message,
    Shares,
    Survivors,
    Unmask,
    begin_hash,
    pack,
    unpack,
)
from ...common.secagg import keys, shamir
from ...common.secagg.encoding import residue_dtype
from ...common.secagg.masks import add_masks
from ...common.secagg.noise_chain import noise_chain
from ...common.secagg.parameters import SecaggParameters
from ...common.secagg.transcript import check_group, open_message, refused, seal_message, transcript_hash, verify_sender
from ...common.system.content import Content

M = TypeVar("M", bound=Message)


class Turn(IntEnum):
    """What a site is asked for next."""

    ADVERTISE = auto()
    SHARE = auto()
    ACCEPT = auto()
    MASK = auto()
    SIGN_SURVIVORS = auto()
    UNMASK = auto()
    OVER = auto()


def check_begin(parameters: SecaggParameters, name: str, envelope: Envelope) -> Begin:
    """The Begin that the server signed for this study, inviting ``name`` and in all t or more sites of the roster.

    Raises EnvelopeError or ProtocolError. The adapter, the serial and the ledger are for the worker to check.
    """
    verify_sender(parameters, envelope, attempt=envelope.attempt, senders=(SERVER,))
    begin = Begin.of(envelope)
    check_group(parameters, begin.invited, what="the invitation", within=parameters.names, member=name)
    return begin


class ClientAttempt:
    """One site in one attempt.

    The methods are called once each, in the order in which they stand. Each raises EnvelopeError or ProtocolError if
    the message is not one that an honest server sends, or if it is not its turn; the instance is then dead and its
    secrets are gone. A retry is a new instance with new secrets.
    """

    def __init__(
        self,
        *,
        parameters: SecaggParameters,
        name: str,
        identity: Identity,
        begin: Envelope,
        charge_counter: int,
        least_charge_counters: Mapping[str, int],
    ) -> None:
        """``charge_counter`` is this site's own; no peer's may be below ``least_charge_counters``."""
        self._parameters = parameters
        self._name = name
        self._identity = identity
        opened = check_begin(parameters, name, begin)
        self._invited = opened.invited
        self._attempt = begin.attempt
        self._begin_hash = begin_hash(opened, manifest=begin.manifest, attempt=begin.attempt)
        self._charge_counter = charge_counter
        self._least_charge_counters = dict(least_charge_counters)
        self._due = Turn.ADVERTISE
        self._secrets = keys.AttemptSecrets.fresh()
        self._links, self._layer_keys = noise_chain(
            self._secrets.noise, parameters.noise_levels, manifest=begin.manifest, attempt=self._attempt, sender=name
        )
        self._own_advert = b""
        self._adverts: dict[str, Advert] = {}
        self._transcript = b""
        self._held_shares: dict[str, tuple[bytes, bytes]] = {}
        self._u2: tuple[str, ...] = ()
        self._u3: tuple[str, ...] = ()

    @property
    def peer_charge_counters(self) -> dict[str, int]:
        """What each peer advertised as its charge counter."""
        return {peer: advert.charge_counter for peer, advert in self._adverts.items() if peer != self._name}

    @property
    def serial(self) -> int:
        """The attempt's number in the study, which the server signed in Begin."""
        return self._attempt

    @property
    def layer_keys(self) -> dict[int, bytes]:
        """The secret keys of the layers of this attempt's noise, by their levels."""
        return self._layer_keys

    def advertise(self) -> bytes:
        """Advert: this site's keys and the commitment to its seed."""
        with self._taking(Turn.ADVERTISE):
            advert = Advert(
                channel_key=keys.public_key(self._secrets.channel_key),
                mask_key=keys.public_key(self._secrets.mask_key),
                seed_commitment=keys.seed_commitment(
                    self._secrets.seed, manifest=self._parameters.manifest, attempt=self._attempt, sender=self._name
                ),
                noise_end=self._links[self._parameters.threshold].hex(),
                begin_hash=self._begin_hash,
                charge_counter=self._charge_counter,
            )
            self._own_advert = self._seal(advert)
            return self._own_advert

    def share(self, message: Content) -> bytes:
        """On Adverts, Shares: of this site's seed and mask key, encrypted for each peer."""
        with self._taking(Turn.SHARE):
            envelope, _ = self._open(message, Adverts)
            self._adverts, self._transcript = self._check_adverts(unpack(envelope.payload))
            points = [self._parameters.point(peer) for peer in self._adverts]
            threshold = self._parameters.threshold
            seed_shares = shamir.split(self._secrets.seed, threshold=threshold, points=points)
            key_shares = shamir.split(self._secrets.mask, threshold=threshold, points=points)
            shares = dict(zip(self._adverts, zip(seed_shares, key_shares, strict=True), strict=True))
            self._held_shares[self._name] = shares.pop(self._name)
            ciphertexts = [self._encrypt(peer, seed + key) for peer, (seed, key) in shares.items()]
            return self._seal(Shares(), payload=pack(ciphertexts))

    def accept(self, message: Content) -> None:
        """On Ciphertexts, nothing yet: the last checks before this site spends budget and touches data."""
        with self._taking(Turn.ACCEPT):
            envelope, ciphertexts = self._open(message, Ciphertexts)
            self._check_group(ciphertexts.u2, what="U2", within=self._adverts)
            self._u2 = ciphertexts.u2
            parts = unpack(envelope.payload)
            if len(parts) != len(self._u2) - 1:
                raise refused(
                    f"{len(parts)} ciphertexts for {len(self._u2)} sites", why="a peer's shares would be lost"
                )
            for peer, ciphertext in zip(self._peers(), parts, strict=True):
                self._held_shares[peer] = self._decrypt(peer, ciphertext)

    def mask(self, encoded_update: NDArray[np.unsignedinteger], charge_counter: int) -> bytes:
        """MaskedInput. ``encoded_update`` [d] is masked in place; ``charge_counter`` includes this attempt's charge."""
        with self._taking(Turn.MASK):
            self._check_update(encoded_update)
            if charge_counter <= self._charge_counter:
                raise refused(
                    f"charge counter {charge_counter} after {self._charge_counter}",
                    why="an update leaves only after its charge is on record",
                )
            own = self._parameters.point(self._name)
            before = [peer for peer in self._peers() if self._parameters.point(peer) < own]
            after = [peer for peer in self._peers() if self._parameters.point(peer) > own]
            self_mask = keys.self_mask_key(self._secrets.seed, transcript=self._transcript, name=self._name)
            add_masks(
                encoded_update,
                plus=[self_mask, *(self._pair_mask(peer, first=self._name, second=peer) for peer in after)],
                minus=[self._pair_mask(peer, first=peer, second=self._name) for peer in before],
            )
            # What remains to be done needs the shares held, and of the noise one link.
            del self._secrets
            self._layer_keys.clear()
            return self._seal(MaskedInput(charge_counter=charge_counter), payload=encoded_update.data.cast("B"))

    def sign_survivors(self, message: Content) -> bytes:
        """On Survivors, Consistency: a signature on the one view of the attempt that this site answers for."""
        with self._taking(Turn.SIGN_SURVIVORS):
            _, survivors = self._open(message, Survivors)
            self._check_group(survivors.u3, what="U3", within=self._u2)
            self._u3 = survivors.u3
            return self._seal(self._view())

    def unmask(self, message: Content) -> bytes:
        """On Consistencies, Unmask: one share for each site of U2, of its seed or of its mask key, never both.

        And the link to the layers of this site's noise that U3, which t sites have now signed, has too many sites for.
        """
        with self._taking(Turn.UNMASK):
            envelope, _ = self._open(message, Consistencies)
            self._check_consistencies(unpack(envelope.payload))
            shares = []
            for site in self._u2:
                seed_share, mask_key_share = self._held_shares.pop(site)
                shares.append(seed_share if site in self._u3 else mask_key_share)
            link = self._links[self._parameters.levels_reached(self._u3)[-1]]
            self._links.clear()
            return self._seal(Unmask(noise_link=link.hex()), payload=pack(shares))

    @contextmanager
    def _taking(self, turn: Turn) -> Iterator[None]:
        # The turn is over before it begins: whatever happens inside, it is not taken twice.
        due, self._due = self._due, Turn.OVER
        try:
            if due is not turn:
                raise refused(f"asked to {turn.name} when {due.name} was due", why="a site gives each answer once")
            yield
        except BaseException:
            self.__dict__.pop("_secrets", None)
            for secret in (self._held_shares, self._links, self._layer_keys):
                secret.clear()
            raise
        self._due = Turn(turn + 1)

    def _check_adverts(self, wires: Sequence[bytes]) -> tuple[dict[str, Advert], bytes]:
        """U1's adverts by name, and T1."""
        opened = [
            open_message(self._parameters, wire, Advert, attempt=self._attempt, senders=self._invited) for wire in wires
        ]
        self._check_group([envelope.sender for envelope, _ in opened], what="U1", within=self._invited)
        adverts = {envelope.sender: advert for envelope, advert in opened}
        if self._own_advert not in wires:
            raise refused("another advert in this site's name", why="whoever made it would hold this site's keys")
        keys.check_public_keys([key for advert in adverts.values() for key in (advert.channel_key, advert.mask_key)])
        for peer, advert in adverts.items():
            if advert.begin_hash != self._begin_hash:
                raise refused(f"{peer} was shown another Begin", why="sites would train different adapters or rounds")
            if advert.charge_counter < self._least_charge_counters.get(peer, 0):
                raise refused(f"the charge counter of {peer} fell", why="its record of what it spent was set back")
        return adverts, transcript_hash(self._begin_hash, [envelope for envelope, _ in opened])

    def _check_update(self, encoded_update: NDArray[np.unsignedinteger]) -> None:
        shape, dtype = (self._parameters.dimension,), residue_dtype(self._parameters.modulus_bits)
        if encoded_update.shape != shape or encoded_update.dtype != dtype or not encoded_update.flags.c_contiguous:
            raise refused(
                f"an update of shape {encoded_update.shape} and type {encoded_update.dtype}",
                why=f"the manifest says {shape} and {dtype}, and only a contiguous array can be masked in place",
            )

    def _check_consistencies(self, wires: Sequence[bytes]) -> None:
        opened = [
            open_message(self._parameters, wire, Consistency, attempt=self._attempt, senders=self._u3) for wire in wires
        ]
        self._check_group([envelope.sender for envelope, _ in opened], what="U4", within=self._u3)
        if any(view != self._view() for _, view in opened):
            raise refused("sites signed different views", why="shares for two views could unmask one site's update")

    def _view(self) -> Consistency:
        return Consistency(transcript=self._transcript.hex(), u2=self._u2, u3=self._u3)

    def _peers(self) -> list[str]:
        return [site for site in self._u2 if site != self._name]

    def _pair_mask(self, peer: str, *, first: str, second: str) -> bytes:
        return keys.pair_mask_key(
            self._secrets.mask_key,
            self._adverts[peer].mask_key,
            transcript=self._transcript,
            first=first,
            second=second,
        )

    def _encrypt(self, peer: str, shares: bytes) -> bytes:
        route = {"sender": self._name, "recipient": peer}
        channel = self._channel(peer, **route)
        return keys.encrypt(channel, shares, transcript=self._transcript, **route)

    def _decrypt(self, peer: str, ciphertext: bytes) -> tuple[bytes, bytes]:
        route = {"sender": peer, "recipient": self._name}
        shares = keys.decrypt(self._channel(peer, **route), ciphertext, transcript=self._transcript, **route)
        seed_share, mask_key_share = shares[: shamir.SHARE_BYTES], shares[shamir.SHARE_BYTES :]
        shamir.check_share(seed_share)
        shamir.check_share(mask_key_share)
        return seed_share, mask_key_share

    def _channel(self, peer: str, *, sender: str, recipient: str) -> bytes:
        return keys.channel_key(
            self._secrets.channel_key,
            self._adverts[peer].channel_key,
            transcript=self._transcript,
            sender=sender,
            recipient=recipient,
        )

    def _open(self, wire: Content, message: type[M]) -> tuple[Envelope, M]:
        return open_message(self._parameters, wire, message, attempt=self._attempt, senders=(SERVER,))

    def _check_group(self, group: Sequence[str], *, what: str, within: Iterable[str]) -> None:
        check_group(self._parameters, group, what=what, within=within, member=self._name)

    def _seal(self, message: Message, payload: Content = b"") -> bytes:
        return seal_message(
            self._parameters, self._identity, message, attempt=self._attempt, sender=self._name, payload=payload
        ).to_bytes()
