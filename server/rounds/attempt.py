"""The server's side of secure aggregation: it relays, adds up what it cannot read, and unmasks the sum or aborts.

After Bonawitz et al. 2017, figure 4, with an active adversary. The sites trust none of this: what the server checks
here keeps one bad answer from spoiling the attempt.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ...common.crypto.identity import Identity
from ...common.errors import EnvelopeError, ProtocolError
from ...common.privacy.rounded_gaussian import subtract_rounded_gaussian
from ...common.protocol.envelope import Envelope, Statement
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
    Refusal,
    Shares,
    Survivors,
    Unmask,
    begin_hash,
    pack,
    unpack,
)
from ...common.secagg import keys, shamir
from ...common.secagg.encoding import centred, residue_dtype
from ...common.secagg.masks import add_masks
from ...common.secagg.noise_chain import shown_layer_keys
from ...common.secagg.parameters import SecaggParameters
from ...common.secagg.transcript import refused, seal_message, transcript_hash, verify_sender
from ...common.system.content import Content, blocks

# An exchange is named after its answer.
_EXCHANGES = tuple(answer.exchange for answer in (Advert, Shares, MaskedInput, Consistency, Unmask))
_CIPHERTEXT_BYTES = 2 * shamir.SHARE_BYTES + keys.TAG_BYTES


class ServerAttempt:
    """One attempt: in each exchange ``messages`` go out, answers come in by ``receive``, and ``advance`` closes it.

    ``advance`` is for when ``awaited`` is empty or the exchange's deadline has passed; who has not answered by then
    has dropped out. ``dropouts`` says at which exchange a site was lost and ``reasons`` why, for the operator;
    ``statements`` has what the sites signed, by exchange and site; ``aborted`` is the reason if the attempt failed.
    Once ``done``, ``aggregate`` is the sum over ``survivors``. Memory: one vector of the update's size and one of the
    aggregate's, however many sites there are.
    """

    def __init__(
        self,
        *,
        parameters: SecaggParameters,
        identity: Identity,
        begin: Begin,
        attempt: int,
        payloads: Mapping[str, Content],
        possible_charges: Mapping[str, range] | None = None,
    ) -> None:
        """``attempt`` is the serial, ``payloads`` are Begin's by site, ``possible_charges`` their charge counters'."""
        self.dropouts: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self.statements: dict[str, dict[str, Statement]] = {exchange: {} for exchange in _EXCHANGES}
        self.aborted: str | None = None
        self._parameters = parameters
        self._identity = identity
        self._attempt = attempt
        self._possible_charges = possible_charges or {}
        self._begin = begin
        self._begin_payloads = payloads
        self._begin_hash = begin_hash(begin, manifest=parameters.manifest, attempt=attempt)
        # The invited, then U1 (advertised), U2 (shared), U3 (sent masked input), U4 (signed), U5 (unmasked).
        self._groups: list[tuple[str, ...]] = [begin.invited]
        self._answered: set[str] = set()
        self._adverts: dict[str, Advert] = {}
        self._envelopes: dict[str, Envelope] = {}
        self._transcript = b""
        self._ciphertexts: dict[str, dict[str, bytes]] = {}
        self._sum = np.zeros(parameters.dimension, dtype=residue_dtype(parameters.modulus_bits))
        self._shares: dict[str, dict[str, bytes]] = {}
        self._links: dict[str, str] = {}
        self._aggregate: NDArray[np.signedinteger] | None = None

    @property
    def exchange(self) -> str:
        """The name of the answer that is due."""
        return _EXCHANGES[min(len(self._groups), len(_EXCHANGES)) - 1]

    @property
    def awaited(self) -> frozenset[str]:
        """Who was asked in this exchange and has not answered."""
        return frozenset() if self._over else frozenset(self._groups[-1]) - self._answered - self.dropouts.keys()

    @property
    def answered(self) -> frozenset[str]:
        """Who gave a good answer in this exchange."""
        return frozenset(self._answered)

    @property
    def done(self) -> bool:
        """Whether the sum is unmasked."""
        return self._aggregate is not None

    @property
    def aggregate(self) -> NDArray[np.signedinteger]:
        """The sum of the survivors' updates modulo 2^bits as centred integers, [d]."""
        if self._aggregate is None:
            raise RuntimeError("the attempt has no aggregate")
        return self._aggregate

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose updates are in the sum, in roster order."""
        return self._groups[3] if len(self._groups) > 3 else ()

    def messages(self) -> dict[str, Content]:
        """What to send to whom in this exchange."""
        if self._over:
            return {}
        group = self._groups[-1]
        match self.exchange:
            case Advert.exchange:
                # Sites that lack the same are sent the same bytes, sealed once.
                payloads = {id(payload): payload for payload in self._begin_payloads.values()}
                sealed = {one: self._seal(self._begin, payload).wire for one, payload in payloads.items()}
                return {site: sealed[id(self._begin_payloads[site])] for site in group}
            case Shares.exchange:
                return dict.fromkeys(group, self._relay(Adverts()))
            case MaskedInput.exchange:
                return {site: self._ciphertexts_for(site) for site in group}
            case Consistency.exchange:
                return dict.fromkeys(group, self._seal(Survivors(u3=group)).to_bytes())
            case _:
                return dict.fromkeys(group, self._relay(Consistencies()))

    def receive(self, site: str, wire: Content) -> None:
        """Take a site's answer. A bad one or a refusal only removes the site; one that is not awaited does nothing."""
        if site not in self.awaited:
            return
        try:
            envelope = Envelope.parse(wire)
            verify_sender(self._parameters, envelope, attempt=self._attempt, senders=(site,))
            self._take(site, envelope)
        except (EnvelopeError, ProtocolError) as error:
            self._drop(site, error.what)
            return
        self._answered.add(site)
        self.statements[self.exchange][site] = envelope.statement

    def advance(self) -> None:
        """Close the exchange and open the next; with too few answers, or secrets that do not fit, abort."""
        if self._over:
            raise RuntimeError("the attempt is over")
        for site in self.awaited:
            self._drop(site, "no answer before the deadline")
        group = tuple(site for site in self._groups[-1] if site in self._answered)
        if len(group) < self._parameters.threshold:
            self.aborted = f"{len(group)} sites answered with {self.exchange}, {self._parameters.threshold} are needed"
            return
        self._groups.append(group)
        self._answered.clear()
        self._begin_payloads = {}  # which are large
        if len(self._groups) == 2:
            self._transcript = transcript_hash(self._begin_hash, [self._envelopes[site] for site in group])
        elif len(self._groups) > len(_EXCHANGES):
            self._unmask(group[: self._parameters.threshold])

    @property
    def _over(self) -> bool:
        return self.done or self.aborted is not None

    def _drop(self, site: str, reason: str) -> None:
        self.dropouts[site] = self.exchange
        self.reasons[site] = reason

    def _take(self, site: str, envelope: Envelope) -> None:
        if envelope.exchange == Refusal.exchange:
            raise refused(f"it refused: {Refusal.of(envelope).code}", why="a site need not take part")
        match self.exchange:
            case Advert.exchange:
                self._take_advert(site, envelope)
            case Shares.exchange:
                self._take_shares(site, envelope)
            case MaskedInput.exchange:
                self._take_masked_input(site, envelope)
            case Consistency.exchange:
                self._take_consistency(site, envelope)
            case _:
                self._take_unmask(site, envelope)

    def _take_advert(self, site: str, envelope: Envelope) -> None:
        advert = Advert.of(envelope)
        if advert.begin_hash != self._begin_hash:
            raise refused("it advertises for another Begin", why="its peers would refuse the attempt")
        possible = self._possible_charges.get(site)
        if possible is not None and advert.charge_counter not in possible:
            raise refused(
                f"its charge counter is {advert.charge_counter}, not from {possible[0]} to {possible[-1]}",
                why="its state was set back, or it counts attempts that never began",
            )
        others = [key for other in self._adverts.values() for key in (other.channel_key, other.mask_key)]
        keys.check_public_keys([*others, advert.channel_key, advert.mask_key])
        self._adverts[site] = advert
        self._envelopes[site] = envelope

    def _take_shares(self, site: str, envelope: Envelope) -> None:
        Shares.of(envelope)
        peers = [peer for peer in self._groups[1] if peer != site]
        ciphertexts = unpack(envelope.payload)
        if [len(ciphertext) for ciphertext in ciphertexts] != [_CIPHERTEXT_BYTES] * len(peers):
            raise refused("its ciphertexts are not one for each peer", why="its secrets could not be put together")
        self._ciphertexts[site] = dict(zip(peers, ciphertexts, strict=True))

    def _take_masked_input(self, site: str, envelope: Envelope) -> None:
        if MaskedInput.of(envelope).charge_counter != self._adverts[site].charge_counter + 1:
            raise refused("its masked input comes without one charge", why="the ledger would not verify")
        if len(envelope.payload) != self._parameters.update_bytes:
            raise refused(
                f"its masked input has {len(envelope.payload)} bytes", why="it is no vector of the manifest's"
            )
        start = 0
        for block in blocks(envelope.payload):
            numbers = np.frombuffer(block, dtype=self._sum.dtype)
            self._sum[start : start + len(numbers)] += numbers
            start += len(numbers)

    def _take_consistency(self, site: str, envelope: Envelope) -> None:
        view = Consistency(transcript=self._transcript.hex(), u2=self._groups[2], u3=self._groups[3])
        if Consistency.of(envelope) != view:
            raise refused("it signed another view", why="its peers would not unmask")
        self._envelopes[site] = envelope

    def _take_unmask(self, site: str, envelope: Envelope) -> None:
        link = Unmask.of(envelope).noise_link
        shares = unpack(envelope.payload)
        if len(shares) != len(self._groups[2]):
            raise refused("its shares are not one for each site", why="secrets could not be put together")
        for share in shares:
            shamir.check_share(share)
        self._shares[site] = dict(zip(self._groups[2], shares, strict=True))
        self._links[site] = link

    def _unmask(self, helpers: tuple[str, ...]) -> None:
        """Remove the survivors' self masks, and the pair masks that dropped sites left in the survivors' inputs."""
        points = {helper: self._parameters.point(helper) for helper in helpers}
        weights = shamir.lagrange_weights(list(points.values()))
        plus: list[bytes] = []
        minus: list[bytes] = []
        try:
            for site in self._groups[2]:
                secret = shamir.combine(weights, {points[helper]: self._shares[helper][site] for helper in helpers})
                if site in self.survivors:
                    minus.append(self._self_mask(site, seed=secret))
                else:
                    self._collect_pair_masks(site, mask_key=secret, plus=plus, minus=minus)
        except ProtocolError as error:
            self.aborted = error.what
            return
        add_masks(self._sum, plus=plus, minus=minus)
        self._strip_noise()
        self._aggregate = centred(self._sum)

    def _strip_noise(self) -> None:
        """Take off the layers of noise that survivors have shown; who showed none, or a wrong link, keeps his."""
        for site, link in self._links.items():
            layer_keys = shown_layer_keys(
                self._parameters,
                survivors=self.survivors,
                attempt=self._attempt,
                sender=site,
                link=link,
                end=self._adverts[site].noise_end,
            )
            for layer in self._parameters.noise_layers:
                if layer.level in layer_keys:
                    subtract_rounded_gaussian(self._sum, layer.stddev, layer_keys[layer.level])

    def _self_mask(self, site: str, *, seed: bytes) -> bytes:
        commitment = keys.seed_commitment(seed, manifest=self._parameters.manifest, attempt=self._attempt, sender=site)
        if commitment != self._adverts[site].seed_commitment:
            raise _wrong_secret(f"the seed of {site}")
        return keys.self_mask_key(seed, transcript=self._transcript, name=site)

    def _collect_pair_masks(self, dropped: str, *, mask_key: bytes, plus: list[bytes], minus: list[bytes]) -> None:
        loaded = keys.load(mask_key)
        if keys.public_key(loaded) != self._adverts[dropped].mask_key:
            raise _wrong_secret(f"the mask key of {dropped}")
        for survivor in self.survivors:
            first, second = self._parameters.in_order((dropped, survivor))
            pair_mask = keys.pair_mask_key(
                loaded, self._adverts[survivor].mask_key, transcript=self._transcript, first=first, second=second
            )
            (minus if survivor == first else plus).append(pair_mask)

    def _ciphertexts_for(self, recipient: str) -> bytes:
        u2 = self._groups[2]
        ciphertexts = [self._ciphertexts[sender][recipient] for sender in u2 if sender != recipient]
        return self._seal(Ciphertexts(u2=u2), payload=pack(ciphertexts)).to_bytes()

    def _relay(self, message: Message) -> bytes:
        return self._seal(
            message, payload=pack([self._envelopes[site].to_bytes() for site in self._groups[-1]])
        ).to_bytes()

    def _seal(self, message: Message, payload: Content = b"") -> Envelope:
        return seal_message(
            self._parameters, self._identity, message, attempt=self._attempt, sender=SERVER, payload=payload
        )


def _wrong_secret(what: str) -> ProtocolError:
    return refused(f"{what} is not the one it published", why="a site sent wrong shares, and the sum is lost")
