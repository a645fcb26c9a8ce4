"""audit.json: it holds for the parameters that its twin had, and everybody finds its bounds again from its scores."""

import json
import math

import numpy as np
import pytest
from support.places import VECTORS
from support.study.audited_study import audited_manifest

from grandrounds.common.audit.bounds import Kind
from grandrounds.common.audit.coins import bits_of, coins
from grandrounds.common.audit.evidence import AuditedParameters, AuditEvidence, CanaryScores, Protection
from grandrounds.common.errors import StudyError
from grandrounds.common.schema import known, validated
from grandrounds.common.study.manifest import Manifest
from grandrounds.common.study.study import Study

MANIFEST = validated(Manifest, json.loads((VECTORS / "manifest.json").read_text(encoding="utf-8"))["manifest"])


SEED = bytes([31]) * 32
RUNS: tuple[tuple[Kind, Protection, float], ...] = (
    ("gradient", "as claimed", 1.0),
    ("gradient", "noise off", 50.0),
    ("text", "as claimed", 0.5),
)


def runs() -> list[CanaryScores]:
    rng = np.random.default_rng(1)
    return [
        CanaryScores.of(
            kind,
            protection,
            scores=shift * (bits := bits_of(coins(kind, 100, seed=SEED))) + rng.standard_normal(100),
            bits=bits,
            foils=rng.standard_normal(100),
        )
        for kind, protection, shift in RUNS
    ]


EVIDENCE = AuditEvidence.of(twin=MANIFEST, canaries=runs(), seed=SEED.hex())


def changed(*path: str | int, to: object) -> bytes:
    fields = place = json.loads(EVIDENCE.to_json())
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = to
    return json.dumps(fields).encode()


def test_evidence_is_read_as_it_was_written_and_bears_out_its_own_bounds():
    assert AuditEvidence.parse(EVIDENCE.to_json()) == EVIDENCE
    EVIDENCE.require_bounds()
    EVIDENCE.require_parameters(MANIFEST.study)


def test_the_area_is_the_share_of_pairs_in_which_the_canary_that_was_in_has_more():
    run = CanaryScores.of("text", "as claimed", scores=[3, 1, 2, 0], bits=[True, True, False, False])
    found = known(run.area(confidence=0.95))
    assert found.value == 0.75 and found.low < 0.5 < found.high
    assert run.model_copy(update={"bits": (True,) * 4}).area(confidence=0.95) is None
    surest = known(run.area(confidence=math.nextafter(1, 0)))
    assert 0 < surest.low < found.low and found.high < surest.high < 1


@pytest.mark.parametrize("run", [0, 1, 2])
def test_coins_that_somebody_picked_once_the_scores_were_known_are_refused(run):
    """Who says that a canary was out, which stood out, has a smaller bound."""
    bits = list(EVIDENCE.canaries[run].bits)
    bits[0] = not bits[0]
    for evidence in (changed("canaries", run, "bits", to=bits), changed("seed", to="32" * 32)):
        with pytest.raises(StudyError, match="do not follow from the audit’s seed"):
            AuditEvidence.parse(evidence).require_bounds()


@pytest.mark.parametrize("seed", ["a\u202eb", "a\nb", "31", "31" * 33, ""])
def test_a_seed_which_a_report_shows_is_a_hash_s_digits_and_nothing_else(seed):
    with pytest.raises(StudyError, match="seed"):
        AuditEvidence.parse(changed("seed", to=seed))


def test_coins_are_fair_and_others_for_another_seed_or_kind_and_those_of_synthetic_notes_are_the_texts():
    found = bits_of(coins("gradient", 10_000, seed=SEED))
    assert abs(int(found.sum()) - 5_000) < 5 * 50  # five standard deviations
    assert (found[:100] == bits_of(coins("gradient", 100, seed=SEED))).all()
    for other in (coins("gradient", 10_000, seed=bytes(32)), coins("text", 10_000, seed=SEED)):
        assert abs(int((found == bits_of(other)).sum()) - 5_000) < 5 * 50
    assert (coins("text", 100, seed=SEED) == coins("synthetic notes", 100, seed=SEED)).all()


def test_bounds_of_two_kinds_of_canaries_hold_at_once_so_that_the_larger_may_be_the_headline():
    gradient, _, text = runs()
    alone = AuditEvidence.of(twin=MANIFEST, canaries=[gradient], seed=SEED.hex())
    (both,) = gradient.bounds(EVIDENCE.parameters, confidence=0.975)[:1]
    assert known(EVIDENCE.chosen("gradient")) == both
    assert both.epsilon < alone.headline.epsilon == gradient.bounds(EVIDENCE.parameters, confidence=0.95)[0].epsilon
    swapped = AuditEvidence.of(
        twin=MANIFEST,
        canaries=[
            CanaryScores.of("gradient", "as claimed", scores=[0.0] * 100, bits=gradient.bits),
            CanaryScores.of("text", "as claimed", scores=np.array(text.bits), bits=text.bits),
        ],
        seed=SEED.hex(),
    )
    assert swapped.headline.kind == "text" and swapped.headline.epsilon > 0


def test_what_synthetic_notes_show_has_its_part_of_the_chance_to_err_and_a_bound_of_its_own():
    gradient, _, text = runs()
    found = CanaryScores.of("synthetic notes", "as claimed", scores=np.array(text.bits), bits=text.bits)
    evidence = AuditEvidence.of(twin=MANIFEST, canaries=[gradient, text, found], seed=SEED.hex(), synthetic_notes=8)
    bound = known(evidence.chosen("synthetic notes"))
    assert bound == found.bounds(evidence.parameters, confidence=1 - 0.05 / 3)[0]
    assert bound.method == "Gaussian curve" and bound.epsilon > known(evidence.chosen("text")).epsilon
    AuditEvidence.parse(evidence.to_json()).require_bounds()
    lies = json.loads(evidence.to_json())
    lies["canaries"][2]["scores"] = [0.0] * 100
    with pytest.raises(StudyError, match="of synthetic notes canaries, as claimed"):
        AuditEvidence.parse(json.dumps(lies).encode()).require_bounds()


def test_evidence_from_before_synthetic_notes_were_audited_says_what_it_said():
    before = json.loads(EVIDENCE.to_json())
    assert before.pop("synthetic_notes") is None
    assert AuditEvidence.parse(json.dumps(before).encode()) == EVIDENCE


def test_the_headline_is_the_method_that_was_chosen_of_gradients_with_all_protection():
    assert (EVIDENCE.headline.kind, EVIDENCE.headline.protection) == ("gradient", "as claimed")
    assert EVIDENCE.headline.method == "line-up"
    off, text = known(EVIDENCE.chosen("gradient", "noise off")), known(EVIDENCE.chosen("text"))
    assert off.epsilon > EVIDENCE.claimed > EVIDENCE.headline.epsilon > 0
    assert text.method == "Gaussian curve"


@pytest.mark.parametrize(("number", "factor"), [(0, 2.0), (0, 0.5), (2, 2.0), (6, 2.0)])
def test_a_bound_that_does_not_follow_from_the_scores_is_refused(number, factor):
    told = EVIDENCE.bounds[number].epsilon * factor + 0.1
    with pytest.raises(StudyError, match="follows from the scores"):
        AuditEvidence.parse(changed("bounds", number, "epsilon", to=told)).require_bounds()


def test_scores_that_were_changed_no_longer_bear_the_bounds_out():
    with pytest.raises(StudyError, match="follows from the scores"):
        AuditEvidence.parse(changed("canaries", 0, "scores", to=[0.0] * 100)).require_bounds()


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("format",), "grandrounds/audit/v2"),
        (("confidence",), 1.0),
        (("noise",), True),
        (("canaries", 0, "bits"), [True]),
        (("canaries", 0, "scores", 3), "NaN"),
        (("canaries", 1, "protection"), "as claimed"),
        (("canaries", 0, "protection"), "half the noise"),
        (("bounds",), []),
        (("synthetic_notes",), 8),
        (("canaries", 2, "kind"), "synthetic notes"),
        (("parameters", "privacy", "target_epsilon"), None),
        (("parameters", "privacy", "delta"), None),
    ],
)
def test_what_is_no_evidence_is_refused(path, to):
    with pytest.raises(StudyError, match="no evidence of an audit"):
        AuditEvidence.parse(changed(*path, to=to))


def test_what_is_no_json_is_refused_without_a_word_of_it():
    for data in (b"Jane Doe", b"[" * 100_000, b"\xff", b'"Jane Doe"', b'{"Jane Doe": 1}'):
        with pytest.raises(StudyError) as refused:
            AuditEvidence.parse(data)
        assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [("privacy", "noise_multiplier", 3.0), ("privacy", "sampling_probability", 0.25), ("data", "records_per_unit", 3)],
)
def test_a_twin_of_other_parameters_is_refused_by_their_names(section, field, value):
    fields = MANIFEST.study.model_dump()
    fields[section][field] = value
    study = Study.model_validate(fields)
    with pytest.raises(StudyError, match=f"{field} is .* there and {value} here"):
        EVIDENCE.require_parameters(study)
    assert AuditedParameters.of(study).sha256 != EVIDENCE.parameters.sha256


def test_a_twin_of_another_adapter_or_program_is_refused():
    EVIDENCE.require_of(MANIFEST)
    other = MANIFEST.model_copy(update={"dimension": MANIFEST.dimension + 1})
    with pytest.raises(StudyError, match=f"trained {MANIFEST.dimension:,} numbers, and this study"):
        EVIDENCE.require_of(other)
    with pytest.raises(StudyError, match="ran files of SHA-256"):
        EVIDENCE.require_of(MANIFEST.model_copy(update={"package_sha256": "ab" * 32}))


def test_sites_may_have_other_names_keys_and_sizes_in_a_twin():
    fields = MANIFEST.study.model_dump()
    fields["sites"] = [{"name": f"twin-{number}", "nominal_units": 90} for number in range(len(fields["sites"]))]
    EVIDENCE.require_parameters(Study.model_validate(fields))


def test_the_audited_schedule_is_the_manifest_s():
    assert EVIDENCE.parameters.schedule == MANIFEST.schedule
    staged = audited_manifest(noise_stages=[[2, 0.5]])
    assert AuditedParameters.of(staged.study).schedule == staged.schedule != MANIFEST.schedule


def test_a_study_without_noise_makes_no_claim_to_audit():
    fields = MANIFEST.study.model_dump()
    fields["privacy"] |= {"noise": False, "noise_multiplier": None, "target_epsilon": None}
    with pytest.raises(StudyError, match="no noise"):
        AuditedParameters.of(Study.model_validate(fields))
