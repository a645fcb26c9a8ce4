"""Use a study's adapter: python use_adapter.py [STUDY_FOLDER]; without a folder, study_in_python.py makes one.

As `grandrounds adapter try` and `merge` do: before anything is loaded, the adapter is compared with its study, and the
base model with the study's. The adapter's card says how transformers and peft use it without this package.
"""

from pathlib import Path

from grandrounds.common.data.tokenisation import load_tokenizer
from grandrounds.deploy.adapter.finished import FinishedAdapter
from grandrounds.deploy.adapter.merge import merge
from grandrounds.deploy.adapter.trial import continuations
from grandrounds.deploy.examples.study_in_python import finished


def use(folder: Path) -> Path:
    """Continue a text without and with the adapter; then write one model of both, which servers such as vLLM load."""
    adapter = FinishedAdapter.read(folder)
    base = adapter.base_folder()
    print(continuations(adapter.on(base), load_tokenizer(str(base)), "Visit 7:", max_new_tokens=8))

    merged = folder / "merged"
    for line in merge(adapter, base, merged):
        print(line)
    return merged


if __name__ == "__main__":
    print("vllm serve", use(finished()))
