"""What a twin's releases hold: canaries, noise, and each fault that is planted. Shares are of the claimed variance.

False alarms: a variance is of 600 gauges, so that its relative deviation is below 0.06, and five of them are allowed.
"""

from functools import cache

import numpy as np
import pytest
from support.study.audited_study import audited_manifest, twin_of

from grandrounds.common.errors import StudyError
from grandrounds.deploy.audit.faults import AS_CLAIMED, Fault, faults
from grandrounds.deploy.audit.twin import Twin

FAULTS: dict[str, Fault] = {fault.name: fault for fault in (AS_CLAIMED, *faults())}


@cache
def twin(trust: str = "distributed") -> Twin:
    return twin_of(audited_manifest(trust=trust))


@cache
def seen(fault: str, trust: str = "distributed") -> np.ndarray:
    return twin(trust).seen(FAULTS[fault])


def share(releases: np.ndarray, of: Twin) -> float:
    """The variance of the noise over what the study claims."""
    lattice = of.manifest.lattice
    claimed = lattice.sensitivity / (lattice.scale * lattice.clipping_norm)
    return float(np.square(releases[:, -of.canaries.gauges :]).mean() / claimed**2)


@pytest.mark.parametrize("trust", ["distributed", "local"])
def test_without_noise_a_canary_that_is_in_adds_one_and_is_nowhere_else(trust: str) -> None:
    canaries = twin(trust).canaries
    inside = np.zeros(canaries.judged, dtype=bool)
    inside[: canaries.count] = canaries.bits
    np.testing.assert_allclose(seen("noise off", trust)[:, inside], 1, atol=0.02)
    np.testing.assert_allclose(seen("noise off", trust)[:, ~inside], 0, atol=0.02)
    assert 5 < canaries.bits.sum() < 35


@pytest.mark.parametrize(
    "fault, expected",
    [
        ("as claimed", 1.0),  # with what the corrupt site adds it would be 4/3, with the layers that are taken off more
        ("noise forgotten at one site", 2 / 3),
        ("half the noise", 1 / 4),
    ],
)
def test_the_noise_that_nobody_knows_is_that_of_the_claim_or_of_the_fault(fault: str, expected: float) -> None:
    assert share(seen(fault), twin()) == pytest.approx(expected, rel=0.3)


def test_the_noise_of_each_attempt_is_that_of_its_stage() -> None:
    of = twin_of(audited_manifest(noise_stages=[[2, 0.5], [3, 2.0]]))
    found = [share(release[None], of) for release in of.seen(AS_CLAIMED)]
    assert found == pytest.approx([1.0, 1 / 4, 4.0], rel=0.5)  # of a third as many gauges


def test_a_mask_that_is_left_in_drowns_every_sum() -> None:
    assert share(seen("a mask left in"), twin()) > 1e6


@pytest.mark.parametrize("trust", ["distributed", "local"])
def test_a_draw_that_is_reused_is_the_same_in_the_first_two_steps_and_fresh_in_the_third(trust: str) -> None:
    first, second, third = seen("a draw reused", trust)[:, -twin(trust).canaries.gauges :]
    assert np.abs(first - second).max() < 0.05
    assert np.abs(first - third).max() > 0.5


def test_under_local_trust_a_site_has_all_the_noise_and_a_patient_at_two_sites_is_in_the_releases_of_both() -> None:
    at_two = twin_of(audited_manifest(trust="local", sites_per_patient=2))
    releases = at_two.seen(AS_CLAIMED)
    assert len(releases) == 2 * 3
    assert share(releases, at_two) == pytest.approx(1.0, rel=0.3)


def test_a_patient_at_two_sites_is_drawn_at_each_as_units_are_and_adds_up_to_twice_to_a_sum() -> None:
    """Of 20 canaries or so in 3 sums, each of 2 draws with 0.5: the mean is 1, and its deviation below 0.15."""
    at_two = twin_of(audited_manifest(sites_per_patient=2, sampling_probability=0.5))
    drawn = at_two.seen(FAULTS["noise off"])[:, np.flatnonzero(at_two.canaries.bits)]
    assert 0.25 < drawn.mean() < 1.75
    assert set(np.round(drawn).ravel()) == {0, 1, 2}
    assert np.abs(drawn - np.round(drawn)).max() < 0.03


def test_the_twin_has_the_study_s_parameters_and_keys_of_its_own() -> None:
    manifest = audited_manifest()
    ours = twin_of(manifest).manifest
    assert ours.schedule == manifest.schedule
    assert (ours.lattice, ours.site_noise(1), ours.threshold) == (manifest.lattice, manifest.site_noise(1), 3)
    assert not {ours.server_key, *ours.site_keys.values()} & {manifest.server_key, *manifest.site_keys.values()}
    assert ours.study_id != manifest.study_id


def test_more_canaries_than_directions_are_refused_with_the_most_there_can_be() -> None:
    with pytest.raises(StudyError, match="500 canaries in an adapter of 1024 numbers") as refusal:
        twin_of(audited_manifest(), canaries=500)
    assert "--canaries 410 or fewer" in refusal.value.diagnostics()
    twin_of(audited_manifest(), canaries=410)


def test_a_study_without_noise_is_refused() -> None:
    with pytest.raises(StudyError, match="adds no noise"):
        twin_of(audited_manifest(noise_multiplier=None))
