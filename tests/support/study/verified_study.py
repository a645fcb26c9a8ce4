"""A study that ran in memory, as the folder that ``grandrounds verify`` is given; and what happens when a bit flips.

``python -m support.study.verified_study`` flips a bit of every byte of such a folder, one at a time (``make soak``).
"""

import random
import secrets
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from grandrounds.client.worker.worker import ComputeUpdate
from grandrounds.common.crypto.identity import canonical_json, sha256
from grandrounds.common.ledger import entries
from grandrounds.common.ledger.entries import SignedStatement
from grandrounds.common.ledger.replay import VerifiedLedger
from grandrounds.common.model.adapter import AdapterLayout, vector_sha256
from grandrounds.common.model.adapter_config import adapter_config
from grandrounds.common.model.base_folder import published_name
from grandrounds.common.secagg.transcript import seal_message
from grandrounds.common.study.about import AboutSection
from grandrounds.common.study.artefacts import CARD, CONFIG, LEDGER, PAGE, REPORT, RESULTS, WEIGHTS
from grandrounds.common.study.artefacts import MANIFEST as STUDY
from grandrounds.common.study.manifest import Manifest
from grandrounds.common.study.study import Study
from grandrounds.deploy.verify.claims import verify
from grandrounds.server.report.page import render_html, render_model_card
from grandrounds.server.report.report import Declared, Report, build_report, render_json
from grandrounds.server.report.utility import AtPosition
from grandrounds.server.rounds.ledger_writer import LedgerWriter
from support.study.federation import Federation, agreed_ledger, small_manifest, small_study

LAYERS = [f"base_model.model.layers.{number}.v_proj" for number in range(2)]
RANK, INPUTS, OUTPUTS = 4, 3, 5
A = {f"{layer}.lora_A.weight": np.full((RANK, INPUTS), 0.5, np.float32) for layer in LAYERS}
FROZEN = AdapterLayout.of({name: tensor.shape for name, tensor in A.items()})
TRAINED = AdapterLayout.of({f"{layer}.lora_B.weight": (OUTPUTS, RANK) for layer in LAYERS})
WHOLE = AdapterLayout.of({name: shape for layout in (FROZEN, TRAINED) for name, shape in layout.shapes})
# By position, what an adapter does that is better everywhere, and one that harms what it was not trained on.
BETTER = tuple(
    AtPosition(begin=begin, end=end, before=50.0 + begin, after=10.0 + begin)
    for begin, end in ((0, 64), (64, 128), (128, 256), (256, None))
)
HARMFUL = (*BETTER[:1], *(band.model_copy(update={"after": 50.5 + band.begin}) for band in BETTER[1:3]), BETTER[3])


def steps(manifest: Manifest, site: str) -> ComputeUpdate:
    """What a site computes: the same small step, whatever the adapter."""
    word = np.uint32 if manifest.study.privacy.trust == "distributed" else np.uint16
    return lambda adapter, mechanism: np.arange(manifest.dimension, dtype=word)


@dataclass(kw_only=True)
class SmallStudy(Federation):
    """A federation that trains the B of two layers, and whose manifest names their A."""

    dimension: int = TRAINED.dimension
    release: Any = steps
    manifest_fields: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        frozen = vector_sha256(FROZEN.flatten(A))
        self.manifest = small_manifest(
            self.study,
            self.identities,
            self.server,
            dimension=self.dimension,
            tensor_sizes=TRAINED.sizes,
            frozen_adapter_sha256=frozen,
            adapter_layout_sha256=WHOLE.sha256,
            **self.manifest_fields,
        )
        self.lines.clear()
        self.ledger = agreed_ledger(self.manifest, self.identities, self.server, self.lines.append)
        for site in self.workers:
            self.restart(site)

    def report(self, **declared: Any) -> Report:
        """Its report, in which perplexity falls from 50 by round."""
        rounds = {attempt.round for attempt in self.ledger.verified.attempts}
        fields: dict[str, Any] = {
            "perplexity_before": 50.0,
            "perplexities": {round_: 40.0 / round_ for round_ in rounds},
            "by_position": BETTER,
            "evaluation": "synthetic notes",
            "evaluation_max_tokens": 8192,
            "evaluation_cut": 0,
        }
        return build_report(self.ledger.verified, Declared(**(fields | declared)))

    def close(self, folder: Path) -> None:
        """Write what the study leaves, and the end of its ledger with every site's signature."""
        self.write_results(folder)
        files = {path: sha256((folder / path).read_bytes()) for path in RESULTS}
        self.ledger.append(entries.StudyClosed(charges=self.ledger.verified.charges, files=files))
        for site in self.manifest.secagg_parameters.names:
            self.sign_end(site)
        self.write_ledger(folder)

    def write_results(self, folder: Path) -> None:
        """Write everything but the ledger."""
        report = self.report()
        (folder / "adapter").mkdir(parents=True, exist_ok=True)
        (folder / REPORT).write_bytes(render_json(report))
        (folder / PAGE).write_text(render_html(report), encoding="utf-8")
        (folder / CARD).write_text(render_model_card(report), encoding="utf-8")
        (folder / CONFIG).write_bytes(config_of(self.study))
        save_file({**A, **TRAINED.unflatten(self.adapters[-1])}, folder / WEIGHTS)
        self.write_manifest(folder)

    def write_manifest(self, folder: Path) -> None:
        """Write the manifest in force."""
        (folder / STUDY).write_bytes(canonical_json(self.ledger.verified.manifest.model_dump(mode="json")))

    def write_ledger(self, folder: Path) -> None:
        """Write the ledger as it is now."""
        write_ledger(folder, self.lines)

    def rewrite_last(self, body: entries.Body) -> None:
        """Another entry in place of the ledger's last."""
        line = self.forged(body, after=self.lines[-2])
        self.lines[-1] = line
        self.ledger = LedgerWriter(
            identity=self.server, store=self.lines.append, verified=VerifiedLedger.of(self.lines)
        )

    def sign_end(self, site: str) -> None:
        """The site signs the ledger up to the study's end."""
        verified = self.ledger.verified
        assert verified.closing is not None
        signed = seal_message(
            self.manifest.secagg_parameters,
            self.identities[site],
            verified.closing,
            attempt=len(verified.attempts),
            sender=site,
        )
        self.ledger.append(entries.ClosingSignature(closed=SignedStatement.of(signed.statement)))


def config_of(study: Study) -> bytes:
    """What tells peft of the adapter."""
    base = published_name(study.model.name)
    return adapter_config(study.model.lora, base_model=base, fan_in_fan_out=False, tensors=())


def write_ledger(folder: Path, lines: Sequence[bytes]) -> None:
    """Write these entries, each on its line."""
    (folder / LEDGER).parent.mkdir(parents=True, exist_ok=True)
    (folder / LEDGER).write_bytes(b"".join(line + b"\n" for line in lines))


def ran(
    *,
    training: Mapping[str, Any] | None = None,
    noise_multiplier: float | None = 1.5,
    about: Mapping[str, Any] | None = None,
    **privacy: Any,
) -> SmallStudy:
    """A study of two rounds that ran; site-2 is lost in the middle of the second."""
    study = small_study(
        noise_multiplier=noise_multiplier,
        privacy={"sampling_probability": 0.25, **privacy},
        training={"rounds": 2, "max_attempts": 4, **(training or {})},
    )
    study = study.model_copy(update={"about": AboutSection(**(about or {}))})
    federation = SmallStudy(study=study)
    federation.run(lambda site, envelope: (envelope.attempt, site, envelope.exchange) == (2, "site-2", "ciphertexts"))
    return federation


def eventful(
    trust: str = "distributed", noise_multiplier: float | None = 1.5, *, evaluations: int = 100, **privacy: Any
) -> SmallStudy:
    """A study that ran: site-2 is lost in the middle of round 2, and two sites in the first attempt of round 3."""
    study = small_study(
        trust=trust,
        noise_multiplier=noise_multiplier,
        privacy={"sampling_probability": 0.25, "delta": 1e-3, **privacy},
        training={"rounds": 4, "max_attempts": 6, "evaluations": evaluations},
    )

    def is_lost(site: str, envelope: Any) -> bool:
        if envelope.attempt == 2:
            return site == "site-2" and envelope.exchange == "ciphertexts"
        return envelope.attempt == 3 and site in ("site-4", "site-5") and envelope.exchange == "adverts"

    federation = SmallStudy(study=study)
    federation.run(is_lost)
    return federation


def used_up() -> SmallStudy:
    """A study that ran out of attempts in its second round."""
    study = small_study(
        noise_multiplier=1.5,
        privacy={"sampling_probability": 0.25, "delta": 1e-3},
        training={"rounds": 2, "max_attempts": 3},
    )
    federation = SmallStudy(study=study)
    federation.run(
        lambda site, envelope: (
            envelope.attempt > 1 and site in ("site-4", "site-5") and envelope.exchange == "ciphertexts"
        )
    )
    return federation


def every_flip(folder: Path) -> Iterator[tuple[str, int, int]]:
    """A bit of each byte that is verified: file, place, and which of its eight bits."""
    for path in (LEDGER, *RESULTS):
        for place in range((folder / path).stat().st_size):
            yield path, place, secrets.randbelow(8)


def random_flips(folder: Path, *, count: int, seed: int) -> list[tuple[str, int, int]]:
    """Bits of random files, each file as often as the others, in the order of the files."""
    generator = random.Random(seed)
    sizes = {path: (folder / path).stat().st_size for path in (LEDGER, *RESULTS)}
    paths = sorted(generator.choice(list(sizes)) for _ in range(count))
    return [(path, generator.randrange(sizes[path]), generator.randrange(8)) for path in paths]


def undetected(folder: Path, flips: Iterable[tuple[str, int, int]]) -> Iterator[tuple[str, int, int]]:
    """Of the flips, each made alone and taken back, those that ``verify`` does not refuse with a reason of its own."""
    for path, place, bit in flips:
        whole = (folder / path).read_bytes()
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        (folder / path).write_bytes(flipped)
        try:
            verdict = verify(folder)
        finally:
            (folder / path).write_bytes(whole)
        if verdict.holds or any("could not be checked" in finding.detail for finding in verdict.findings):
            yield path, place, bit


def main() -> int:
    """1 if a flipped bit went unnoticed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ran().close(folder)
        missed = list(undetected(folder, every_flip(folder)))
    print("\n".join(f"{path}: bit {bit} of byte {place} went unnoticed" for path, place, bit in missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
