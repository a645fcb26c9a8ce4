"""The language model: a frozen base with a LoRA adapter, whose trained part is read and set as one flat vector."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError, StudyError
from .adapter import AdapterLayout, Vector, vector_sha256
from .adapter_config import WRAPPED, adapter_config
from .adapter_file import CORE_TENSOR, folded, write_tensors
from .base_folder import model_folder_sha256
from .base_model import Precision, load_base, load_widened, positions, quiet
from .devices import PROCESSORS, open_device, within_memory
from .example import NO_LOSS, Example
from .library_errors import library_errors_over_records
from .lora import Lora, attach, base_magnitudes, copy_tensors
from .nf4 import is_nf4
from .perplexity import BANDS, Perplexity, RecordLosses, band_sums
from .reading import vocabulary_size
from .target_layers import block_of, named

if TYPE_CHECKING:  # importing torch takes a second, which `grandrounds --help` does not have
    import torch

# Tokens whose logits an evaluation holds at a time; any number above one gives the same figure to rounding.
EVALUATION_TOKENS = 1024
# What of an adapter is zero where it adds nothing.
_ZERO_AT_FIRST = (".lora_B.weight", ".lora_embedding_B", CORE_TENSOR)


class LanguageModel:
    """A causal language model with a LoRA adapter by peft, in evaluation mode throughout.

    Holds exactly one adapter at a time, which ``set_adapter`` and ``perplexity`` replace. ``layout`` cuts the trained
    vector, ``frozen_layout`` that of the tensors which the study fixes: A under ``ffa``, A and B under ``core``,
    nothing under ``lora``.
    """

    def __init__(self, module: Any, *, folder_sha256: str = "") -> None:
        """Wraps a peft model (``LanguageModel.load`` makes one); every trainable parameter belongs to the adapter.

        ``folder_sha256`` is the ``model_folder_sha256`` of what the base was loaded from.
        """
        _require_one_adapter(module)
        self.folder_sha256 = folder_sha256
        self.module = module.eval()
        # What ``GradSampler`` finds out, once: of a base that is sharded, it could not.
        self.keeps_records_apart = False
        # Around each pass forward and backward: through a base that is sharded, one process cannot alone.
        self.together: Callable[[], AbstractContextManager[None]] = nullcontext
        named = {_saved_name(name): parameter for name, parameter in module.named_parameters()}
        self.trained = {name: named[name] for name in sorted(named) if named[name].requires_grad}
        self._frozen = {name: named[name] for name in sorted(named) if "lora_" in name and name not in self.trained}
        self.layout = AdapterLayout.of({name: tuple(tensor.shape) for name, tensor in self.trained.items()})
        self.frozen_layout = AdapterLayout.of({name: tuple(tensor.shape) for name, tensor in self._frozen.items()})

    @classmethod
    def load(
        cls,
        folder: Path,
        lora: Lora,
        *,
        seed: int,
        precision: Precision = "float32",
        device: str = PROCESSORS,
        sha256: str | None = None,
        setting: str = "",
    ) -> "LanguageModel":
        """The base model of a folder (``model_folder``) with a fresh adapter: B zero, A drawn from ``seed``.

        A is public, so its seed is no secret. Only safetensors are read and no code of the model's is run. The adapter
        is float32 whatever the base's ``precision``, and the same on every ``device``. Raises ModelError, and
        StudyError unless the folder has the hash ``sha256``, where one is given; ``setting`` is what names the folder.
        It is hashed before anything else is made of it: what the libraries do with a folder that nobody pinned, nobody
        has looked at.
        """
        found = _pinned(folder, sha256, setting)
        place = open_device(device)
        module = attach(load_base(folder, precision=precision), lora, seed=seed)
        with within_memory(place):
            return cls(module.to(place), folder_sha256=found)

    @classmethod
    def load_widened(
        cls, folder: Path, lora: Lora, *, seed: int, precision: Precision, sha256: str | None = None, setting: str = ""
    ) -> "LanguageModel":
        """The model that ``load`` gives for ``precision``, its numbers held and multiplied in float32, on processors.

        An adapter is merged into this one: what it adds to a weight is less than bfloat16 can tell. Raises as ``load``.
        """
        found = _pinned(folder, sha256, setting)
        return cls(attach(load_widened(folder, precision=precision), lora, seed=seed), folder_sha256=found)

    @property
    def precision(self) -> Precision:
        """How the base model's numbers are held."""
        if any(is_nf4(layer) for layer in self.module.modules()):
            return "nf4"
        return "float32" if self.module.get_input_embeddings().weight.element_size() == 4 else "bfloat16"

    @property
    def device(self) -> "torch.device":
        """Where the model computes."""
        device: torch.device = next(self.module.parameters()).device
        return device

    def differences_from(self, lora: Lora) -> list[str]:
        """In what the adapter on the model is not ``lora``, in words: its kind; rank, scaling, DoRA, place of a layer.

        Where there is none and the dimension is that of ``lora``, no layer that ``lora`` names is without its adapter.
        """
        kind = "core" if self._is_core else "ffa" if self._frozen else "lora"
        found = [] if kind == lora.kind else [f"its kind is {kind}, not {lora.kind}"]
        for name, layer in self.module.named_modules():
            if not hasattr(layer, "lora_A"):
                continue
            rank, scaling = layer.r["default"], layer.scaling["default"]
            if rank != lora.rank_of(name):
                found.append(f"{name} has rank {rank}, not {lora.rank_of(name)}")
            elif scaling != lora.scaling_of(name):
                found.append(f"{name} is scaled by {scaling}, not by {lora.scaling_of(name)}")
            if bool(layer.lora_magnitude_vector) != lora.dora:
                found.append(f"{name} has {'no ' * lora.dora}magnitude of its own (DoRA)")
            if not lora.names(name.removeprefix(WRAPPED)):
                found.append(f"{name} is none of {named(lora.target_modules)}")
            elif lora.numbered is not None and block_of(name) not in lora.numbered:
                found.append(f"{name} is in none of the blocks {lora.numbered}")
        return found

    def get_adapter(self) -> Vector:
        """A copy of the trained vector, float32 [d]."""
        return self.layout.flatten({name: tensor.detach().cpu().numpy() for name, tensor in self.trained.items()})

    def set_adapter(self, adapter: Vector) -> None:
        """Replace the trained vector, float32 [d]; raises ModelError when the length is another."""
        copy_tensors(self.layout.unflatten(adapter), self.trained)

    def base_vector(self) -> Vector:
        """The trained vector, float32 [d], at which the model is its base alone, whatever adapter is on it.

        B is zero, or the core is; magnitudes are the norms of the base's rows; where A is trained, it is as it is.
        """
        magnitudes = base_magnitudes(self.module)
        tensors = {name: tensor.detach().cpu().numpy() for name, tensor in self.trained.items()}
        for name, tensor in tensors.items():
            layer, found, _ = name.partition(".lora_magnitude_vector")
            if found:
                tensors[name] = magnitudes[layer].numpy()
            elif name.endswith(_ZERO_AT_FIRST):
                tensors[name] = np.zeros_like(tensor)
        return self.layout.flatten(tensors)

    def get_frozen_adapter(self) -> Vector:
        """A copy of the tensors that the study fixes, float32 [frozen_layout.dimension]."""
        tensors = {name: tensor.detach().cpu().numpy() for name, tensor in self._frozen.items()}
        return self.frozen_layout.flatten(tensors)

    def set_frozen_adapter(self, frozen: Vector) -> None:
        """Replace the tensors that the study fixes by its bundle's; raises ModelError when the length is another."""
        copy_tensors(self.frozen_layout.unflatten(frozen), self._frozen)

    @property
    def adapter_layout_sha256(self) -> str:
        """The hash of the names and shapes of all the adapter's tensors, as its manifest states it."""
        return AdapterLayout(tuple(sorted((*self.layout.shapes, *self.frozen_layout.shapes)))).sha256

    @property
    def frozen_adapter_sha256(self) -> str:
        """The hash of the tensors that the study fixes, as its manifest states it."""
        return vector_sha256(self.get_frozen_adapter())

    @property
    def tensors(self) -> dict[str, Vector]:
        """All of the adapter's tensors, trained or not, by peft's names."""
        return {name: tensor.detach().cpu().numpy() for name, tensor in {**self.trained, **self._frozen}.items()}

    @property
    def _is_core(self) -> bool:
        return any(name.endswith(CORE_TENSOR) for name in self.trained)

    @property
    def blocks(self) -> list[Any]:
        """The like layers that the model is a row of, as transformers knows them."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        return [layer for layer in self.module.modules() if isinstance(layer, GradientCheckpointingLayer)]

    def enable_gradient_checkpointing(self) -> None:
        """Recompute each block's activations in the backward pass: memory for time, same gradients."""
        with quiet():
            self.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for block in self.blocks:
            # transformers checkpoints only what is training. Not .train(): the layers inside stay in evaluation mode,
            # and `load` took the dropout out of the configuration.
            block.training = True

    def stack(self, examples: Sequence[Example]) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Token ids and labels, int64 [batch, tokens], of examples of one length, where the model computes.

        Raises ValueError for a token that the model does not have.
        """
        return self._placed(
            np.stack([example.token_ids for example in examples]), np.stack([example.labels for example in examples])
        )

    def check_tokens(self, token_ids: NDArray[np.int32], labels: NDArray[np.int32]) -> None:
        """Raises ValueError for a token that the model does not have.

        On processors the model would refuse it; on a GPU it would end the process's use of that GPU, and with it what
        other records of the same sum are worth.
        """
        size = self.vocabulary_size
        for tokens in (token_ids, labels[labels != NO_LOSS]):
            if not ((tokens >= 0) & (tokens < size)).all():
                raise ValueError("an example has a token that the model does not have")

    def _placed(self, token_ids: NDArray[np.int32], labels: NDArray[np.int32]) -> tuple["torch.Tensor", "torch.Tensor"]:
        import torch

        self.check_tokens(token_ids, labels)
        places = (torch.from_numpy(array.astype(np.int64)).to(self.device) for array in (token_ids, labels))
        return next(places), next(places)

    def logits(self, token_ids: "torch.Tensor") -> "torch.Tensor":
        """Logits, float [batch, tokens, vocabulary], of int64 [batch, tokens] padded on the right.

        No attention mask is given: attention is causal, so what stands behind a record's end cannot reach it; and with
        a mask the library chooses another kernel when no row of the batch is padded, so that a record's rounding errors
        would depend on its neighbours (ARCHITECTURE.md, "Gradients").
        """
        return self._forward(token_ids)

    def _forward(self, token_ids: "torch.Tensor", **options: Any) -> "torch.Tensor":
        with library_errors_over_records(
            f"the model cannot read {token_ids.shape[1]} tokens",
            why="a record that cannot be read has no gradient, and no perplexity",
            fix="set data.max_tokens to what the model's documentation gives, or choose another model",
        ):
            logits: torch.Tensor = self.module(input_ids=token_ids, use_cache=False, **options).logits
        return logits

    @property
    def positions(self) -> int | None:
        """How many tokens of a record the model can read; None where its configuration states no end."""
        return positions(self.module.config)

    @property
    def vocabulary_size(self) -> int:
        """How many tokens the model has, from 0 on."""
        return vocabulary_size(self.module)

    def perplexity(self, examples: Sequence[Example], adapter: Vector) -> Perplexity:
        """Token-weighted perplexity of the examples under ``adapter``, which stays attached, whole and by position.

        Raises ModelError when no token is to be predicted.
        """
        return self.record_losses(examples, adapter).perplexity

    def record_losses(self, examples: Sequence[Example], adapter: Vector) -> RecordLosses:
        """What is lost on each example under ``adapter``, which stays attached.

        In one pass over examples of any lengths, with the logits of at most ``EVALUATION_TOKENS`` tokens in memory.
        Raises ModelError when no token is to be predicted.
        """
        import torch

        self.set_adapter(adapter)
        losses, tokens = np.zeros((len(examples), len(BANDS))), np.zeros((len(examples), len(BANDS)))
        with torch.inference_mode():
            for batch in _evaluation_batches(examples):
                rows = [row for row, _ in batch]
                token_ids, labels = self._placed(*_side_by_side([(examples[row], length) for row, length in batch]))
                for start, stop in _evaluation_slices(*token_ids.shape):
                    there = labels[:, start:stop]
                    logits = self._last_logits(token_ids[:, :stop], stop - start)
                    lost = token_losses(logits, there).double().cpu().numpy()
                    losses[rows] += band_sums(lost, first=start + 1)
                    tokens[rows] += band_sums((there[:, 1:] != NO_LOSS).double().cpu().numpy(), first=start + 1)
        if not tokens.any():
            raise ModelError(
                "the evaluation set has no token to predict",
                why="a perplexity is an average over them",
                fix="give evaluation records with text",
            )
        return RecordLosses(losses=losses, tokens=tokens.astype(np.int64))

    def _last_logits(self, token_ids: "torch.Tensor", count: int) -> "torch.Tensor":
        """The logits at the last ``count`` positions [batch, count, vocabulary]."""
        if count == token_ids.shape[1]:
            return self.logits(token_ids)
        # A model that does not know the request gives all of them.
        return self._forward(token_ids, logits_to_keep=count)[:, -count:]

    def export(self, folder: Path, *, lora: Lora, base_model: str) -> None:
        """Write the adapter so that ``PeftModel.from_pretrained(base, folder)`` loads exactly it.

        ``lora`` is what the model was loaded with: peft keeps another list of many layers. What is written of it is
        what anybody can render from the manifest, whichever peft ran. A core adapter is written twice: as it was
        trained, and folded into a LoRA.
        """
        tensors = self.tensors
        folder.mkdir(parents=True, exist_ok=True)
        if self._is_core:
            write_tensors(folder / "core.safetensors", tensors)
            tensors = folded(tensors)
        write_tensors(folder / "adapter_model.safetensors", tensors)
        (folder / "adapter_config.json").write_bytes(
            adapter_config(
                lora,
                base_model=base_model,
                fan_in_fan_out=self.module.peft_config["default"].fan_in_fan_out,
                tensors=tensors,
            )
        )


def _pinned(folder: Path, sha256: str | None, setting: str) -> str:
    """The hash of a base model's folder. Raises StudyError where it is not ``sha256``, and ModelError."""
    found = model_folder_sha256(folder)
    if sha256 not in (None, found):
        raise StudyError(
            f"the model in {folder} is another than the study's: its SHA-256 is {found}, and not {sha256}",
            why="every site and the server compute with the same model, and none is loaded that nobody pinned",
            fix=f"put back its files, or name the right folder ({setting})",
        )
    return found


def token_losses(logits: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
    """Cross-entropy of each next token, float32 [batch, tokens - 1]; 0 where the label is ``NO_LOSS``."""
    import torch

    # Of the last token nothing is predicted; without its logits, a copy would have to be made of the others.
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=NO_LOSS)
    flat = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="none", ignore_index=NO_LOSS
    )
    return flat.view(targets.shape)[:, :-1]


def _evaluation_batches(examples: Sequence[Example]) -> Iterator[list[tuple[int, int]]]:
    """Examples of about one length together, each by its place, with its length up to its last label.

    Without those of no label.
    """
    lengths = [int(np.flatnonzero(example.labels != NO_LOSS)[-1:].sum()) + 1 for example in examples]
    batch: list[tuple[int, int]] = []
    for place, length in sorted(enumerate(lengths), key=lambda pair: pair[1]):
        if length == 1:  # the first token is predicted from nothing
            continue
        if batch and (len(batch) + 1) * length > EVALUATION_TOKENS:
            yield batch
            batch = []
        batch.append((place, length))
    if batch:
        yield batch


def _side_by_side(batch: Sequence[tuple[Example, int]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Token ids and labels, int32 [batch, tokens], of examples of other lengths, padded to that of the longest."""
    shape = (len(batch), max(length for _, length in batch))
    token_ids, labels = np.zeros(shape, dtype=np.int32), np.full(shape, NO_LOSS, dtype=np.int32)
    for row, (example, length) in enumerate(batch):
        token_ids[row, :length], labels[row, :length] = example.token_ids[:length], example.labels[:length]
    return token_ids, labels


def _evaluation_slices(batch: int, tokens: int) -> Iterator[tuple[int, int]]:
    """Where to cut [batch, tokens] so that logits fit; each slice begins with the last position of the one before."""
    size = max(EVALUATION_TOKENS // batch, 2)
    for start in range(0, tokens - 1, size - 1):
        yield start, min(start + size, tokens)


def _require_one_adapter(module: Any) -> None:
    adapters = list(module.peft_config)
    if hasattr(module.get_base_model(), "get_base_model"):  # of a model that has one already, peft makes another
        adapters += list(module.get_base_model().peft_config)
    if adapters != ["default"]:
        raise ModelError(
            f"the model carries the adapters {', '.join(adapters)}, where one is trained, which peft calls default",
            why="what another one adds would be in none of the study's files, and nobody could use what was trained",
            fix="merge the others into their base model (peft's merge_and_unload) and train on what comes of it",
        )


def _saved_name(name: str) -> str:
    """A parameter's name as peft saves it, without the name of the adapter ("default")."""
    return name.replace(".lora_magnitude_vector.default.weight", ".lora_magnitude_vector").replace(".default", "")
