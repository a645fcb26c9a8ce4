"""The paths that a record can take through a site: what its study says, whose records are there, and who is lost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path as FolderPath
from tempfile import mkdtemp
from threading import Thread
from typing import Any, Final

import numpy as np

from grandrounds.client.training.grad_samples import GradSampler
from grandrounds.client.training.physical_batch import MachineSampler
from grandrounds.client.training.rank_processes import _sum
from grandrounds.client.training.ranks import ALONE, Ranks
from grandrounds.common.data.buckets import bucket_lengths
from grandrounds.common.data.preparation import Preparation
from grandrounds.common.data.records import named_rows
from grandrounds.common.data.tokenisation import Tokenisation
from grandrounds.common.model.example import Example
from grandrounds.common.model.lora import Kind
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.study.study import Study
from support.study.federation import AFTER_SHARES, IsLost, small_study
from support.study.tiny_models import VOCABULARY, example_of, load_tiny, save_tiny_model, tiny_example, tiny_tokenizer

SITES: Final = ("site-1", "site-2", "site-3", "site-4")
SITE: Final = SITES[1]  # where the unit is, or is not
NOMINAL_UNITS: Final = (2, 6, 2, 2)
MAX_TOKENS: Final = 24
PUBLIC_UNITS: Final = 2
READ: Final = 2  # records of a unit that a step reads at most
HOSTILE: Final = 200  # a token whose embedding is infinite, so that a record with it has no finite gradient

_RNG: Final = np.random.default_rng(17)
_NAMES: Final = ("Abernathy", "Babbage", "Curie", "Dalton")

# What the store gives at a site: a unit's records, which may also be anything else and then fail.
Unit = Sequence[Example]


def record(length: int) -> Example:
    """So many random tokens, in the bucket of their length, and none that is hostile."""
    bucket = next(bucket for bucket in bucket_lengths(MAX_TOKENS) if bucket >= length)
    example = tiny_example(_RNG, length=length, max_tokens=bucket)
    for tokens in (example.token_ids, example.labels):
        tokens[tokens == HOSTILE] = 0
    return example


def with_token(token: int) -> Example:
    """A record with a certain token, among others."""
    example = record(9)
    example.token_ids[1] = token
    return example


class Unreadable(Sequence[Example]):
    """A unit that is there, but raises when its records are read, with a patient's name."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, place: Any) -> Any:
        raise OSError("no page for Mrs Abernathy")


SHORT, LONG, SEVERAL = [record(10)], [record(23)], [record(12), record(20)]
MANY = [record(length) for length in (5, 22, 9, 16, 14)]
COMPANIONS: Final = ([record(16)], [record(7), record(24)], [record(21)], [record(11), record(3)])
PUBLIC: Final = ([record(19)], [record(8)], MANY)
FAILING: Final[Mapping[str, Unit]] = {
    "has a token that there is not": [record(8), with_token(VOCABULARY)],
    "has no finite gradient": [with_token(HOSTILE), record(20)],
    "is of another length": [example_of(np.zeros(3, np.int32), np.zeros(3, np.int32))],
    "cannot be read": Unreadable(),
}
ELSEWHERE: Final = {site: [[record(6 + number)]] for number, site in enumerate(SITES) if site != SITE}


@dataclass(frozen=True, kw_only=True, eq=False)
class Path:
    """A study, and the two cohorts of one site: ``companions``, and these with ``unit`` at a ``place`` among them.

    Attributes:
        model: which of ``sampler``'s models computes, on how many ``ranks``.
        lost: what is lost on the way to a site.
        sections: what the study says otherwise than others.
        max_units: that of the site; above it, a draw is cut, which the claim pays for in delta.
        public: units of public records, of which each step has ``PUBLIC_UNITS`` beside.
        whole: whether all sites run the study to its end; else the one computes the updates of some ``attempts``.
    """

    unit: Unit
    companions: Sequence[Unit] = COMPANIONS
    place: int = 1
    model: str = "float32"
    ranks: int = 1
    trust: str = "distributed"
    lost: IsLost = lambda site, envelope: False
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    noise_multiplier: float | None = 2.0
    max_units: int = 12
    public: Sequence[Unit] = ()
    whole: bool = False
    attempts: int = 1

    @property
    def cohort(self) -> list[Unit]:
        """The companions, and the unit among them."""
        return [*self.companions[: self.place], self.unit, *self.companions[self.place :]]

    @property
    def study(self) -> Study:
        """The complete study of it."""
        sections = {name: dict(fields) for name, fields in self.sections.items()}
        data: dict[str, Any] = {"max_tokens": MAX_TOKENS, "records_per_unit": READ}
        if self.public:
            data |= {"public": f"sha256:{'ab' * 32}", "public_units": PUBLIC_UNITS}
        study = small_study(
            NOMINAL_UNITS,
            self.max_units,
            trust=self.trust,
            noise_multiplier=self.noise_multiplier,
            privacy={"clipping_norm": 0.5, **sections.get("privacy", {})},
            training=sections.get("training"),
            secagg={"threshold": 3, "update_range": 100.0},
        )
        return study.model_copy(update={"data": study.data.model_copy(update=data)})

    @property
    def sampler(self) -> GradSampler:
        """As this machine computes gradients."""
        return sampler(self.model, self.ranks)


@cache
def sampler(model: str, ranks: int) -> GradSampler:
    """A tiny model of that name, with what a worker finds out of it when it starts."""
    if ranks == 1:
        return _sampler(model, ALONE)
    here, there = Pipe()
    Thread(target=_other_rank, args=(model, there), daemon=True).start()
    return _sampler(model, Ranks([here], devices=("cpu", "cpu")))


def _sampler(model: str, ranks: Ranks) -> MachineSampler:
    study = small_study(NOMINAL_UNITS, 12, training={"physical_batch": 3}, secagg={"threshold": 3})
    study = study.model_copy(update={"data": study.data.model_copy(update={"max_tokens": MAX_TOKENS})})
    kinds: dict[str, Kind] = {"lora": "lora", "core": "core"}
    precision = model if model in ("bfloat16", "nf4") else "float32"
    loaded = load_tiny(_folder(64 if model == "nf4" else 16), kind=kinds.get(model, "ffa"), precision=precision)
    loaded.module.get_input_embeddings().weight.data[HOSTILE] = float("inf")
    return MachineSampler(study, loaded, ranks=ranks)


@cache
def _folder(width: int) -> FolderPath:
    return save_tiny_model(FolderPath(mkdtemp(prefix="grandrounds-tape-")), width=width)


def _other_rank(model: str, link: Connection) -> None:
    """What a further device's process does, in a thread: it sums what it is dealt of each step."""
    ranks = Ranks([link], number=1, devices=("cpu", "cpu"))
    computes = _sampler(model, ranks)
    while True:
        _sum(computes, ranks.await_order())


def _from_notes() -> Path:
    """A site's notes, tokenised and put into their order, with a patient in the midst and without; one note is none."""
    rows: list[dict[str, Any]] = [
        {"patient_id": name, "text": text} for name in _NAMES for text in (f"{name} is well", f"no pain, {name}")
    ]
    rows[3]["text"] = 17
    assert rows[3]["patient_id"] == _NAMES[1]
    made = Preparation(tokenisation=Tokenisation(tiny_tokenizer()), max_tokens=MAX_TOKENS)
    cohorts = []
    for given in (rows, [row for row in rows if row["patient_id"] != _NAMES[1]]):
        store = made.of_rows("notes", named_rows("notes", given)).store
        units = store.select("patient", store.kept(frozenset()), max_tokens=MAX_TOKENS)
        cohorts.append([list(unit) for unit in units])
    return Path(unit=cohorts[0][1], companions=cohorts[1], place=1)


def _lost_twice(site: str, envelope: Envelope) -> bool:
    """Two sites with their updates in the first attempt, which fails; one of them again in the second."""
    if envelope.attempt == 1:
        return site in (SITE, SITES[3]) and envelope.exchange == "survivors"
    return site == SITES[3] and envelope.exchange in AFTER_SHARES


HALF: Final = {"privacy": {"sampling_probability": 0.5}}
PATHS: Final[dict[str, Path]] = {
    "a short record in the midst of others": Path(unit=SHORT),
    "a record of the longest bucket": Path(unit=LONG, place=0),
    "records of two buckets": Path(unit=SEVERAL, place=3),
    "more records than a step reads": Path(unit=MANY, place=4),
    **{f"a unit that {how}": Path(unit=unit) for how, unit in FAILING.items()},
    "companions that fail": Path(unit=SEVERAL, companions=[COMPANIONS[0], *FAILING.values(), COMPANIONS[1]]),
    "half of the units are drawn, in each of six attempts": Path(
        unit=SHORT, companions=COMPANIONS[:2], sections=HALF, attempts=6
    ),
    "more units than a step may read": Path(
        unit=SHORT, companions=[*COMPANIONS, *([record(length)] for length in (6, 13, 18))], place=7, max_units=6
    ),
    "notes, tokenised and in their order": _from_notes(),
    "public records beside": Path(unit=SEVERAL, public=PUBLIC),
    "no noise": Path(unit=SHORT, noise_multiplier=None),
    "automatic clipping": Path(unit=LONG, sections={"privacy": {"clipping": "auto"}}),
    "local trust, two steps": Path(
        unit=SEVERAL, trust="local", sections={"training": {"local_steps": 2, "local_learning_rate": 0.01}}
    ),
    "two devices": Path(unit=SEVERAL, ranks=2),
    "an adapter of A and B": Path(unit=SEVERAL, model="lora"),
    "an adapter with a core": Path(unit=SEVERAL, model="core"),
    "a base in bfloat16": Path(unit=SEVERAL, model="bfloat16"),
    "a base in four bits": Path(unit=SEVERAL, model="nf4"),
    "a study to its end, of one companion": Path(
        whole=True, unit=SHORT, companions=COMPANIONS[:1], sections={"training": {"max_attempts": 1}}
    ),
    "a study of two rounds, under local trust": Path(
        whole=True,
        unit=SHORT,
        companions=COMPANIONS[:1],
        trust="local",
        sections={"training": {"rounds": 2, "optimizer": "adam"}},
    ),
    "an attempt that fails, and its retry": Path(
        whole=True, unit=SHORT, companions=COMPANIONS[:1], sections=HALF, lost=_lost_twice
    ),
    "a retry under less noise": Path(
        whole=True,
        unit=SHORT,
        companions=COMPANIONS[:1],
        sections={"privacy": {"noise_stages": [[2, 0.25]]}, "training": {"max_attempts": 2}},
        lost=lambda site, envelope: envelope.attempt == 1 and _lost_twice(site, envelope),
    ),
}
