"""Base model and adapter as one model, in a folder that transformers loads without peft."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...common.model.base_folder import configuration_files
from ...common.model.base_model import load_base, quiet
from ...common.model.language_model import LanguageModel
from ...common.model.reading import probe_logits
from ...common.system.files import rename_folder
from ...server.report.page import markdown
from .comparison import distance, percent, require_close
from .finished import FinishedAdapter
from .output import beside, require_absent

if TYPE_CHECKING:  # importing torch takes a second, which `grandrounds --help` does not have
    import torch

# Float32 rounds at 6e-8, some hundred times on the way to a logit.
TOLERANCE: Final = 1e-4
# Bfloat16 rounds at 4e-3, where the merged model does not: some hundred times, too.
TOLERANCE_AS_TRAINED: Final = 0.1
# What whoever hands the weights on has to hand on with them.
_LICENSES: Final = ("LICENSE*", "LICENCE*", "NOTICE*")
_CARD: Final = """\
# {base} with an adapter merged in

- Base model: {base}, whose license ({license}) applies to these files.
- Adapter: {origin}

{made}

All else in them is the base model's, so that of their privacy holds what holds of the adapter's. {privacy}
"""
_MADE: Final = """\
`grandrounds adapter merge` made them; transformers loads them without peft. All weights are in float32: the base
model's, as the adapter was trained on them in {precision}, and what the adapter adds."""


def card(adapter: FinishedAdapter, *, made: str) -> str:
    """What goes with base and adapter in one, as Markdown: whose they are, under which license, and what is claimed."""
    return _CARD.format(
        base=adapter.base,
        license=adapter.license,
        origin=adapter.origin,
        privacy=markdown(adapter.privacy),
        made=made,
    )


def merge(adapter: FinishedAdapter, base: Path, output: Path) -> Iterator[str]:
    """Write the model of base and adapter, with its tokenizer, into the new folder ``output``; what was done, in lines.

    Raises StorageError, and ModelError and StudyError as ``FinishedAdapter.on``, or where the model that was written
    predicts something else.
    """
    require_absent(output)
    model = adapter.widened_on(base)
    with beside(output) as place:
        folder = place / output.name
        _, said = write_merged(adapter, model, base, folder)
        rename_folder(folder, output)
    yield from said
    yield f"{output} is the whole model with its tokenizer: transformers loads it without peft, and vllm serves it"


def write_merged(
    adapter: FinishedAdapter, model: LanguageModel, base: Path, folder: Path
) -> "tuple[torch.Tensor, tuple[str, ...]]":
    """Merge ``model``, which is the adapter on the base; write it into ``folder``, load it again and compare it.

    Returns what it predicts (``probe_logits``), and how far that is from base and adapter, in lines.
    """
    expected = probe_logits(model.module)
    with model.module.disable_adapter():
        moved = percent(distance(probe_logits(model.module), expected))
    with quiet():
        model.module.merge_and_unload(safe_merge=True).save_pretrained(folder)
    _complete(folder, base)
    (folder / "README.md").write_text(card(adapter, made=_MADE.format(precision=adapter.precision)), encoding="utf-8")
    found = probe_logits(load_base(folder, precision="float32"))
    compared = require_close(found, expected, tolerance=TOLERANCE, what="the merged model", to="base model and adapter")
    return found, (
        adapter.privacy,
        compared,
        f"the adapter moves the logits of the base model by {moved}",
        *_as_trained(adapter, base, expected),
    )


def _as_trained(adapter: FinishedAdapter, base: Path, expected: "torch.Tensor") -> Iterator[str]:
    """How far base and adapter predict from ``expected``, computed with less precision, as they were in training."""
    if adapter.precision == "float32":
        return
    yield f"merged were the base model's numbers as they were trained on, in {adapter.precision}; written is float32"
    yield require_close(
        probe_logits(adapter.on(base).module),
        expected,
        tolerance=TOLERANCE_AS_TRAINED,
        what="base model and adapter in bfloat16, as they were trained,",
        to="the merged model",
    )


def _complete(folder: Path, base: Path) -> None:
    """Give the folder, which has the merged weights, all that the base model's has beside its own."""
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # the library makes it its owner's alone, and most of what is merged is for others
    for path in configuration_files(base):
        if not (folder / path).exists():
            (folder / path).parent.mkdir(exist_ok=True)
            shutil.copyfile(base / path, folder / path)
    # The one in memory is without dropout and padding, as training needs it; of a model of images and text it is that
    # of the part for text.
    saved, its_own = (json.loads((place / "config.json").read_text(encoding="utf-8")) for place in (folder, base))
    if saved["model_type"] == its_own["model_type"]:
        its_own.pop("torch_dtype", None)
        whole = {**its_own, "architectures": saved["architectures"], "dtype": saved["dtype"]}
        (folder / "config.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    for file in (file for pattern in _LICENSES for file in base.glob(pattern)):
        shutil.copyfile(file, folder / file.name)
