"""The base model by the name that a study gives it: built in, a folder, or a hub's."""

from pathlib import Path

from ..common.model_folder import model_folder
from .demo_data import MODEL_HUB_NAME, demo_model, tiny_model

BUILTIN_MODEL = "builtin"
TINY_MODEL = "tiny"


def base_model_folder(name: str) -> Path:
    """The folder of ``builtin``, of ``tiny`` (random weights), or of a folder or hub name. Raises ModelError."""
    if name == BUILTIN_MODEL:
        return demo_model()
    if name == TINY_MODEL:
        return tiny_model()
    return model_folder(name)


def published_name(name: str) -> str:
    """What others find the model under."""
    return MODEL_HUB_NAME if name == BUILTIN_MODEL else name
