"""The server and its accomplices as one opponent: it speaks for them as it likes and reads their memory.

Accomplices are ordinary machines; the opponent opens what was meant for them and signs in their names. Honest sites are
ordinary machines too, which it can only send messages to.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from grandrounds.client.worker.attempt import ClientAttempt
from grandrounds.common.crypto.identity import Identity
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import (
    Advert,
    Adverts,
    Ciphertexts,
    Consistencies,
    Consistency,
    Message,
    Survivors,
    Unmask,
    pack,
    unpack,
)
from grandrounds.common.secagg import keys, shamir
from grandrounds.common.secagg.encoding import centred, residues
from grandrounds.common.secagg.masks import add_masks
from grandrounds.common.secagg.noise_chain import LAYER_LABEL, LINK_LABEL
from grandrounds.common.secagg.parameters import SecaggParameters
from grandrounds.common.secagg.transcript import seal_message, transcript_hash
from support.secagg.cohort import Cohort

Lie = Callable[[str, dict[str, Advert]], Advert]
Group = tuple[str, ...]


class Opponent:
    """One attempt with a server that has plans of its own."""

    def __init__(
        self,
        cohort: Cohort,
        accomplices: Sequence[str] = (),
        *,
        begins: Mapping[str, bytes] | None = None,
        serial: int = 1,
    ) -> None:
        """``begins`` is what is sent to whom in exchange 1 instead of one honest Begin."""
        self.cohort = cohort
        self.serial = serial
        self.names = cohort.names
        self.accomplices = tuple(accomplices)
        self.honest = tuple(name for name in self.names if name not in accomplices)
        self.adverts: dict[str, Advert] = {}
        self.ciphertexts: dict[str, dict[str, bytes]] = {}
        self.transcript = b""
        self.inputs: dict[str, np.ndarray] = {}
        self.seed_shares: dict[str, dict[int, bytes]] = {name: {} for name in self.names}
        self.key_shares: dict[str, dict[int, bytes]] = {name: {} for name in self.names}
        begins = begins or dict.fromkeys(self.names, self.say(cohort.begin()))
        self.clients: dict[str, ClientAttempt] = {name: cohort.client(name, begins[name]) for name in self.names}
        self.accomplice_keys = {name: self.clients[name]._secrets.mask for name in accomplices}
        # Of each honest site's noise: the keys of its layers, which the test knows, and what the opponent was shown.
        self.layer_keys = {name: dict(self.clients[name].layer_keys) for name in self.honest}
        self.shown: dict[str, set[bytes]] = {name: set() for name in self.honest}
        plain = cohort.updates()
        self.updates = {
            name: plain[name] + cohort.noise_above(0, self.layer_keys[name]) if name in self.honest else plain[name]
            for name in self.names
        }

    def collect_shares(
        self, lie: Lie = lambda name, adverts: adverts[name], *, u1_for: Callable[[str], Group] | None = None
    ) -> None:
        """Exchanges 1 and 2. An accomplice advertises what ``lie`` makes of its advert; each site is told a U1."""
        wires = {name: client.advertise() for name, client in self.clients.items()}
        said = {name: Advert.of(Envelope.parse(wire)) for name, wire in wires.items()}
        for name in self.accomplices:
            wires[name] = self.cohort.site_says(name, lie(name, said), attempt=self.serial)
            self.clients[name]._own_advert = wires[name]
        self.adverts = {name: Advert.of(Envelope.parse(wire)) for name, wire in wires.items()}
        for name in self.honest:
            self.shown[name].add(bytes.fromhex(self.adverts[name].noise_end))
        for name in (*self.honest, *self.accomplices):
            u1 = u1_for(name) if u1_for else self.names
            answer = self.clients[name].share(self.say(Adverts(), [wires[site] for site in u1]))
            peers = [peer for peer in u1 if peer != name]
            self.ciphertexts[name] = dict(zip(peers, unpack(Envelope.parse(answer).payload), strict=True))
        self.transcript = self.clients[self.honest[0]]._transcript

    def collect_inputs(self, u2_for: Callable[[str], Group] | None = None) -> None:
        """Exchange 3, where each site is told a U2 of its own; accomplices hand over the shares they hold."""
        for name, client in self.clients.items():
            client.accept(self.ciphertexts_for(name, u2_for(name) if u2_for else self.names))
            if name in self.honest:
                wire = client.mask(residues(self.updates[name], 32), 1)
                self.inputs[name] = np.frombuffer(Envelope.parse(wire).payload[:], "<u4")
            else:
                for owner, shares in client._held_shares.items():
                    self._keep(owner, name, *shares)

    def ciphertexts_for(self, name: str, u2: Group | None = None) -> bytes:
        """Exchange 3's message to one site: who shared, and what they sent to it."""
        u2 = u2 or self.names
        return self.say(Ciphertexts(u2=u2), [self.ciphertexts[peer][name] for peer in u2 if peer != name])

    def sign(self, signers: Sequence[str], u3: tuple[str, ...]) -> list[bytes]:
        """Exchange 4: signatures on ``u3``, from accomplices at will."""
        view = Consistency(transcript=self.transcript.hex(), u2=self.names, u3=u3)
        return [
            self.cohort.site_says(name, view, attempt=self.serial)
            if name in self.accomplices
            else self.clients[name].sign_survivors(self.say(Survivors(u3=u3)))
            for name in signers
        ]

    def unmask(self, name: str, u3: tuple[str, ...], signatures: Sequence[bytes]) -> None:
        """Exchange 5 with one site: what it gives goes to the shares of seeds and of mask keys."""
        answer = Envelope.parse(self.clients[name].unmask(self.say(Consistencies(), signatures)))
        self.shown[name].add(bytes.fromhex(Unmask.of(answer).noise_link))
        for owner, share in zip(self.names, unpack(answer.payload), strict=True):
            if len(share) == 2 * shamir.SHARE_BYTES:
                self._keep(owner, name, share[: shamir.SHARE_BYTES], share[shamir.SHARE_BYTES :])
            elif owner in u3:
                self._keep(owner, name, share, None)
            else:
                self._keep(owner, name, None, share)

    def loot(self, *sites: str, masked_with: Sequence[str] | None = None) -> list[int]:
        """The sum of the sites' updates, from their inputs and the secrets that the shares give away.

        Raises LookupError for want of t shares of a secret, and ProtocolError where they are of none.
        """
        mask_keys = {
            name: self._combine(shares)
            for name, shares in self.key_shares.items()
            if len(shares) >= self.cohort.parameters.threshold
        }
        return unmasked(
            self.cohort.parameters,
            {site: self.inputs[site] for site in sites},
            transcript=self.transcript,
            adverts=self.adverts,
            seeds={site: self._combine(self.seed_shares[site]) for site in sites},
            mask_keys=mask_keys | self.accomplice_keys,
            peers=self.names if masked_with is None else masked_with,
        )

    def noise_left(self, *sites: str) -> float:
        """The variance of what the opponent does not know of these sites' noise, over what is claimed.

        It knows the layers whose keys it finds from what it was shown, whichever way and however often it derives.
        """
        cohort, variance = self.cohort, 0
        for site in set(sites) & set(self.honest):
            found = self._derived(site)
            unknown = [layer for layer in cohort.noise.layers if self.layer_keys[site][layer.level] not in found]
            variance += cohort.noise.stddev**2 + sum(layer.stddev**2 for layer in unknown)
        return variance / cohort.claimed**2

    def _derived(self, site: str) -> set[bytes]:
        """Every key that hangs on a link of the site's that was shown."""
        levels = self.cohort.parameters.noise_levels
        bound_to = keys.context(self.cohort.manifest, self.serial, site)

        def each(secrets: Iterable[bytes], label: bytes) -> set[bytes]:
            infos = [label + bound_to + level.to_bytes(4, "little") for level in levels]
            return {keys.derive(secret, info) for secret in secrets for info in infos}

        links = set(self.shown[site])
        for _ in levels[1:]:
            links |= each(links, LINK_LABEL)
        return each(links, LAYER_LABEL)

    def truth(self, *sites: str) -> list[int]:
        """What the loot should be: of honest sites the updates with all layers of their noise."""
        return np.sum([self.updates[site] for site in sites], axis=0).tolist()

    def say(self, message: Message, parts: Sequence[bytes] | None = None) -> bytes:
        """Something in the server's name."""
        return self.cohort.server_says(message, b"" if parts is None else pack(list(parts)), attempt=self.serial)

    def _keep(self, owner: str, holder: str, seed_share: bytes | None, key_share: bytes | None) -> None:
        point = self.cohort.parameters.point(holder)
        if seed_share is not None:
            self.seed_shares[owner][point] = seed_share
        if key_share is not None:
            self.key_shares[owner][point] = key_share

    def _combine(self, shares: Mapping[int, bytes]) -> bytes:
        points = list(shares)[: self.cohort.parameters.threshold]
        if len(points) < self.cohort.parameters.threshold:
            raise LookupError(f"{len(points)} shares")
        return shamir.combine(shamir.lagrange_weights(points), shares)


def surrounded(cohort: Cohort, client: ClientAttempt, puppets: Mapping[str, Identity]) -> tuple[list[int], list[int]]:
    """An attempt in which all peers of a site are the server's puppets: the update as it then has it, and as it is.

    The puppets speak under the names, and sign with the keys, that are given.
    """
    parameters, victim = client._parameters, client._name
    own = client.advertise()
    drawn = {name: keys.AttemptSecrets.fresh() for name in puppets}
    wires = {victim: own}
    for name, secrets in drawn.items():
        changes = {"channel_key": keys.public_key(secrets.channel), "mask_key": keys.public_key(secrets.mask)}
        advert = Advert.of(Envelope.parse(own)).model_copy(update=changes)
        wires[name] = seal_message(parameters, puppets[name], advert, attempt=1, sender=name).to_bytes()
    u1 = parameters.in_order(wires)
    adverts = {name: Advert.of(Envelope.parse(wires[name])) for name in u1}
    answer = client.share(cohort.server_says(Adverts(), pack([wires[name] for name in u1])))
    transcript = transcript_hash(adverts[victim].begin_hash, [Envelope.parse(wires[name]) for name in u1])

    peers, shares, ciphertexts = [name for name in u1 if name != victim], {}, []
    for name, ciphertext in zip(peers, unpack(Envelope.parse(answer).payload), strict=True):
        route: dict[str, Any] = {"transcript": transcript, "sender": victim, "recipient": name}
        channel = keys.channel_key(drawn[name].channel, adverts[victim].channel_key, **route)
        shares[parameters.point(name)] = keys.decrypt(channel, ciphertext, **route)[: shamir.SHARE_BYTES]
        route = {"transcript": transcript, "sender": name, "recipient": victim}
        channel = keys.channel_key(drawn[name].channel, adverts[victim].channel_key, **route)
        ciphertexts.append(keys.encrypt(channel, bytes(2 * shamir.SHARE_BYTES), **route))
    client.accept(cohort.server_says(Ciphertexts(u2=u1), pack(ciphertexts)))
    update = cohort.updates()[victim]
    wire = client.mask(residues(update, 32), 1)
    loot = unmasked(
        parameters,
        {victim: np.frombuffer(Envelope.parse(wire).payload[:], "<u4")},
        transcript=transcript,
        adverts=adverts,
        seeds={victim: shamir.combine(shamir.lagrange_weights(list(shares)), shares)},
        mask_keys={name: secrets.mask for name, secrets in drawn.items()},
        peers=u1,
    )
    return loot, update.tolist()


def unmasked(
    parameters: SecaggParameters,
    inputs: Mapping[str, np.ndarray],
    *,
    transcript: bytes,
    adverts: Mapping[str, Advert],
    seeds: Mapping[str, bytes],
    mask_keys: Mapping[str, bytes],
    peers: Sequence[str],
) -> list[int]:
    """The sum of ``inputs`` without their self masks, and without the pair masks that tie them to other ``peers``.

    A peer's mask is removed as often as the peer is given.
    """
    total: Any = sum(inputs.values())
    plus: list[bytes] = []
    minus: list[bytes] = []
    for site in inputs:
        minus.append(keys.self_mask_key(seeds[site], transcript=transcript, name=site))
        for peer in (peer for peer in peers if peer not in inputs):
            first, second = parameters.in_order((site, peer))
            own, other = (site, peer) if site in mask_keys else (peer, site)
            pair_mask = keys.pair_mask_key(
                mask_keys[own], adverts[other].mask_key, transcript=transcript, first=first, second=second
            )
            (minus if first == site else plus).append(pair_mask)
    add_masks(total, plus=plus, minus=minus)
    return centred(total).tolist()
