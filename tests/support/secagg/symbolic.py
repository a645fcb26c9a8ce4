"""Every view that a lying server can show to honest sites, searched for what it learns.

Nothing is computed: masks are names. A site's view is (transcript, U1, U2, U3), where U3 is missing if the server
leaves it there. The site's masked input is its update, plus its self mask, plus a pair mask for each other site of U2.
The opponent knows a self mask or a mask key once t shares of it are in its hands, its own sites' shares included; what
remains unknown is uniform, so it learns exactly the combinations of updates in which all unknown masks cancel.

Of a site's noise it knows the layers that the site shows. What is left is counted in what is claimed, (z Delta)^2.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

Group = frozenset[int]


@dataclass(frozen=True)
class View:
    """What one honest site was shown: ``transcript`` stands for T1 (which adverts, not only whose)."""

    transcript: tuple[int, Group]
    u2: Group
    u3: Group | None

    @property
    def u1(self) -> Group:
        return self.transcript[1]


@dataclass(frozen=True)
class Checks:
    """The checks of a site, each of which can be taken away."""

    u1_size: bool = True
    u2_size: bool = True
    u3_size: bool = True
    signed_by_t: bool = True
    signed: frozenset[str] = frozenset({"transcript", "u2", "u3"})
    ciphertexts_open: bool = True
    either_or: bool = True
    # Which of its sets a site counts when it shows layers of its noise, and how many it then adds.
    shows_by: str = "u3"
    shows_beyond: int = 0


@dataclass(frozen=True)
class Game:
    """n sites of which the last c belong to the opponent, and threshold t."""

    sites: int
    corrupt_sites: int
    threshold: int
    checks: Checks = Checks()

    @property
    def honest(self) -> range:
        return range(self.sites - self.corrupt_sites)

    def views(self, site: int, *, variants: int = 1) -> Iterator[View]:
        """All views that ``site`` accepts by itself, in ``variants`` transcripts for each U1."""
        t, checks = self.threshold, self.checks
        for u1 in self._groups(site, range(self.sites), t if checks.u1_size else 1):
            for u2 in self._groups(site, u1, t if checks.u2_size else 1):
                for u3 in (None, *self._groups(site, u2, t if checks.u3_size else 1)):
                    for variant in range(variants):
                        yield View(transcript=(variant, u1), u2=u2, u3=u3)

    def possible(self, shown: dict[int, View]) -> bool:
        """Whether each site could open the ciphertexts of each honest site in its U2."""
        if not self.checks.ciphertexts_open:
            return True
        return all(
            shown[peer].transcript == view.transcript
            for view in shown.values()
            for peer in view.u2
            if peer in self.honest
        )

    def learned(self, shown: dict[int, View]) -> list[Group]:
        """The sets of honest sites whose sums of updates the opponent learns."""
        answering = [site for site in shown if self._answers(site, shown)]
        seeds = {site for site in shown if self._recovered(site, shown, answering, of="seed")}
        mask_keys = {site for site in shown if self._recovered(site, shown, answering, of="mask")}
        # A coefficient for each site: 0 where an unknown mask stands alone, equal where one is shared.
        zero = set(shown) - seeds
        links = []
        for one, other in itertools.combinations(shown, 2):
            if one in mask_keys or other in mask_keys:
                continue
            carriers = [a for a, b in ((one, other), (other, one)) if b in shown[a].u2]
            if len(carriers) == 2 and shown[one].transcript == shown[other].transcript:
                links.append((one, other))
            else:
                zero.update(carriers)
        return [component for component in _components(shown, links) if not component & zero]

    def noise_left(self, shown: dict[int, View], group: Group) -> Fraction:
        """The variance of these honest sites' noise that the opponent does not know: of each 1 / (k - c), k shown."""
        return sum((Fraction(1, self._level(site, shown) - self.corrupt_sites) for site in group), Fraction())

    def leaks(self, shown: dict[int, View]) -> bool:
        """Whether it learns more than one sum, or one of fewer than t - c honest sites, or with less noise than due."""
        sums = self.learned(shown)
        few = self.threshold - self.corrupt_sites
        return len(sums) > 1 or any(len(group) < few or self.noise_left(shown, group) < 1 for group in sums)

    def _level(self, site: int, shown: dict[int, View]) -> int:
        """Up to which number of survivors the layers are known; t if none is. There is one for each number above t."""
        if not self._answers(site, shown):
            return self.threshold
        counted: Group = getattr(shown[site], self.checks.shows_by)
        return min(max(len(counted) + self.checks.shows_beyond, self.threshold), self.sites)

    def _groups(self, site: int, within: Iterable[int], least: int) -> list[Group]:
        others = [other for other in within if other != site]
        sizes = range(max(least - 1, 0), len(others) + 1)
        return [frozenset((site, *rest)) for size in sizes for rest in itertools.combinations(others, size)]

    def _answers(self, site: int, shown: dict[int, View]) -> bool:
        view = shown[site]
        if view.u3 is None:
            return False
        if not self.checks.signed_by_t:
            return True
        signers = [peer for peer in view.u3 if peer not in shown or self._signs(shown[peer], view)]
        return len(signers) >= self.threshold

    def _signs(self, own: View, view: View) -> bool:
        return own.u3 is not None and all(getattr(own, part) == getattr(view, part) for part in self.checks.signed)

    def _recovered(self, owner: int, shown: dict[int, View], answering: list[int], *, of: str) -> bool:
        dealt = shown[owner]
        holders = {peer for peer in dealt.u1 if peer not in self.honest}
        for site in answering:
            view = shown[site]
            assert view.u3 is not None, "it answers"
            if owner not in view.u2 or view.transcript != dealt.transcript or site not in dealt.u1:
                continue
            gives = "seed" if owner in view.u3 else "mask"
            if gives == of or not self.checks.either_or:
                holders.add(site)
        return len(holders) >= self.threshold


def find_leak(game: Game, candidates: dict[int, list[View]]) -> dict[int, View] | None:
    """The first assignment of a view to each honest site that leaks."""
    for choice in itertools.product(*(candidates[site] for site in game.honest)):
        shown = dict(zip(game.honest, choice, strict=True))
        if game.possible(shown) and game.leaks(shown):
            return shown
    return None


def _components(sites: Iterable[int], links: list[tuple[int, int]]) -> list[Group]:
    component = {site: frozenset({site}) for site in sites}
    for one, other in links:
        merged = component[one] | component[other]
        for site in merged:
            component[site] = merged
    return list(set(component.values()))
