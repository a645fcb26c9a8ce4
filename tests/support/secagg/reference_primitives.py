"""X25519, Ed25519, HKDF, AES-256 and ChaCha20-Poly1305 in plain Python integers, from their standards.

For clarity and not for secrecy or speed; ``tests/common/secagg/test_known_answers.py`` holds them against the
standards' own vectors.
"""

import hashlib
import hmac
import struct

P = 2**255 - 19


def x25519(private: bytes, public: bytes) -> bytes:
    """RFC 7748, section 5."""
    k = int.from_bytes(private, "little") & ~7 & (2**255 - 1) | 2**254
    u = int.from_bytes(public, "little") & (2**255 - 1)
    x2, z2, x3, z3, swapped = 1, 0, u, 1, 0
    for bit in reversed(range(255)):
        swap = k >> bit & 1
        if swap != swapped:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swapped = swap
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % P, b * b % P, d * a % P, c * b % P
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % P, u * (da - cb) ** 2 % P
        x2, z2 = aa * bb % P, e * (aa + 121665 * e) % P
    if swapped:
        x2, z2 = x3, z3
    return (x2 * pow(z2, -1, P) % P).to_bytes(32, "little")


def x25519_public(private: bytes) -> bytes:
    return x25519(private, (9).to_bytes(32, "little"))


_D = -121665 * pow(121666, -1, P) % P
_Q = 2**252 + 27742317777372353535851937790883648493
_BASE_Y = 4 * pow(5, -1, P) % P


def _edwards_x(y: int, sign: int) -> int:
    x2 = (y * y - 1) * pow(_D * y * y + 1, -1, P) % P
    x = pow(x2, (P + 3) // 8, P)
    if (x * x - x2) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    return P - x if x & 1 != sign else x


def _edwards_add(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    (x1, y1), (x2, y2) = one, other
    product = _D * x1 * x2 * y1 * y2 % P
    return (
        (x1 * y2 + x2 * y1) * pow(1 + product, -1, P) % P,
        (y1 * y2 + x1 * x2) * pow(1 - product, -1, P) % P,
    )


def _edwards_multiply(scalar: int) -> bytes:
    point, power = (0, 1), (_edwards_x(_BASE_Y, 0), _BASE_Y)
    while scalar:
        if scalar & 1:
            point = _edwards_add(point, power)
        power, scalar = _edwards_add(power, power), scalar >> 1
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def ed25519_public(secret: bytes) -> bytes:
    """RFC 8032, section 5.1.5."""
    return _edwards_multiply(_ed25519_scalar(secret))


def ed25519_sign(secret: bytes, message: bytes) -> bytes:
    """RFC 8032, section 5.1.6."""
    scalar, prefix = _ed25519_scalar(secret), hashlib.sha512(secret).digest()[32:]
    nonce = int.from_bytes(hashlib.sha512(prefix + message).digest(), "little") % _Q
    commitment = _edwards_multiply(nonce)
    challenge = hashlib.sha512(commitment + ed25519_public(secret) + message).digest()
    return commitment + ((nonce + int.from_bytes(challenge, "little") * scalar) % _Q).to_bytes(32, "little")


def _ed25519_scalar(secret: bytes) -> int:
    return int.from_bytes(hashlib.sha512(secret).digest()[:32], "little") & ~7 & (2**254 - 1) | 2**254


def hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 with SHA-256, no salt, 32 bytes."""
    pseudorandom_key = hmac.new(bytes(32), secret, "sha256").digest()
    return hmac.new(pseudorandom_key, info + b"\x01", "sha256").digest()


def _gf256(a: int, b: int) -> int:
    product = 0
    while b:
        if b & 1:
            product ^= a
        a, b = a << 1 ^ (0x11B if a & 0x80 else 0), b >> 1
    return product


def _sbox(byte: int) -> int:
    inverse = next((candidate for candidate in range(256) if _gf256(byte, candidate) == 1), 0)
    rotated = inverse
    for shift in range(1, 5):
        rotated ^= (inverse << shift | inverse >> 8 - shift) & 0xFF
    return rotated ^ 0x63


_SBOX = [_sbox(byte) for byte in range(256)]


def aes256(key: bytes, block: bytes) -> bytes:
    """FIPS 197."""
    words = [list(key[i : i + 4]) for i in range(0, 32, 4)]
    constant = 1
    for i in range(8, 60):
        word = words[-1]
        if i % 8 == 0:
            word = [_SBOX[byte] for byte in word[1:] + word[:1]]
            word[0] ^= constant
            constant = _gf256(constant, 2)
        elif i % 8 == 4:
            word = [_SBOX[byte] for byte in word]
        words.append([a ^ b for a, b in zip(words[i - 8], word, strict=True)])
    state = list(block)
    for round_ in range(15):
        if round_ > 0:
            state = [_SBOX[state[(i + 4 * (i % 4)) % 16]] for i in range(16)]  # SubBytes and ShiftRows
        if 0 < round_ < 14:
            columns = [state[i : i + 4] for i in range(0, 16, 4)]
            state = [
                _gf256(column[i], 2) ^ _gf256(column[(i + 1) % 4], 3) ^ column[(i + 2) % 4] ^ column[(i + 3) % 4]
                for column in columns
                for i in range(4)
            ]
        state = [
            a ^ b
            for a, b in zip(state, [byte for word in words[4 * round_ : 4 * round_ + 4] for byte in word], strict=True)
        ]
    return bytes(state)


def aes256_ctr(key: bytes, count: int) -> bytes:
    """The keystream from counter zero (NIST SP 800-38A)."""
    return b"".join(aes256(key, i.to_bytes(16, "big")) for i in range(-(-count // 16)))[:count]


def _rotate(word: int, by: int) -> int:
    return (word << by | word >> 32 - by) & 0xFFFFFFFF


def chacha20_block(key: bytes, counter: int, nonce: bytes) -> bytes:
    """RFC 8439, section 2.3."""
    start = list(struct.unpack("<16I", b"expand 32-byte k" + key + struct.pack("<I", counter) + nonce))
    s = start[:]
    columns = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)]
    diagonals = [(0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
    for a, b, c, d in (columns + diagonals) * 10:
        for x, y, z, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            s[x] = (s[x] + s[y]) & 0xFFFFFFFF
            s[z] = _rotate(s[z] ^ s[x], by)
    return struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(s, start, strict=True)))


def chacha20_poly1305(key: bytes, nonce: bytes, plaintext: bytes, data: bytes) -> bytes:
    """RFC 8439, section 2.8."""
    blocks = range(-(-len(plaintext) // 64))
    keystream = b"".join(chacha20_block(key, i + 1, nonce) for i in blocks)
    ciphertext = bytes(a ^ b for a, b in zip(plaintext, keystream, strict=False))
    one_time = chacha20_block(key, 0, nonce)
    r = int.from_bytes(one_time[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    text = b"".join(part + bytes(-len(part) % 16) for part in (data, ciphertext))
    text += struct.pack("<QQ", len(data), len(ciphertext))
    total = 0
    for i in range(0, len(text), 16):
        total = (total + int.from_bytes(text[i : i + 16] + b"\x01", "little")) * r % (2**130 - 5)
    tag = (total + int.from_bytes(one_time[16:], "little")) % 2**128
    return ciphertext + tag.to_bytes(16, "little")
