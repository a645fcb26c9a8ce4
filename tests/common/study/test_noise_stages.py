"""Noise in stages: where they are why a study is refused, that is said."""

from typing import Any

import pytest
from support.study.federation import small_manifest, small_study

from grandrounds.common.crypto.identity import Identity
from grandrounds.common.errors import GrandRoundsError, PrivacyError, StudyError
from grandrounds.common.privacy.accountant import calibrate_noise_multiplier
from grandrounds.common.privacy.events import SampledGaussianRelease, Schedule
from grandrounds.common.schema import validated
from grandrounds.common.study.completion import complete_study
from grandrounds.common.study.study import Study


def staged(factor: float, **privacy: Any) -> Study:
    """A study that leaves to its completion what follows, with noise that is another from the second attempt on."""
    stages = [] if factor == 1 else [[2, factor]]
    fields: dict[str, Any] = {
        "model": {"name": "tiny"},
        "data": {"evaluation": "synthetic"},
        "privacy": {"sampling_probability": 1, "delta": 1e-3, "noise_stages": stages, **privacy},
        "training": {"rounds": 1, "max_attempts": 3},
        "sites": [{"name": name, "nominal_units": 20} for name in ("north", "south", "west")],
    }
    return validated(Study, fields)


def refused(study: Study) -> GrandRoundsError:
    with pytest.raises(GrandRoundsError) as error:
        complete_study(study)
    return error.value


def test_a_stage_whose_noise_is_out_of_range_is_named() -> None:
    error = refused(staged(0.25, noise_multiplier=0.3, target_epsilon=99.0))
    said = "the noise multiplier is 0.075 from release 2 on: 0.25 times the first one's 0.3 (noise_stages)"
    assert said in error.what and "another factor in noise_stages" in error.fix
    event = SampledGaussianRelease(sampling_probability=1, noise_multiplier=9000.0, trust="distributed")
    with pytest.raises(PrivacyError, match=r"is 36000 from release 2 on: 4 times the first one's 9000 .noise_stages"):
        Schedule(event=event, count=3, stages=((2, 4.0),))


def test_a_stage_that_no_release_reaches_refuses_nothing() -> None:
    event = SampledGaussianRelease(sampling_probability=1, noise_multiplier=0.2, trust="distributed")
    Schedule(event=event, count=3, stages=((4, 0.25),))


def test_a_noise_multiplier_that_its_stages_make_too_dear_is_not_said_to_be_so_by_itself() -> None:
    error = refused(staged(0.25, noise_multiplier=2.0, target_epsilon=5.0))
    assert isinstance(error, StudyError)
    assert (
        "privacy.noise_multiplier = 2 with 0.25 times it from attempt 2 on (privacy.noise_stages) costs" in error.what
    )
    assert "raise the factors of privacy.noise_stages" in error.fix
    error = refused(staged(1, noise_multiplier=0.5, target_epsilon=5.0))
    assert "noise_stages" not in error.what + error.fix


@pytest.mark.parametrize(
    ("factor", "named"), [(0.25, "of which a stage has 0.25 times"), (4.0, ": 4 times it is 10000"), (1.0, "")]
)
def test_a_target_that_no_noise_reaches_is_told_with_the_stages(factor: float, named: str) -> None:
    with pytest.raises(PrivacyError) as error:
        calibrate_noise_multiplier(
            target_epsilon=1e-5,
            delta=1e-9,
            sampling_probability=1.0,
            steps=1000,
            trust="distributed",
            stages=() if factor == 1 else ((2, factor),),
        )
    assert named in error.value.what and ("noise_stages" in error.value.what) is (factor != 1)
    assert ("noise_stages" in error.value.fix) is (factor < 1)


def test_a_stage_whose_noise_no_lattice_holds_is_named() -> None:
    """A site's share is below 2^30 in the first attempt, and not in the second; of fewer numbers, sums may wrap."""
    identities, server = {f"site-{number}": Identity.generate() for number in range(1, 6)}, Identity.generate()

    def why(dimension: int, *stages: tuple[int, float]) -> str:
        study = small_study(noise_multiplier=1000.0, privacy={"noise_stages": stages})
        with pytest.raises(GrandRoundsError) as error:
            small_manifest(study, identities, server, dimension=dimension)
        return error.value.what

    assert "lattice steps, from attempt 2 on (privacy.noise_stages)" in why(130_000_000, (2, 4.0))
    assert "wrap at 2**31" in why(9_000_000, (2, 4.0)) and "privacy.noise_stages" in why(9_000_000, (2, 4.0))
    assert "wrap at 2**31" in why(130_000_000) and "noise_stages" not in why(130_000_000)
