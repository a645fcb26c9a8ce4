"""How much noise is in a sum that real sites and a real server made, measured over a million numbers.

Whichever sites last, each keeps a share of what all of them but c must have together. The variance of so many draws is
off by a hundredth with a probability below 1e-11.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from support.study.federation import Federation, small_study

from grandrounds.client.worker.worker import ComputeUpdate
from grandrounds.common.model.adapter import Vector
from grandrounds.common.privacy.mechanism import LayeredGaussian, Mechanism
from grandrounds.common.secagg.encoding import residues
from grandrounds.common.study.manifest import Manifest
from grandrounds.common.system.content import Stored

Change = Callable[[Mechanism], Mechanism]


def federation(
    sites: int,
    threshold: int,
    corrupt_sites: int,
    *,
    dimension: int,
    change: Change = lambda noise: noise,
    stages: Sequence[tuple[int, float]] = (),
) -> Federation:
    """Sites whose updates are nothing but their noise."""

    def noise_alone(manifest: Manifest, site: str) -> ComputeUpdate:
        def release(adapter: Vector | Stored, mechanism: Mechanism) -> NDArray[np.unsignedinteger]:
            noise = np.zeros(manifest.dimension, np.int64)
            change(mechanism).add_noise(noise)
            return residues(noise, 32)

        return release

    study = small_study(
        (4,) * sites,
        noise_multiplier=1.0,
        privacy={"corrupt_sites": corrupt_sites, "noise_stages": stages},
        training={"max_attempts": 6},
        secagg={"threshold": threshold},
    )
    return Federation(study=study, dimension=dimension, release=noise_alone)


def over_claim(federation: Federation, *, serial: int, lost: str = "") -> float:
    """The variance of an attempt's sum, in which ``lost`` sends no masked input, over the (z Delta)^2 claimed."""
    attempt = federation.attempt(serial)
    while not attempt.done:
        for site, message in attempt.messages().items():
            if (site, attempt.exchange) != (lost, "masked-input"):
                attempt.receive(site, federation.workers[site].handle(message))
        attempt.advance()
    claimed = 1.0 * federation.manifest.lattice.sensitivity
    return float(np.mean((attempt.aggregate / claimed) ** 2))


@pytest.mark.parametrize(
    ("sites", "threshold", "corrupt_sites"),
    [
        (5, 4, 1),
        *(pytest.param(n, t, c, marks=pytest.mark.soak) for n, t in ((10, 7), (20, 14)) for c in (1, 3)),
    ],
)
def test_the_noise_in_a_sum_is_one_share_more_for_each_corrupt_site_whoever_lasts(
    sites: int, threshold: int, corrupt_sites: int
) -> None:
    noisy = federation(sites, threshold, corrupt_sites, dimension=1_000_000)
    assert over_claim(noisy, serial=1) == pytest.approx(sites / (sites - corrupt_sites), rel=0.01)
    left = sites - 1
    assert over_claim(noisy, serial=2, lost="site-2") == pytest.approx(left / (left - corrupt_sites), rel=0.01)


def test_noise_that_is_drawn_under_other_keys_than_are_shown_is_measured_too() -> None:
    def own(mechanism: Mechanism) -> Mechanism:
        assert isinstance(mechanism, LayeredGaussian)
        return replace(mechanism, layers=tuple((stddev, secrets.token_bytes(32)) for stddev, _ in mechanism.layers))

    noisy = federation(5, 4, 1, dimension=100_000, change=own)
    assert over_claim(noisy, serial=1) == pytest.approx(5 / 3 + 5 * (1 / 3 - 1 / 4), rel=0.05)


def test_each_attempt_s_sum_has_the_noise_of_its_stage_and_its_own_layers_are_taken_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noisy = federation(5, 4, 1, dimension=20_000, stages=[(2, 2.0), (4, 0.5)])
    for serial, factor in ((1, 1.0), (3, 2.0), (4, 0.5)):
        assert over_claim(noisy, serial=serial) == pytest.approx(factor**2 * 5 / 4, rel=0.1)
    assert over_claim(noisy, serial=5, lost="site-2") == pytest.approx(0.5**2 * 4 / 3, rel=0.1)
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "attempt_parameters", lambda self, attempt: self.secagg_parameters)
        assert over_claim(noisy, serial=6) > 1.2 * 0.5**2 * 5 / 4, "a layer of the first attempt is no layer of it"
