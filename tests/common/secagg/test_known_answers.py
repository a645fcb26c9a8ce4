"""The shipped code against vectors from an independent implementation, and that one against the standards."""

import json
from typing import Any, Literal

import numpy as np
import pytest
from support.places import VECTORS
from support.secagg import reference as reference
from support.secagg import reference_primitives as primitives

from grandrounds.client.worker.attempt import ClientAttempt
from grandrounds.common.crypto.identity import Identity
from grandrounds.common.privacy.noise_layers import NoiseLayer
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import Begin, begin_hash
from grandrounds.common.secagg import keys, shamir
from grandrounds.common.secagg.encoding import residue_dtype, residues
from grandrounds.common.secagg.masks import add_masks
from grandrounds.common.secagg.noise_chain import noise_chain
from grandrounds.common.secagg.parameters import RosterEntry, SecaggParameters
from grandrounds.common.system.content import Content
from grandrounds.server.rounds.attempt import ServerAttempt


def vectors(name: str) -> dict:
    path = VECTORS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_reference_agrees_with_the_standards_own_vectors() -> None:
    # RFC 7748, section 5.2
    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    u = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    product = "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    assert primitives.x25519(scalar, u).hex() == product
    # RFC 8032, section 7.1, test 1
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    assert primitives.ed25519_public(secret).hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert primitives.ed25519_sign(secret, b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe"
        "24655141438e7a100b"
    )
    # RFC 5869, appendix A.3
    okm = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
    assert primitives.hkdf(b"\x0b" * 22, b"").hex() == okm
    # FIPS 197, appendix C.3
    block = bytes.fromhex("00112233445566778899aabbccddeeff")
    assert primitives.aes256(bytes(range(32)), block).hex() == "8ea2b7ca516745bfeafc49904b496089"
    # RFC 8439, section 2.8.2
    text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
    sealed = primitives.chacha20_poly1305(
        bytes(range(0x80, 0xA0)),
        bytes.fromhex("070000004041424344454647"),
        text + b"sunscreen would be it.",
        bytes.fromhex("50515253c0c1c2c3c4c5c6c7"),
    )
    assert sealed[-16:].hex() == "1ae10b594f09e26a7e902ecbd0600691"


@pytest.mark.parametrize("name", reference.GENERATED)
def test_the_vectors_are_what_the_reference_computes(name: str) -> None:
    assert vectors(name) == reference.GENERATED[name]()


@pytest.mark.parametrize("modulus_bits", [16, 32])
def test_masks_have_known_answers(modulus_bits: int) -> None:
    known = vectors("secagg_pieces")["mask"]
    vector = np.zeros(9, dtype=residue_dtype(modulus_bits))
    add_masks(vector, plus=[bytes.fromhex(known["key"])])
    assert vector.tolist() == known[str(modulus_bits)]


def test_shares_have_known_answers() -> None:
    known = vectors("secagg_pieces")["shares"]
    secret = bytes.fromhex(known["secret"])
    coefficients = [int.from_bytes(secret, "little"), *(int(c, 16) for c in known["coefficients"])]
    assert [share.hex() for share in shamir.evaluate(coefficients, known["points"])] == known["shares"]
    weights = shamir.lagrange_weights(known["points"][1:])
    shares = {p: bytes.fromhex(s) for p, s in zip(known["points"], known["shares"], strict=True)}
    assert shamir.combine(weights, shares) == secret


def test_derived_keys_have_known_answers() -> None:
    known = vectors("secagg_pieces")["keys"]
    private, peer = bytes.fromhex(known["private"]), bytes.fromhex(known["peer_private"])
    transcript, first, second = bytes.fromhex(known["transcript"]), known["first"], known["second"]
    assert keys.public_key(peer) == known["peer_public"]
    for own, other in ((private, keys.public_key(peer)), (peer, keys.public_key(private))):
        pair = keys.pair_mask_key(own, other, transcript=transcript, first=first, second=second)
        there = keys.channel_key(own, other, transcript=transcript, sender=first, recipient=second)
        back = keys.channel_key(own, other, transcript=transcript, sender=second, recipient=first)
        assert pair.hex() == known["pair_mask_key"]
        assert there.hex() == known["channel_key"]
        assert back.hex() == known["channel_key_back"]
    assert keys.self_mask_key(private, transcript=transcript, name=first).hex() == known["self_mask_key"]
    commitment = keys.seed_commitment(private, manifest=known["manifest"], attempt=known["attempt"], sender=first)
    assert commitment == known["seed_commitment"]
    context: dict[str, Any] = {"manifest": known["manifest"], "attempt": known["attempt"], "sender": first}
    links, layer_keys = noise_chain(private, known["noise_levels"], **context)
    assert {str(level): link.hex() for level, link in links.items()} == known["noise_links"]
    assert {str(level): key.hex() for level, key in layer_keys.items()} == known["noise_layer_keys"]


@pytest.mark.parametrize("modulus_bits", [16, 32])
def test_a_whole_attempt_is_the_reference_s_byte_for_byte(
    modulus_bits: Literal[16, 32], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = vectors(f"secagg_attempt_{modulus_bits}")
    sites = {site["name"]: site for site in known["sites"]}
    identities = {name: Identity.from_bytes(bytes.fromhex(site["identity"])) for name, site in sites.items()}
    server_identity = Identity.from_bytes(bytes.fromhex(known["server_identity"]))
    parameters = SecaggParameters(
        manifest=known["manifest"],
        roster=tuple(RosterEntry(name=name, public_key=key.public_key) for name, key in identities.items()),
        server_key=server_identity.public_key,
        threshold=known["threshold"],
        corrupt_sites=known["corrupt_sites"],
        modulus_bits=modulus_bits,
        dimension=known["dimension"],
        noise_layers=tuple(NoiseLayer(level=level, stddev=64) for level in known["noise_levels"]),
    )
    body = known["begin_body"]
    server = ServerAttempt(
        parameters=parameters,
        identity=server_identity,
        begin=Begin(**(body | {"invited": tuple(body["invited"])})),
        attempt=known["attempt"],
        payloads=dict.fromkeys(sites, bytes.fromhex(known["adapter"])),
    )

    def expect(answer: bytes, exchange: str, site: str) -> None:
        assert answer.hex() == known["site_messages"][exchange][site]
        server.receive(site, answer)

    def client(name: str, begin: Content) -> ClientAttempt:
        site = sites[name]
        drawn = keys.AttemptSecrets(
            **{part: bytes.fromhex(site[part]) for part in ("channel", "mask", "seed", "noise")}
        )
        monkeypatch.setattr(keys.AttemptSecrets, "fresh", lambda: drawn)
        return ClientAttempt(
            parameters=parameters,
            name=name,
            identity=identities[name],
            begin=Envelope.parse(begin),
            charge_counter=known["charge_counter"],
            least_charge_counters={},
        )

    messages = server.messages()
    assert {wire[:].hex() for wire in messages.values()} == {known["server_messages"]["begin"]}
    opened = Envelope.parse(messages["alder"])
    assert begin_hash(Begin.of(opened), manifest=opened.manifest, attempt=opened.attempt) == known["begin_hash"]
    clients = {name: client(name, wire) for name, wire in messages.items()}
    for name in sites:
        expect(clients[name].advertise(), "advert", name)
    server.advance()

    for name, wire in server.messages().items():
        assert wire[:].hex() == known["server_messages"]["adverts"]
        drawn = iter([[int(c, 16) for c in sites[name][f"{secret}_coefficients"]] for secret in ("seed", "mask")])
        monkeypatch.setattr(shamir, "_random_coefficients", lambda count, drawn=drawn: next(drawn))
        expect(clients[name].share(wire), "shares", name)
    server.advance()

    for name, wire in server.messages().items():
        assert wire[:].hex() == known["server_messages"][f"ciphertexts {name}"]
        clients[name].accept(wire)
        if name != known["dropped_at_masked_input"]:
            update = residues(np.array(sites[name]["update"]), modulus_bits)
            expect(clients[name].mask(update, known["charge_counter"] + 1), "masked-input", name)
    server.advance()

    for name, wire in server.messages().items():
        assert wire[:].hex() == known["server_messages"]["survivors"]
        expect(clients[name].sign_survivors(wire), "consistency", name)
    server.advance()

    for name, wire in server.messages().items():
        assert wire[:].hex() == known["server_messages"]["consistencies"]
        expect(clients[name].unmask(wire), "unmask", name)
    server.advance()
    assert server.aggregate.tolist() == known["aggregate"]
