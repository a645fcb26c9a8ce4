"""One attempt of Flower's SecAgg+, out of Flower's own functions: what ours is compared with.

The steps are those of ``flwr.client.mod.secaggplus_mod`` and ``flwr.server.workflow.SecAggPlusWorkflow`` (1.42), in
their order and with the workflow's default ranges, on a complete graph; what they spend on carrying messages is left
out. It stands here for its cost: it authenticates nobody, and its masks have seeds of 32 bits.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.common import bytes_to_ndarray, ndarray_to_bytes
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_combine,
    factor_extract,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_multiply,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize, quantize
from flwr.common.secure_aggregation.secaggplus_utils import (
    pseudo_rand_gen,
    share_keys_plaintext_concat,
    share_keys_plaintext_separate,
)
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)
from numpy.typing import NDArray

from .secagg_attempt import BenchCohort, Clock

_CLIPPING_RANGE = 8.0
_QUANTIZATION_RANGE = 1 << 22
_MODULUS_RANGE = 1 << 32

Arrays = list[NDArray[Any]]
PublicKeys = Mapping[int, tuple[bytes, bytes]]


def play_flower(cohort: BenchCohort, clock: Clock) -> tuple[NDArray[np.float64], float]:
    """The mean [d] of the survivors' updates, and the bytes a parameter that one of them sends.

    Masking, shares and sums count as ``client`` and ``server``; quantising and serialising arrays as
    ``client_encoding`` and ``server_encoding``. Sites that drop out count nowhere.
    """
    nowhere = Clock()
    clocks = {i: clock if name in cohort.survivors else nowhere for i, name in enumerate(cohort.parameters.names)}
    sites = {i: _FlowerSite(i, cohort, clocks[i]) for i in clocks}
    public_keys = {i: site.advertise() for i, site in sites.items()}
    ciphertexts = {i: site.share(public_keys) for i, site in sites.items()}
    active = list(range(len(cohort.survivors)))
    dead = list(range(len(cohort.survivors), cohort.sites))
    server = _FlowerServer(public_keys, clock)
    sent_bytes = 0
    for i in active:
        received = {j: sent[i] for j, sent in ciphertexts.items() if j != i}
        masked_input = sites[i].mask(received, cohort.update(cohort.survivors[i]))
        sent_bytes = sum(map(len, masked_input))
        server.receive(masked_input)
    shares: dict[int, list[bytes]] = {i: [] for i in sites}
    for i in active:
        for owner, share in sites[i].unmask(active, dead).items():
            shares[owner].append(share)
    return server.unmask(shares, active), sent_bytes / cohort.dimension


class _FlowerSite:
    """After secaggplus_mod: ``_setup``, ``_share_keys``, ``_collect_masked_vectors``, ``_unmask``."""

    def __init__(self, number: int, cohort: BenchCohort, clock: Clock) -> None:
        self._number = number
        self._threshold = cohort.parameters.threshold
        self._clock = clock
        self._seed = os.urandom(32)
        self._channels: dict[int, bytes] = {}
        self._held_shares: dict[int, tuple[bytes, bytes]] = {}

    def advertise(self) -> tuple[bytes, bytes]:
        with self._clock("client"):
            (mask_key, mask_public), (channel_key, channel_public) = generate_key_pairs(), generate_key_pairs()
            self._mask_key, self._channel_key = private_key_to_bytes(mask_key), private_key_to_bytes(channel_key)
            return public_key_to_bytes(mask_public), public_key_to_bytes(channel_public)

    def share(self, public_keys: PublicKeys) -> dict[int, bytes]:
        self._public_keys = public_keys
        with self._clock("client"):
            seed_shares = create_shares(self._seed, self._threshold, len(public_keys))
            key_shares = create_shares(self._mask_key, self._threshold, len(public_keys))
            ciphertexts = {}
            for i, (_, channel_public) in public_keys.items():
                if i == self._number:
                    self._held_shares[i] = seed_shares[i], key_shares[i]
                    continue
                self._channels[i] = _agree(self._channel_key, channel_public)
                plaintext = share_keys_plaintext_concat(self._number, i, seed_shares[i], key_shares[i])
                ciphertexts[i] = encrypt(self._channels[i], plaintext)
            return ciphertexts

    def mask(self, ciphertexts: Mapping[int, bytes], update: NDArray[np.float64]) -> list[bytes]:
        with self._clock("client"):
            for i, ciphertext in ciphertexts.items():
                _, _, *shares = share_keys_plaintext_separate(decrypt(self._channels[i], ciphertext))
                self._held_shares[i] = shares[0], shares[1]
        with self._clock("client_encoding"):
            weighted = parameters_multiply([update], 1.0)  # every site has the largest weight
            vector: Arrays = list(quantize(weighted, _CLIPPING_RANGE, _QUANTIZATION_RANGE))
            vector = factor_combine(_QUANTIZATION_RANGE, vector)
        with self._clock("client"):
            shape = get_parameters_shape(vector)
            vector = parameters_addition(vector, pseudo_rand_gen(self._seed, _MODULUS_RANGE, shape))
            for i in ciphertexts:
                pair_key = _agree(self._mask_key, self._public_keys[i][0])
                combine = parameters_addition if self._number > i else parameters_subtraction
                vector = combine(vector, pseudo_rand_gen(pair_key, _MODULUS_RANGE, shape))
            vector = parameters_mod(vector, _MODULUS_RANGE)
        with self._clock("client_encoding"):
            return [ndarray_to_bytes(array) for array in vector]

    def unmask(self, active: list[int], dead: list[int]) -> dict[int, bytes]:
        with self._clock("client"):
            seeds = {i: self._held_shares[i][0] for i in active}
            return seeds | {i: self._held_shares[i][1] for i in dead}


class _FlowerServer:
    """After SecAggPlusWorkflow: ``collect_masked_vectors_stage``, ``unmask_stage``."""

    def __init__(self, public_keys: PublicKeys, clock: Clock) -> None:
        self._public_keys = public_keys
        self._clock = clock
        self._sum: Arrays = []

    def receive(self, masked_input: list[bytes]) -> None:
        with self._clock("server_encoding"):
            vector: Arrays = [bytes_to_ndarray(array) for array in masked_input]
        with self._clock("server"):
            self._sum = parameters_addition(self._sum, vector) if self._sum else vector

    def unmask(self, shares: Mapping[int, list[bytes]], active: list[int]) -> NDArray[np.float64]:
        with self._clock("server"):
            vector = parameters_mod(self._sum, _MODULUS_RANGE)
            shape = get_parameters_shape(vector)
            for i, its_shares in shares.items():
                secret = combine_shares(its_shares)
                if i in active:
                    vector = parameters_subtraction(vector, pseudo_rand_gen(secret, _MODULUS_RANGE, shape))
                    continue
                # The workflow removes the pair masks with every neighbour, those that dropped out too.
                for j in self._public_keys.keys() - {i}:
                    pair_key = _agree(secret, self._public_keys[j][0])
                    combine = parameters_addition if i > j else parameters_subtraction
                    vector = combine(vector, pseudo_rand_gen(pair_key, _MODULUS_RANGE, shape))
            vector = parameters_mod(vector, _MODULUS_RANGE)
        with self._clock("server_encoding"):
            total, vector = factor_extract(vector)
            (result,) = dequantize(vector, _CLIPPING_RANGE, _QUANTIZATION_RANGE)
            result -= (len(active) - 1) * _CLIPPING_RANGE
            result *= _QUANTIZATION_RANGE / total
            return result


def _agree(private_key: bytes, public_key: bytes) -> bytes:
    return generate_shared_key(bytes_to_private_key(private_key), bytes_to_public_key(public_key))
