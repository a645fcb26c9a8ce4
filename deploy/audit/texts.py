"""Text canaries: notes that the base model made up, each of a patient who is in the twin by a fair coin."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...common.audit.coins import bits_of, coins
from ...common.audit.evidence import CanaryScores, Protection
from ...common.audit.named import without_audit
from ...common.crypto.csprng import derived_key
from ...common.data.records import parse_records
from ...common.data.tokenisation import Tokenisation, load_tokenizer
from ...common.errors import StudyError
from ...common.model.adapter import Vector
from ...common.model.language_model import LanguageModel
from ...common.schema import known, validated
from ...common.study.manifest import Manifest
from ...common.study.study import Study
from ...server.rounds.training import RoundOutcome
from ...server.run.progress import Event
from ..builtin.models import base_model_folder
from ..builtin.patients import DemoOptions, demo_data
from ..generate.prompts import Prompts
from ..generate.sampling import Note, Sampling, batches
from ..simulation.simulate import simulate
from ..simulation.site_data import RecordSource
from .auxiliary import Auxiliary

_ADAPTER_LABEL: Final = b"grandrounds/audit/v1/text-adapter\n"
_CANARIES_LABEL: Final = b"grandrounds/audit/v1/text-canaries\n"
_NOTES_LABEL: Final = b"grandrounds/audit/v1/synthetic-notes\n"
_TOKENS: Final = 48
_TEMPERATURE: Final = 1.3  # so that no two are alike, and none is what a model would say anyway
_TRIES: Final = 4  # for each canary that the base model writes to its length
_AT_A_TIME: Final = 16
_MOST_PERPLEXITY: Final = 1e300  # which stands for one that is no number, too
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
    manifest: Manifest,
    *,
    count: int,
    synthetic_notes: int = 0,
    patients: Patients,
    seed: bytes,
    tell: Callable[[str], None],
) -> tuple[CanaryScores, ...]:
    """What an adversary makes of ``count`` text canaries, by the adapters of a twin and of one without noise.

    A score is by how much the adapter lowers the loss of what a canary says behind its prompt, in nats a token. Each
    twin is a whole simulation with ``patients``. Where there are ``synthetic_notes``, each twin's adapter writes so
    many, and canaries are scored once more, in the same order, by an adapter that was trained on these alone
    (``Auxiliary``). The study is one that ``require_auditable`` lets pass. Raises StudyError where the base model makes
    up too few canaries, or the auxiliary adapter learns nothing.
    """
    study = manifest.study
    base = base_model_folder(study.model.name)
    adapter_seed = _number(seed, _ADAPTER_LABEL)
    model = LanguageModel.load(base, study.model.lora, seed=adapter_seed, precision=study.model.precision)
    tokenizer = load_tokenizer(str(base))
    tell(f"making up {count} notes")
    canaries = _made_up(model, tokenizer, count, seed=seed)
    words = coins("text", count, seed=seed)
    bits = bits_of(words)
    rows = [
        {"patient_id": f"canary-{number}", "prompt": canary.prompt.text, "completion": canary.written}
        for number, canary in enumerate(canaries)
    ]
    cohorts = {name: list(of_site) for name, of_site in patients.cohorts.items()}
    for number in map(int, np.flatnonzero(bits)):
        cohorts[list(cohorts)[int(words[number] >> np.uint64(1)) % len(cohorts)]].append(rows[number])
    tokenisation = Tokenisation.load(str(base), vocabulary_size=model.vocabulary_size)
    examples = tokenisation.evaluation_set(
        parse_records("canaries", rows, similar="different"), positions=model.positions
    ).examples

    def losses(adapter: Vector) -> NDArray[np.float64]:
        wholes = [model.perplexity([example], adapter).whole for example in examples]
        return np.log(np.minimum(wholes, _MOST_PERPLEXITY))

    before = losses(model.get_adapter())
    auxiliary = Auxiliary.of(study, model, base=base, seed=seed) if synthetic_notes else None
    found = []
    for protection, has_noise in _RUNS:

        def observe(event: Event, protection: str = protection) -> None:
            if isinstance(event, RoundOutcome):
                tell(f"{protection}: round {event.round} of {study.training.rounds}")

        tell(f"{protection}: training on synthetic patients and canaries")
        adapter = simulate(
            _twin(study, cohorts, has_noise=has_noise),
            cohorts,
            evaluation=patients.evaluation,
            adapter_seed=adapter_seed,
            observe=observe,
        ).adapter
        found.append(CanaryScores.of("text", protection, scores=before - losses(adapter), bits=bits))
        if auxiliary is not None:
            tell(f"{protection}: writing {synthetic_notes} synthetic notes")
            model.set_adapter(adapter)
            notes = list(_written(model, tokenizer, count=synthetic_notes, seed=_number(seed, _NOTES_LABEL)))
            tell(f"{protection}: training an auxiliary adapter on them")
            after = losses(auxiliary.trained_on(notes))
            found.append(CanaryScores.of("synthetic notes", protection, scores=before - after, bits=bits))
    return tuple(found)


def builtin_patients(manifest: Manifest) -> Patients:
    """Built-in synthetic patients for the sites of a study, at most 24 each."""
    sites = manifest.study.sites
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
    off = {} if has_noise else {"noise": False, "noise_multiplier": None, "noise_stages": (), "target_epsilon": None}
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


def _made_up(model: LanguageModel, tokenizer: Any, count: int, *, seed: bytes) -> list[Note]:
    """Notes of ``_TOKENS`` tokens behind a prompt that the base model says at a high temperature. Raises StudyError."""
    with model.module.disable_adapter():
        tried = _written(
            model,
            tokenizer,
            count=_TRIES * count,
            seed=_number(seed, _CANARIES_LABEL),
            temperature=_TEMPERATURE,
        )
        made = list(islice((note for note in tried if note.written.strip() and not note.ended), count))
    if len(made) < count:
        raise StudyError(
            f"the base model writes {len(made)} notes of {_TOKENS} tokens in {_TRIES * count} tries",
            why=f"{count} text canaries are asked for, all of one length",
            fix="give fewer, or leave --text-canaries out",
        )
    return made


def _written(
    model: LanguageModel, tokenizer: Any, *, count: int, seed: int, temperature: float = 1.0
) -> Iterator[Note]:
    """Notes with whatever adapter is active, as likely as it has them where the ``temperature`` is 1.

    They begin as those of the built-in patients do, and have no form: all behind a prompt is the model's.
    """
    prompts = replace(Prompts.builtin(), sections=())
    sampling = Sampling(
        count=count, max_new_tokens=_TOKENS, temperature=temperature, top_p=1.0, seed=seed, batch=_AT_A_TIME
    )
    for some in batches(model, tokenizer, prompts, sampling):
        yield from some


def _number(seed: bytes, label: bytes) -> int:
    return int.from_bytes(derived_key(seed, label)[:7], "little")
