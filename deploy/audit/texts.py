"""Text canaries: notes that the base model made up, each of a patient who is in the twin by a fair coin."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...common.audit.evidence import CanaryScores, Protection
from ...common.audit.named import without_audit
from ...common.crypto.csprng import Stream, derived_key
from ...common.data.records import parse_records
from ...common.data.tokenisation import Tokenisation, load_tokenizer
from ...common.errors import StudyError
from ...common.model.adapter import Vector
from ...common.model.base_model import quiet
from ...common.model.language_model import LanguageModel
from ...common.model.library_errors import library_errors_over_records
from ...common.schema import known, validated
from ...common.study.manifest import Manifest
from ...common.study.study import Study
from ...server.rounds.training import RoundOutcome
from ...server.run.progress import Event
from ..builtin.models import base_model_folder
from ..builtin.patients import DemoOptions, demo_data
from ..simulation.simulate import simulate
from ..simulation.site_data import RecordSource

_COINS_LABEL: Final = b"grandrounds/audit/v1/text-coins\n"
_ADAPTER_LABEL: Final = b"grandrounds/audit/v1/text-adapter\n"
_PROMPTS: Final = ("Chief complaint:", "History of present illness:", "Assessment and plan:", "Discharge summary:")
_TOKENS: Final = 48
_TEMPERATURE: Final = 1.3  # so that no two are alike, and none is what a model would say anyway
_MOST_SITES: Final = 50
_MOST_PATIENTS: Final = 24
# What the twin has of protection, and whether it adds noise.
_RUNS: Final[tuple[tuple[Protection, bool], ...]] = (("as claimed", True), ("noise off", False))


Rows = Sequence[Mapping[str, object]]


@dataclass(frozen=True, kw_only=True)
class Patients:
    """The synthetic patients of a twin, by its sites, and those that it is evaluated on."""

    cohorts: Mapping[str, Rows]
    evaluation: RecordSource


def text_scores(
    manifest: Manifest, *, count: int, patients: Patients, seed: bytes, tell: Callable[[str], None]
) -> tuple[CanaryScores, ...]:
    """What an adversary makes of ``count`` text canaries, by the adapters of a twin and of one without noise.

    A score is by how much the adapter lowers the loss of a canary's text, in nats a token. Each twin is a whole
    simulation with ``patients``. Raises StudyError, where a twin cannot be made of the study.
    """
    study = manifest.study
    if study.model.first_adapter is not None or study.data.public is not None:
        raise StudyError(
            "text canaries of a study with a first adapter or public records",
            why="its manifest has the hashes of their files, and the twin would need the files",
            fix="leave --text-canaries out; gradient canaries depend on neither",
        )
    base = base_model_folder(study.model.name)
    adapter_seed = int.from_bytes(derived_key(seed, _ADAPTER_LABEL)[:7], "little")
    model = LanguageModel.load(base, study.model.lora, seed=adapter_seed, precision=study.model.precision)
    tell(f"making up {count} notes")
    texts = _made_up(model, load_tokenizer(str(base)), count, seed=seed)
    coins = Stream(derived_key(seed, _COINS_LABEL)).words(count)
    bits = (coins & np.uint64(1)).astype(bool)
    cohorts = {name: list(rows) for name, rows in patients.cohorts.items()}
    for number in map(int, np.flatnonzero(bits)):
        home = list(cohorts)[int(coins[number] >> np.uint64(1)) % len(cohorts)]
        cohorts[home].append({"patient_id": f"canary-{number}", "text": texts[number]})
    tokenisation = Tokenisation.load(str(base), vocabulary_size=model.vocabulary_size)
    rows = [{"patient_id": f"canary-{number}", "text": text} for number, text in enumerate(texts)]
    examples = tokenisation.evaluation_set(
        parse_records("canaries", rows, similar="different"), positions=model.positions
    ).examples

    def losses(adapter: Vector) -> NDArray[np.float64]:
        return np.array([math.log(model.perplexity([example], adapter).whole) for example in examples])

    before = losses(model.get_adapter())
    found = []
    for protection, has_noise in _RUNS:

        def observe(event: Event, protection: str = protection) -> None:
            if isinstance(event, RoundOutcome):
                tell(f"{protection}: round {event.round} of {study.training.rounds}")

        tell(f"{protection}: training on synthetic patients and canaries")
        result = simulate(
            _twin(study, cohorts, has_noise=has_noise),
            cohorts,
            evaluation=patients.evaluation,
            adapter_seed=adapter_seed,
            observe=observe,
        )
        found.append(CanaryScores.of("text", protection, scores=before - losses(result.adapter), bits=bits))
    return tuple(found)


def builtin_patients(manifest: Manifest) -> Patients:
    """Built-in synthetic patients for the sites of a study, at most 24 each. Raises StudyError where there are none."""
    sites = manifest.study.sites
    if len(sites) > _MOST_SITES:
        raise StudyError(
            f"text canaries at {len(sites)} sites",
            why=f"there are built-in patients of at most {_MOST_SITES}",
            fix="leave --text-canaries out",
        )
    data = demo_data(
        DemoOptions(
            hospitals=len(sites), patients_per_hospital=min(_MOST_PATIENTS, *(site.nominal_units for site in sites))
        )
    )
    cohorts = {site.name: _rows(path) for site, path in zip(sites, data.hospitals.values(), strict=True)}
    return Patients(cohorts=cohorts, evaluation=data.evaluation)


def _rows(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _twin(study: Study, cohorts: Mapping[str, Rows], *, has_noise: bool) -> Study:
    """The study on synthetic patients, some more than it states."""
    off = {} if has_noise else {"noise": False, "noise_multiplier": None, "target_epsilon": None}
    return validated(
        Study,
        {
            **without_audit(study).model_dump(),
            "privacy": {**study.privacy.model_dump(), **off},
            "sites": [
                {
                    **site.model_dump(),
                    "max_units": max(known(site.max_units), len({row["patient_id"] for row in cohorts[site.name]})),
                    "records": None,
                    "sensitivity": "synthetic",
                    "minimised": None,
                }
                for site in study.sites
            ],
        },
    )


def _made_up(model: LanguageModel, tokenizer: Any, count: int, *, seed: bytes) -> list[str]:
    """Notes of about fifty tokens that the base model says at a high temperature, from each prompt as many."""
    import torch

    texts: list[str] = []
    with torch.random.fork_rng(), model.module.disable_adapter(), quiet():
        torch.manual_seed(int.from_bytes(seed[:7], "little"))
        for place, prompt in enumerate(_PROMPTS[:count]):
            encoded = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
            with library_errors_over_records(
                "the base model makes up no note", why="text canaries are such", fix="leave --text-canaries out"
            ):
                made = model.module.generate(
                    **encoded,
                    max_new_tokens=_TOKENS,
                    min_new_tokens=_TOKENS,
                    do_sample=True,
                    temperature=_TEMPERATURE,
                    top_k=0,
                    num_return_sequences=len(range(place, count, len(_PROMPTS))),
                    pad_token_id=tokenizer.eos_token_id or 0,
                )
            texts += [str(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in made]
    return texts
