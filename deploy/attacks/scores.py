"""What base model and adapter say of patients' records: losses, verbatim runs, hidden states, gradients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import torch

from ...client.training.grad_samples import GradSampler, Shape
from ...common.audit.membership import Seen
from ...common.audit.roc import Scores
from ...common.model.adapter import Vector
from ...common.model.example import NO_LOSS, Example
from ...common.model.language_model import LanguageModel, token_losses
from ...common.model.library_errors import library_errors_over_records

Patient = Sequence[Example]

# Of a patient with more windows, so many are read, chosen evenly.
MOST_WINDOWS: Final = 4


@dataclass(frozen=True, kw_only=True)
class _Read:
    """A patient's windows as one model reads them: summed loss, tokens, longest verbatim run, mean hidden state."""

    loss: float
    tokens: int
    run: int
    state: torch.Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """Reads patients with a ``model`` under two adapters, ``before`` and ``after``, float32 [d] each.

    ``clipping_norm`` is the study's: a patient counts in training as the mean of the windows' gradients, cut to it.
    """

    model: LanguageModel
    before: Vector
    after: Vector
    clipping_norm: float

    @classmethod
    def against_base(cls, model: LanguageModel, adapter: Vector, *, clipping_norm: float) -> Self:
        """Of an ``adapter`` beside the base model alone, whatever a study began with.

        A first adapter may be an earlier study's: beside it, that one's patients would hardly show.
        """
        model.set_adapter(adapter)  # whose A the base then has, where A is trained
        return cls(model=model, before=model.base_vector(), after=adapter, clipping_norm=clipping_norm)

    def seen(self, patients: Sequence[Patient], tell: Callable[[int], None] = lambda done: None) -> Seen:
        """Of the patients who have a token to be predicted; ``tell`` hears each tenth, in percent.

        Raises ModelError.
        """
        read = [windows for patient in patients if (windows := _some(patient))]
        steps = 3 * len(read)  # by the base model, by the adapter, and the gradients

        def told(start: int, number: int) -> None:
            done = start * len(read) + number
            if (tenth := 10 * (done + 1) // steps) > 10 * done // steps:
                tell(10 * tenth)

        before = self._under(self.before, read, lambda number: told(0, number))
        after = self._under(self.after, read, lambda number: told(1, number))
        return Seen(
            tokens=np.array([float(one.tokens) for one in after]),
            base=np.array([one.loss / one.tokens for one in before]),
            adapter=np.array([one.loss / one.tokens for one in after]),
            base_run=np.array([float(one.run) for one in before]),
            adapter_run=np.array([float(one.run) for one in after]),
            moved=np.array(
                [
                    float((one.state - other.state).norm() / other.state.norm())
                    for one, other in zip(after, before, strict=True)
                ]
            ),
            aligned=self._aligned(read, lambda number: told(2, number)),
        )

    def _under(self, adapter: Vector, patients: Sequence[Patient], told: Callable[[int], None]) -> list[_Read]:
        self.model.set_adapter(adapter)
        found = []
        for number, windows in enumerate(patients):
            found.append(self._read(windows))
            told(number)
        return found

    def _read(self, windows: Patient) -> _Read:
        loss, tokens, run = 0.0, 0, 0
        states = []
        for window in windows:
            end = int(np.flatnonzero(window.labels != NO_LOSS)[-1]) + 1
            token_ids, labels = self.model.stack([window])
            token_ids, labels = token_ids[:, :end], labels[:, :end]
            with (
                torch.inference_mode(),
                library_errors_over_records(
                    f"the model gives no hidden states of {end} tokens",
                    why="where a model is served for embeddings, they are what an attacker sees",
                    fix="choose a model of transformers' own",
                ),
            ):
                made = self.model.module(input_ids=token_ids, use_cache=False, output_hidden_states=True)
                loss += float(token_losses(made.logits, labels).double().sum())
                states.append(made.hidden_states[-1][0].float())
                is_greedy = made.logits[0, :-1].argmax(dim=-1) == token_ids[0, 1:]
            tokens += int((labels[:, 1:] != NO_LOSS).sum())
            run = max(run, longest_run((is_greedy & (labels[0, 1:] != NO_LOSS)).tolist()))
        return _Read(loss=loss, tokens=tokens, run=run, state=torch.cat(states).mean(dim=0).cpu())

    def _aligned(self, patients: Sequence[Patient], told: Callable[[int], None]) -> Scores:
        """[patients], as ``Seen`` has it. Zero where nothing was changed."""
        lengths = sorted({len(window.token_ids) for patient in patients for window in patient})
        sampler = GradSampler(self.model, [Shape(tokens=length, batch=1) for length in lengths])
        change = torch.from_numpy(self.after - self.before).to(self.model.device)
        change /= change.norm().clamp(min=torch.finfo(change.dtype).tiny)
        self.model.set_adapter(self.before)
        found = np.zeros(len(patients))
        for number, windows in enumerate(patients):
            gradient = torch.cat([sampler.gradients([window]) for window in windows]).mean(dim=0)
            cut = min(1.0, self.clipping_norm / max(float(gradient.norm()), 1e-30))
            found[number] = -cut * float(gradient @ change)
            told(number)
        return found


def longest_run(marks: Sequence[bool]) -> int:
    """The length of the longest stretch of marks that are true.

    What the likeliest token continues verbatim from some prefix of a text is such a stretch: as long as all tokens so
    far were the text's own, the model has read the text itself. So one pass finds it for every prefix at once.

    >>> longest_run([True, False, True, True, False])
    2
    """
    longest = run = 0
    for mark in marks:
        run = run + 1 if mark else 0
        longest = max(longest, run)
    return longest


def _some(patient: Patient) -> list[Example]:
    """Of a patient's windows that have a token to be predicted at most ``MOST_WINDOWS``, evenly."""
    learnt = [window for window in patient if window.has_target]
    few = min(len(learnt), MOST_WINDOWS)
    return [learnt[number * len(learnt) // few] for number in range(few)]
