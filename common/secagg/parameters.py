"""What both ends agree on before an attempt: the roster, the threshold, and the integers in which sums are taken."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from ..errors import StudyError
from ..privacy.noise_layers import NoiseLayer
from ..protocol.messages import SERVER
from .encoding import ModulusBits, residue_dtype


def default_threshold(sites: int) -> int:
    """Two thirds of the sites, and at least what tolerates one corrupt site.

    >>> [default_threshold(n) for n in (3, 5, 10, 20, 50)]
    [3, 4, 7, 14, 34]
    """
    return max(math.ceil(2 * sites / 3), (sites + 1) // 2 + 1)


def largest_corrupt(sites: int, threshold: int) -> int:
    """The most corrupt sites that the protocol tolerates while every sum still has two honest shares of noise.

    >>> [largest_corrupt(n, default_threshold(n)) for n in (3, 5, 10, 20, 50)]
    [1, 2, 3, 7, 17]
    """
    return min(2 * threshold - sites - 1, threshold - 2)


@dataclass(frozen=True, kw_only=True)
class RosterEntry:
    """A site: its name and its Ed25519 key in hex."""

    name: str
    public_key: str


@dataclass(frozen=True, kw_only=True)
class SecaggParameters:
    """Every parameter of the protocol, all of them from the signed manifest: the server chooses none.

    ``manifest`` is its hash and ``server_key`` the server's Ed25519 key, both in hex; ``threshold`` is t,
    ``corrupt_sites`` c and ``dimension`` d. Of each site's noise, ``noise_layers`` may be taken off.

    Raises StudyError unless 2t > n + c, on which the protocol rests: any two groups of t sites then share an honest
    one, and no site's seed and mask key can both be put together.
    """

    manifest: str
    roster: tuple[RosterEntry, ...]
    server_key: str
    threshold: int
    corrupt_sites: int
    modulus_bits: ModulusBits
    dimension: int
    noise_layers: tuple[NoiseLayer, ...] = ()

    def __post_init__(self) -> None:
        n, t, c = len(self.roster), self.threshold, self.corrupt_sites
        keys = [self.server_key, *(entry.public_key for entry in self.roster)]
        if len({SERVER, *self.names}) <= n or len(set(keys)) <= n:
            raise StudyError(
                "the roster names one site or key twice, or the server as a site",
                why="each site must be a party of its own for a threshold to mean anything",
                fix="give each site its own name and key",
            )
        if n < 3:
            raise StudyError(f"{n} sites", why="a sum of two is no secret from either", fix="at least 3 sites")
        if c < 1 or t > n or 2 * t <= n + c:
            raise StudyError(
                f"threshold {t} does not fit {n} sites of which {c} may be corrupt",
                why="the server and the corrupt sites could put one site's update together unless 2t > n + c",
                fix=f"threshold {default_threshold(n)} and at most "
                f"{largest_corrupt(n, default_threshold(n))} corrupt sites (at least 1)",
            )
        if self.modulus_bits not in (16, 32) or self.dimension < 1:
            raise StudyError(
                f"modulus_bits {self.modulus_bits}, dimension {self.dimension}",
                why="a masked update is a vector of 16-bit or 32-bit integers",
                fix="modulus_bits 16 or 32, dimension at least 1",
            )
        if not all(below < level <= n for below, level in pairwise(self.noise_levels)):
            raise StudyError(
                f"layers of noise at {self.noise_levels[1:]} of {n} sites",
                why="a site gives them up by their order, and the last where every site is in the sum",
                fix="take them from the manifest",
            )

    @property
    def noise_levels(self) -> tuple[int, ...]:
        """The threshold, and then the levels at which a layer of noise is taken off: rising, the links of a chain."""
        return (self.threshold, *(layer.level for layer in self.noise_layers))

    def levels_reached(self, survivors: Collection[str]) -> tuple[int, ...]:
        """Those of ``noise_levels`` that so many ``survivors`` reach; the threshold they always do."""
        return (self.threshold, *(level for level in self.noise_levels[1:] if level <= len(survivors)))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All sites, in roster order."""
        return tuple(entry.name for entry in self.roster)

    @cached_property
    def _keys(self) -> Mapping[str, str]:
        return {SERVER: self.server_key, **{entry.name: entry.public_key for entry in self.roster}}

    @cached_property
    def _positions(self) -> Mapping[str, int]:
        return {name: position for position, name in enumerate(self.names)}

    @property
    def update_bytes(self) -> int:
        """The size of a masked update."""
        return self.dimension * residue_dtype(self.modulus_bits).itemsize

    def point(self, name: str) -> int:
        """Where a site's shares are taken: its place in the roster, from 1, whoever takes part."""
        return self._positions[name] + 1

    def in_order(self, names: Iterable[str]) -> tuple[str, ...]:
        """These sites in roster order."""
        return tuple(sorted(names, key=self.point))

    def key_of(self, name: str) -> str:
        """The Ed25519 key of a site or of the server, in hex."""
        return self._keys[name]
