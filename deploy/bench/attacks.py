"""Attacks on adapters of canary patients: trained with privacy, without noise, and without anything, side by side."""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from ...common.audit.membership import CALIBRATED, FEWEST, LOSS, STATES, WEIGHTS
from ...common.data.tokenisation import load_tokenizer
from ...common.errors import StudyError
from ...common.model.adapter import Vector
from ...common.model.language_model import LanguageModel
from ...common.study.builtin import tuned_rate
from ...common.study.study import Study
from ...server.report.findings import Findings, promise
from ...server.report.rounding import area, share
from ..attacks.attack import attacked
from ..attacks.canaries import Canary, canaries, exposure, numbers
from ..simulation.config import prepare_records, read_simulation
from .utility.central import Central
from .utility.extraction import log_likelihoods

Tell = Callable[[str], None]

_SITES: Final = 5
_MAX_TOKENS: Final = 48  # a canary's note in one window
_EXPOSED: Final = 20  # of how many canaries the number is ranked
_OTHERS: Final = 31  # among so many others: five bits at most
_SHOWN: Final = (LOSS, CALIBRATED, WEIGHTS, STATES)
_HEAD: Final = (
    f"| adapter | ε | {' | '.join(f'AUC, {name}' for name in _SHOWN)} | by loss found at 10 % false alarms | "
    f"loss gap, nats | exposure, bits |\n{'|---' * (len(_SHOWN) + 5)}|"
)


@dataclass(frozen=True, kw_only=True)
class AttackBench:
    """``members`` canary patients who are trained on, and as many who are not, drawn from ``seed``.

    Rows: the built-in study's settings with privacy; the same without noise; and the first ``memorised`` of them alone,
    all in each of ``rounds``, without noise and with nothing cut, which is what makes a model memorise.
    """

    members: int = 200
    memorised: int = 40
    rounds: int = 24
    seed: int = 1
    model: str = "builtin"

    def __post_init__(self) -> None:
        """Raises StudyError where sites could not be of one size, or intervals would say nothing."""
        for trained in (self.members, self.memorised):
            if trained % _SITES or not FEWEST <= trained <= self.members:
                raise StudyError(
                    f"{trained} canary patients who are trained on, of {self.members}",
                    why=f"they are spread over {_SITES} sites evenly, and of fewer than {FEWEST} no figure says "
                    "anything",
                    fix=f"choose multiples of {_SITES}, from {FEWEST} on, and no more to memorise than there are",
                )

    @property
    def ways(self) -> Mapping[str, tuple[int, dict[str, Any]]]:
        """Each row's name, how many are trained on, and what its study has beside the built-in settings."""
        memorising = {"noise": False, "sampling_probability": 1.0, "clipping_norm": 9.6}
        whole = {"learning_rate": tuned_rate(noise=0.0)}  # in both, however few members there are
        private = {"target_epsilon": 4.0, "sampling_probability": 0.5}
        return {
            "private": (self.members, {"privacy": private, "training": whole}),
            "noise off": (
                self.members,
                {"privacy": {"noise": False, "sampling_probability": 0.5}, "training": whole},
            ),
            "memorised": (
                self.memorised,
                {"privacy": memorising, "training": {"rounds": self.rounds, "physical_batch": 8}},
            ),
        }

    def run(self, tell: Tell) -> dict[str, Any]:
        """A row of each way: its findings and the mean exposure; what is done is told. Raises what training raises."""
        every = list(canaries(2 * self.members, seed=self.seed))
        with tempfile.TemporaryDirectory() as folder:
            return {name: self._trained(name, every, Path(folder), _of(name, tell)) for name in self.ways}

    def _trained(self, name: str, every: list[Canary], folder: Path, tell: Tell) -> dict[str, Any]:
        """The row of one way."""
        trained, tables = self.ways[name]
        tell(f"reading the notes of {trained} canary patients, and loading the model")
        central = Central.open(*self._simulated(trained, tables, every, folder), seed=self.seed)
        tell("training")
        adapter = central.train([site.name for site in central.manifest.study.sites], tell)
        return self.row(central, adapter, every, tell)

    def _simulated(
        self, trained: int, tables: Mapping[str, Any], every: list[Canary], folder: Path
    ) -> tuple[Study, Any]:
        """The study of one way, and the files of its records: each site's, and of those who are not trained on."""
        each = trained // _SITES
        names = [f"site-{number}" for number in range(1, _SITES + 1)]
        data = {
            name: str(_written(folder / f"{name}.jsonl", every[number * each : (number + 1) * each]))
            for number, name in enumerate(names)
        }
        simulation = {
            "data": data,
            "nominal_units": dict.fromkeys(names, each),
            "evaluation": str(_written(folder / "others.jsonl", every[self.members :])),
        }
        described = {
            "simulation": simulation,
            "model": {"name": self.model},
            "data": {"evaluation": "synthetic", "max_tokens": _MAX_TOKENS},
            **tables,
        }
        study, settings = read_simulation(described)
        return study, prepare_records(settings, lambda event: None)

    def row(self, central: Central, adapter: Vector, every: list[Canary], tell: Tell) -> dict[str, Any]:
        """What attacks find of an adapter [d]."""
        seen = attacked(
            central.model,
            adapter,
            central.manifest,
            members=[unit for units in central.units.values() for unit in units],
            others=[[example] for example in central.evaluation.examples],
            tell=tell,
        )
        tell(f"ranking the numbers of {_EXPOSED} canaries by how likely the adapter has them")
        found = Findings.of(*seen, curve=promise(central.manifest))
        central.model.set_adapter(adapter)
        exposed = exposures(central.model, load_tokenizer(str(central.base)), every[:_EXPOSED])
        return {
            **found.model_dump(mode="json"),
            "epsilon": central.manifest.study.privacy.target_epsilon,
            "promised_auc": found.promised_auc,
            "exposure": fmean(exposed),
        }


def exposures(model: LanguageModel, tokenizer: Any, of: Iterable[Canary], *, others: int = _OTHERS) -> list[float]:
    """Of each canary, how many bits of its number the active adapter gives away."""

    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    guesses = numbers(others, seed=0)
    found = []
    for canary in of:
        *before, last = tokens(canary.prefix)
        rows = [([last], tokens(number)) for number in (canary.number, *guesses)]
        own, *rest = log_likelihoods(model, before, rows)
        found.append(exposure(own, rest))
    return found


def attack_table(rows: Mapping[str, Any]) -> str:
    """As a table in Markdown."""
    lines = [_HEAD]
    for name, row in rows.items():
        areas = {attack["name"]: attack for attack in row["attacks"]}
        shown = [area(areas[each]["auc"]) for each in _SHOWN]
        found = share(areas[LOSS]["detections"][0]["members"])
        cells = [
            name,
            "none" if row["curve"] is None else f"{row['epsilon']:g}",
            *shown,
            found,
            f"{row['adapter_gap'] - row['base_gap']:.2f}",
            f"{row['exposure']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _of(name: str, tell: Tell) -> Tell:
    """What is told of one way."""
    return lambda doing: tell(f"{name}: {doing}")


def _written(path: Path, of: Iterable[Canary]) -> Path:
    path.write_text("".join(f"{json.dumps(canary.record)}\n" for canary in of), encoding="utf-8")
    return path
