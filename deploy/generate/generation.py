"""Notes from a finished adapter into a file, from where it was stopped to the end."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.data.tokenisation import load_tokenizer
from ...common.errors import ModelError
from ...common.model.devices import PROCESSORS, open_device
from ..adapter.finished import FinishedAdapter
from .notes_file import NotesFile
from .prompts import Prompts
from .provenance import about, claimed, in_short
from .sampling import Sampling, batches

Told = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What is to be made: notes of an adapter, or of its base model alone for comparison."""

    adapter: FinishedAdapter
    base: Path
    prompts: Prompts
    sampling: Sampling
    with_adapter: bool = True
    device: str = PROCESSORS

    def run(self, output: Path, told: Told = lambda done: None) -> dict[str, Any]:
        """Write the notes and what they are; ``told`` of how many there are. Returns what is said of their origin.

        Raises StorageError where there are such notes already, and StudyError or ModelError before any is made where
        the adapter's claim, the base model or the prompts do not hold.
        """
        import torch

        if self.adapter.precision == "nf4" and self.sampling.precision is not None:
            raise ModelError(
                f"a base model of 4 bits is not computed in {self.sampling.precision}",
                why="the adapter was trained on those weights, and is right for no others",
                fix="leave out --precision",
            )
        claim = claimed(self.adapter) if self.with_adapter else None
        described = about(self.adapter, claim, self.prompts, self.sampling, with_adapter=self.with_adapter)
        notes = NotesFile(path=output, about=described, in_short=in_short(claim))
        with notes.writing(self.sampling.batch) as done:
            told(done)
            model = self.adapter.on(self.base)
            model.module.to(open_device(self.device))
            if self.sampling.precision is not None:
                model.module.to(getattr(torch, self.sampling.precision))
            tokenizer = load_tokenizer(str(self.base))
            with nullcontext() if self.with_adapter else model.module.disable_adapter():
                for made in batches(model, tokenizer, self.prompts, self.sampling, first=done):
                    notes.append(made, first=done)
                    done += len(made)
                    told(done)
            notes.finish()
        return described
