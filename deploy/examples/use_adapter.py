"""Use a study's adapter: python use_adapter.py [STUDY_FOLDER]; without a folder, study_in_python.py makes one.

It takes transformers and peft alone; what is imported of grandrounds says where the base model is.
"""

from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from grandrounds.common.study.manifest import Manifest
from grandrounds.deploy.builtin.models import base_model_folder
from grandrounds.deploy.examples.study_in_python import finished


def use(folder: Path) -> Path:
    """Continue a text with base and adapter; then write both as one model, which servers such as vLLM load."""
    manifest = Manifest.model_validate_json((folder / "study.json").read_bytes())
    base = base_model_folder(manifest.study.model.name)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder / "adapter")

    prompt = tokenizer("Visit 7:", return_tensors="pt")
    print(tokenizer.decode(model.generate(**prompt, max_new_tokens=8, do_sample=False)[0]))

    merged = folder / "merged"
    model.merge_and_unload().save_pretrained(merged)
    tokenizer.save_pretrained(merged)
    return merged


if __name__ == "__main__":
    print("vllm serve", use(finished()))
