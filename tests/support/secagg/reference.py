"""The protocol once more, in plain Python integers: no numpy, no cryptography package, no line of the shipped code.

Written from ``common/secagg/PROTOCOL.md``. It wrote ``tests/vectors/secagg_*.json`` (``PYTHONPATH=tests
python -m support.secagg.reference`` writes them again); an implementation in another language can be held against them.
"""

import hashlib
import json
import struct

from support.places import VECTORS
from support.secagg.reference_primitives import aes256_ctr, chacha20_poly1305, ed25519_sign, hkdf, x25519, x25519_public

SHAMIR_PRIME = 2**256 + 297


def canonical(value: object) -> bytes:
    """RFC 8785 for what occurs here: strings in ASCII and small integers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def named(name: str) -> bytes:
    return bytes([len(name)]) + name.encode()


def pack(parts: list[bytes]) -> bytes:
    return struct.pack("<I", len(parts)) + b"".join(struct.pack("<Q", len(part)) for part in parts) + b"".join(parts)


def envelope(
    secret: bytes, manifest: str, attempt: int, exchange: str, sender: str, body: dict, payload: bytes = b""
) -> bytes:
    header = canonical(
        {
            "manifest": manifest,
            "attempt": attempt,
            "exchange": exchange,
            "sender": sender,
            "body": body,
            "payload_bytes": len(payload),
            "payload_sha256": hashlib.sha256(payload).hexdigest(),
        }
    )
    return (
        struct.pack("<I", len(header)) + header + ed25519_sign(secret, b"grandrounds/envelope/v1\n" + header) + payload
    )


def header_of(wire: bytes) -> bytes:
    return wire[4 : 4 + struct.unpack("<I", wire[:4])[0]]


def begin_hash(manifest: str, attempt: int, body: dict) -> str:
    fields = {"manifest": manifest, "attempt": attempt, "body": body}
    return hashlib.sha256(b"grandrounds/begin/v1\n" + canonical(fields)).hexdigest()


def transcript(begin: str, adverts: list[bytes]) -> bytes:
    text = b"grandrounds/secagg/v1/transcript\n" + bytes.fromhex(begin)
    for advert in adverts:
        text += struct.pack("<I", len(header_of(advert))) + header_of(advert)
    return hashlib.sha256(text).digest()


def seed_commitment(seed: bytes, manifest: str, attempt: int, sender: str) -> str:
    text = b"grandrounds/secagg/v1/seed-commitment\n" + bytes.fromhex(manifest) + struct.pack("<Q", attempt)
    return hashlib.sha256(text + named(sender) + seed).hexdigest()


def noise_links(link: bytes, levels: tuple[int, ...], manifest: str, attempt: int, sender: str) -> dict[int, bytes]:
    """From the link of the last level to that of the first, each from the one above."""
    context = bytes.fromhex(manifest) + struct.pack("<Q", attempt) + named(sender)
    links = {levels[-1]: link}
    for level in reversed(levels[:-1]):
        link = hkdf(link, b"grandrounds/secagg/v1/noise-link\n" + context + struct.pack("<I", level))
        links[level] = link
    return links


def layer_key(link: bytes, level: int, manifest: str, attempt: int, sender: str) -> bytes:
    context = bytes.fromhex(manifest) + struct.pack("<Q", attempt) + named(sender)
    return hkdf(link, b"grandrounds/secagg/v1/noise-layer\n" + context + struct.pack("<I", level))


def self_mask_key(seed: bytes, t1: bytes, name: str) -> bytes:
    return hkdf(seed, b"grandrounds/secagg/v1/self-mask\n" + t1 + named(name))


def pair_mask_key(private: bytes, public: bytes, t1: bytes, first: str, second: str) -> bytes:
    info = b"grandrounds/secagg/v1/pair-mask\n" + t1 + named(first) + named(second)
    return hkdf(x25519(private, public), info)


def channel_key(private: bytes, public: bytes, t1: bytes, sender: str, recipient: str) -> bytes:
    info = b"grandrounds/secagg/v1/channel\n" + t1 + named(sender) + named(recipient)
    return hkdf(x25519(private, public), info)


def share(secret: bytes, coefficients: list[int], point: int) -> bytes:
    value = int.from_bytes(secret, "little")
    for degree, coefficient in enumerate(coefficients, start=1):
        value += coefficient * point**degree
    return (value % SHAMIR_PRIME).to_bytes(33, "little")


def mask(key: bytes, bits: int, dimension: int) -> list[int]:
    width = bits // 8
    stream = aes256_ctr(key, width * dimension)
    return [int.from_bytes(stream[i : i + width], "little") for i in range(0, len(stream), width)]


# --- one whole attempt ------------------------------------------------------------------------------------------------

SITES = ("alder", "birch", "cedar", "dogwood", "elm")
THRESHOLD, CORRUPT_SITES, DIMENSION, ATTEMPT, DROPPED = 4, 1, 6, 7, "cedar"
NOISE_LEVELS = (4, 5)
MANIFEST = hashlib.sha256(b"manifest").hexdigest()
ADAPTER = bytes(range(4 * DIMENSION))


def _drawn(*labels: object) -> bytes:
    """What a real site draws at random."""
    return hashlib.sha256("/".join(map(str, labels)).encode()).digest()


def _coefficients(site: str, secret: str) -> list[int]:
    return [
        int.from_bytes(_drawn(site, secret, i, 0) + _drawn(site, secret, i, 1), "little") % SHAMIR_PRIME
        for i in range(1, THRESHOLD)
    ]


def attempt(bits: int) -> dict:
    """Five sites, of which one sends shares but no masked input: every message of it, in hex."""
    identity = {who: _drawn(who, "identity") for who in ("server", *SITES)}
    channel = {site: _drawn(site, "channel") for site in SITES}
    mask_key = {site: _drawn(site, "mask") for site in SITES}
    seed = {site: _drawn(site, "seed") for site in SITES}
    links = {site: noise_links(_drawn(site, "noise"), NOISE_LEVELS, MANIFEST, ATTEMPT, site) for site in SITES}
    seed_coefficients = {site: _coefficients(site, "seed") for site in SITES}
    mask_coefficients = {site: _coefficients(site, "mask") for site in SITES}
    updates = {
        site: [int.from_bytes(_drawn(site, "update", i)[:4], "little") % 10_000 - 5_000 for i in range(DIMENSION)]
        for site in SITES
    }
    point = {site: i for i, site in enumerate(SITES, start=1)}
    u2, u3 = SITES, tuple(site for site in SITES if site != DROPPED)

    def say(sender: str, exchange: str, body: dict, payload: bytes = b"") -> bytes:
        return envelope(identity[sender], MANIFEST, ATTEMPT, exchange, sender, body, payload)

    begin_body = {
        "round": 3,
        "invited": list(SITES),
        "adapter_sha256": hashlib.sha256(ADAPTER).hexdigest(),
        "ledger_length": 0,
        "ledger_head": "00" * 32,
    }
    begin = say("server", "begin", begin_body, ADAPTER)
    h_begin = begin_hash(MANIFEST, ATTEMPT, begin_body)

    adverts = {
        site: say(
            site,
            "advert",
            {
                "channel_key": x25519_public(channel[site]).hex(),
                "mask_key": x25519_public(mask_key[site]).hex(),
                "seed_commitment": seed_commitment(seed[site], MANIFEST, ATTEMPT, site),
                "noise_end": links[site][THRESHOLD].hex(),
                "begin_hash": h_begin,
                "charge_counter": 2,
            },
        )
        for site in SITES
    }
    t1 = transcript(h_begin, list(adverts.values()))

    def shares(owner: str, holder: str) -> tuple[bytes, bytes]:
        return (
            share(seed[owner], seed_coefficients[owner], point[holder]),
            share(mask_key[owner], mask_coefficients[owner], point[holder]),
        )

    def ciphertext(sender: str, recipient: str) -> bytes:
        key = channel_key(channel[sender], x25519_public(channel[recipient]), t1, sender, recipient)
        return chacha20_poly1305(
            key, bytes(12), b"".join(shares(sender, recipient)), t1 + named(sender) + named(recipient)
        )

    shares_wires = {
        site: say(site, "shares", {}, pack([ciphertext(site, peer) for peer in SITES if peer != site]))
        for site in SITES
    }

    pair_masks: dict[str, str] = {}

    def masked(site: str) -> list[int]:
        total = [
            value + own
            for value, own in zip(
                updates[site], mask(self_mask_key(seed[site], t1, site), bits, DIMENSION), strict=True
            )
        ]
        for peer in u2:
            if peer == site:
                continue
            first, second = sorted((site, peer), key=SITES.index)
            key = pair_mask_key(mask_key[site], x25519_public(mask_key[peer]), t1, first, second)
            pair_masks[f"{first} {second}"] = key.hex()
            sign = 1 if site == first else -1
            total = [value + sign * pad for value, pad in zip(total, mask(key, bits, DIMENSION), strict=True)]
        return [value % 2**bits for value in total]

    masked_inputs = {
        site: say(
            site,
            "masked-input",
            {"charge_counter": 3},
            b"".join(value.to_bytes(bits // 8, "little") for value in masked(site)),
        )
        for site in u3
    }
    consistencies = {
        site: say(site, "consistency", {"transcript": t1.hex(), "u2": list(u2), "u3": list(u3)}) for site in u3
    }
    unmasks = {
        site: say(
            site,
            "unmask",
            {"noise_link": links[site][THRESHOLD].hex()},
            pack([shares(owner, site)[0 if owner in u3 else 1] for owner in u2]),
        )
        for site in u3
    }
    server = {
        "begin": begin,
        "adverts": say("server", "adverts", {}, pack(list(adverts.values()))),
        **{
            f"ciphertexts {site}": say(
                "server", "ciphertexts", {"u2": list(u2)}, pack([ciphertext(peer, site) for peer in u2 if peer != site])
            )
            for site in u2
        },
        "survivors": say("server", "survivors", {"u3": list(u3)}),
        "consistencies": say("server", "consistencies", {}, pack(list(consistencies.values()))),
    }
    site_wires = {
        "advert": adverts,
        "shares": shares_wires,
        "masked-input": masked_inputs,
        "consistency": consistencies,
        "unmask": unmasks,
    }
    return {
        "source": "tests/support/secagg/reference.py: Python integers, independent of the shipped code",
        "manifest": MANIFEST,
        "attempt": ATTEMPT,
        "threshold": THRESHOLD,
        "corrupt_sites": CORRUPT_SITES,
        "modulus_bits": bits,
        "dimension": DIMENSION,
        "noise_levels": list(NOISE_LEVELS[1:]),
        "dropped_at_masked_input": DROPPED,
        "begin_body": begin_body,
        "adapter": ADAPTER.hex(),
        "charge_counter": 2,
        "server_identity": identity["server"].hex(),
        "sites": [
            {
                "name": site,
                "identity": identity[site].hex(),
                "channel": channel[site].hex(),
                "mask": mask_key[site].hex(),
                "seed": seed[site].hex(),
                "noise": _drawn(site, "noise").hex(),
                "seed_coefficients": [f"{c:066x}" for c in seed_coefficients[site]],
                "mask_coefficients": [f"{c:066x}" for c in mask_coefficients[site]],
                "update": updates[site],
            }
            for site in SITES
        ],
        "begin_hash": h_begin,
        "transcript": t1.hex(),
        "self_mask_keys": {site: self_mask_key(seed[site], t1, site).hex() for site in SITES},
        "pair_mask_keys": pair_masks,
        "server_messages": {name: wire.hex() for name, wire in server.items()},
        "site_messages": {exchange: {site: w.hex() for site, w in by.items()} for exchange, by in site_wires.items()},
        "aggregate": [sum(updates[site][i] for site in u3) for i in range(DIMENSION)],
    }


def pieces() -> dict:
    """Masks, shares and derived keys, each by itself."""
    key, one, other, t1 = _drawn("key"), _drawn("one"), _drawn("other"), _drawn("t1")
    coefficients = [int.from_bytes(_drawn("coefficient", i), "little") for i in range(2)]
    return {
        "source": "tests/support/secagg/reference.py: Python integers, independent of the shipped code",
        "mask": {"key": key.hex(), "16": mask(key, 16, 9), "32": mask(key, 32, 9)},
        "shares": {
            "secret": one.hex(),
            "coefficients": [f"{c:066x}" for c in coefficients],
            "points": [1, 2, 3, 100],
            "shares": [share(one, coefficients, point).hex() for point in (1, 2, 3, 100)],
        },
        "keys": {
            "private": one.hex(),
            "peer_private": other.hex(),
            "peer_public": x25519_public(other).hex(),
            "transcript": t1.hex(),
            "first": "alder",
            "second": "st-mary-2",
            "manifest": MANIFEST,
            "attempt": ATTEMPT,
            "pair_mask_key": pair_mask_key(one, x25519_public(other), t1, "alder", "st-mary-2").hex(),
            "channel_key": channel_key(one, x25519_public(other), t1, "alder", "st-mary-2").hex(),
            "channel_key_back": channel_key(one, x25519_public(other), t1, "st-mary-2", "alder").hex(),
            "self_mask_key": self_mask_key(one, t1, "alder").hex(),
            "seed_commitment": seed_commitment(one, MANIFEST, ATTEMPT, "alder"),
            "noise_levels": [4, 5, 6],
            "noise_links": {
                str(level): link.hex()
                for level, link in noise_links(one, (4, 5, 6), MANIFEST, ATTEMPT, "alder").items()
            },
            "noise_layer_keys": {
                str(level): layer_key(link, level, MANIFEST, ATTEMPT, "alder").hex()
                for level, link in noise_links(one, (4, 5, 6), MANIFEST, ATTEMPT, "alder").items()
                if level > 4
            },
        },
    }


GENERATED = {
    "secagg_pieces": pieces,
    "secagg_attempt_16": lambda: attempt(16),
    "secagg_attempt_32": lambda: attempt(32),
}

if __name__ == "__main__":
    for name, generate in GENERATED.items():
        path = VECTORS / f"{name}.json"
        path.write_text(json.dumps(generate(), indent=1) + "\n", encoding="utf-8")
