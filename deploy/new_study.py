"""The manifest of a new study: what people wrote, completed, with the keys and hashes that its sites sign."""

import secrets
from collections.abc import Mapping

from .. import __version__
from ..common.language_model import LanguageModel
from ..common.manifest import Manifest
from ..common.package_hash import running_sha256
from ..common.study import Study, validated


def new_manifest(
    study: Study,
    *,
    site_keys: Mapping[str, str],
    server_key: str,
    model: LanguageModel,
    model_sha256: str,
    app_sha256: str | None = None,
) -> Manifest:
    """The manifest of a complete ``study`` on ``model``, from files of that hash, for the program that runs.

    Raises StudyError.
    """
    return validated(
        Manifest,
        {
            "study_id": secrets.token_hex(32),
            "study": study,
            "site_keys": dict(site_keys),
            "server_key": server_key,
            "dimension": model.layout.dimension,
            "model_sha256": model_sha256,
            "frozen_adapter_sha256": model.frozen_adapter_sha256,
            "package_version": __version__,
            "package_sha256": running_sha256(),
            "app_sha256": app_sha256,
        },
    )
