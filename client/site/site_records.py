"""A site's own records as studies may read them: without who opted out, and with what its operator is told of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ...common.data.blocks import Offsets
from ...common.data.preparation import Preparation, Prepared
from ...common.data.quarantine import Quarantine
from ...common.data.record import Record
from ...common.data.records import read_records
from ...common.data.store import Store, Units
from ...common.data.tokenisation import Tokenisation
from ...common.errors import DataError, ModelError, StorageError
from ...common.sources.source import DataSource
from ...common.study.manifest import Manifest
from ...common.study.study import Study
from ..minimisation.minimiser import check_columns
from .folder import SiteFolder
from .forgotten import Forgotten
from .opt_outs import OptOuts, told_unmatched, without_opted_out
from .prepared import PreparedRecords, Progress, unseen

# How far the units that a study counts on may be from those that were read before the operator is warned.
_FAR: Final = 1.5
_WHY_MATCHED: Final = "whoever opted out would be trained on"


@dataclass(frozen=True, kw_only=True)
class SiteRecords:
    """The records of patients who did not opt out, and what stays at the site of how they were read.

    Attributes:
        store: of all patients whose records were prepared.
        kept: int64 [patients], the numbers in it of those who did not opt out.
        quarantine: what counts as zero of all.
        cut: how many prompts lost their beginning, before anybody opted out.
        lost: how many tokens these were.
        opt_out_lines: how many lines of the opt-outs may mean a patient.
        unmatched: the numbers of those that mean none.
    """

    store: Store
    kept: Offsets
    quarantine: Quarantine
    cut: int
    lost: int
    opt_out_lines: int
    unmatched: list[int]

    @classmethod
    def open(
        cls, folder: SiteFolder, study: Study, *, again: bool = False, progress: Progress = unseen
    ) -> "SiteRecords":
        """A site's, as a study reads them: prepared before or now, as ``PreparedRecords.open`` does it.

        Raises DataError, ModelError, StudyError and StorageError.
        """
        found = PreparedRecords.of(folder).open(study.data, again=again, progress=progress)
        forgotten = Forgotten.read(folder.prepared, folder.fingerprint_key())
        return cls.of(found, folder.policy().data.opted_out, forgotten)

    @classmethod
    def of(cls, prepared: Prepared, opted_out: Path | None, forgotten: Forgotten | None = None) -> "SiteRecords":
        """What was ``prepared``, without whom the file ``opted_out`` means; lines may mean who is ``forgotten``, too.

        Raises DataError, also where nobody is left.
        """
        opt_outs, store = OptOuts.read(opted_out), prepared.store
        kept = store.kept(opt_outs.patients)
        known = [one for patient in store.patients for one in store.identifiers(patient)]
        if not len(kept):
            raise DataError(
                "all patients of the records are among the opt-outs",
                why="there is nothing to train on",
                fix="check the file that data.opted_out in policy.toml names",
            )
        return cls(
            store=store,
            kept=kept,
            quarantine=prepared.quarantine,
            cut=prepared.cut,
            lost=prepared.lost,
            opt_out_lines=opt_outs.count,
            unmatched=forgotten.unmatched(opt_outs, known) if forgotten else opt_outs.unmatched(known),
        )

    @classmethod
    def beside(
        cls, folder: SiteFolder, study: Study, source: DataSource, *, tokenisation: Tokenisation
    ) -> "SiteRecords":
        """Records of another ``source`` than the site's own, such as held-out ones, as a study reads the site's.

        Minimised as its policy says, and without who opted out. Raises DataError, StudyError and StorageError.
        """
        minimiser, settings, policy = folder.minimiser(), folder.settings(), folder.policy()
        check_columns(minimiser.rules, source)
        preparation = Preparation(
            tokenisation=tokenisation,
            max_tokens=study.data.max_tokens,
            overlap=study.data.overlap,
            similar=settings.similar_identifiers,
            minimise=minimiser,
            keep=minimiser.keep if minimiser.rules.chooses_records else None,
        )
        return cls.of(preparation.of_source(source), policy.data.opted_out)

    @property
    def patients(self) -> list[str]:
        """Whose records they are, each once."""
        return [self.store.patients[number] for number in self.kept.tolist()]

    @property
    def identifiers(self) -> list[str]:
        """All that they are known by."""
        return [one for patient in self.patients for one in self.store.identifiers(patient)]

    def told_far(self, manifest: Manifest, name: str) -> Iterator[str]:
        """What ``told_far`` says of them."""
        return told_far(len(self.kept), self.records, manifest, name)

    @property
    def records(self) -> int:
        """How many records they are."""
        return int(np.diff(self.store.units)[self.kept].sum())

    @property
    def lengths(self) -> Offsets:
        """How many tokens each of their windows has: int64 [windows], in their order."""
        block = self.store.block
        is_kept = np.isin(np.arange(len(self.store.patients)), self.kept)
        of_records = np.repeat(is_kept, np.diff(self.store.units))
        return np.diff(block.windows)[np.repeat(of_records, np.diff(block.records))]

    def contents(self) -> Iterator[bytes]:
        """The tokens of each record, all of its windows one after another."""
        return self.store.contents(self.kept)

    def units(self, study: Study) -> Units:
        """The study's privacy units, of which windows are read as they are drawn."""
        return self.store.select(study.privacy.unit, self.kept, max_tokens=study.data.max_tokens)

    def told(self) -> Iterator[str]:
        """Lines for the site's operator, who alone gets them."""
        yield from self.quarantine.lines()
        yield from told_unmatched(self.opt_out_lines, self.unmatched)
        if self.cut:
            yield f"{self.cut} prompts are cut: they lost their beginning, so that their completions stay whole"

    def check_opt_outs(self) -> None:
        """Raises DataError where there are opt-outs and none of them matches a patient."""
        if self.unmatched and len(self.unmatched) == self.opt_out_lines:
            raise DataError(
                f"none of the opt-outs' {self.opt_out_lines} lines matches a patient of the records",
                why=_WHY_MATCHED,
                fix="write identifiers as in the records, one a line; if it is right that none has records here, say "
                "--opt-outs-match-nobody",
            )

    def check_tokens(self, *, stated: int | None, size: int) -> None:
        """Raises ModelError where a record has a token beyond the ``size`` ones of the model.

        Where the model's configuration has ``stated`` that there are as many, or fewer, whatever had others was set
        aside, and one means that the store is damaged: raises StorageError.
        """
        if self.store.block.highest_token < size:
            return
        if stated is not None and stated <= size:
            raise StorageError(
                f"the prepared records are damaged: they have tokens that the model does not have, of {size}",
                why="a unit with one counts as zero, and where all do, the site contributes noise alone",
                fix="check the disk, and prepare them again: grandrounds client prepare --again",
            )
        raise ModelError(
            f"records have tokens that the model does not have, of which there are {size}",
            why="it can neither read nor predict them, and each of their units would count as zero",
            fix="use the tokenizer that the model was trained with, and state vocab_size in its config.json",
        )

    def check_learnable(self, units: Units) -> None:
        """Raises DataError where no window has a token to learn: noise alone would look like training."""
        if not units.learnable:
            raise DataError(
                f"none of the {units.windows} windows of the records has a token left to learn",
                why="every gradient would be zero, and the site would contribute noise alone",
                fix="see that there are completions, or assistant's turns, that the model's template marks; or ask the "
                "study's author for a larger data.max_tokens",
            )


def told_far(patients: int, records: int, manifest: Manifest, name: str) -> Iterator[str]:
    """A line where the study counts on quite another number of units of the site ``name``."""
    unit, nominal = manifest.study.privacy.unit, manifest.nominal_units(name)
    units = patients if unit == "patient" else records
    if max(units, nominal) > _FAR * min(units, nominal):
        yield (
            f"warning: the study counts on {nominal} {unit}s of this site, and {units} were read: its part of each "
            f"step is {units / nominal:.2g} times as large as the study means, and the claim is what it was. Is "
            "this the right file? If so, ask the study's author for nominal_units near the true number, rounded"
        )


def read_beside(folder: SiteFolder, source: DataSource) -> list[Record]:
    """Records of another source than the site's own, whole, minimised as its policy says and without who opted out.

    Raises DataError, StudyError and StorageError.
    """
    minimiser = folder.minimiser()
    check_columns(minimiser.rules, source)
    records = read_records(source, similar=folder.settings().similar_identifiers)
    return minimiser(without_opted_out(records, folder.policy().data.opted_out))
