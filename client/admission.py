"""What a site checks of a manifest by itself before it takes part: nothing is taken on the server's word."""

from ..common.code_pin import check_code
from ..common.errors import StudyError
from ..common.identity import Identity
from ..common.language_model import LanguageModel
from ..common.manifest import Manifest

_WHY = "the study's claim holds only at sites that run exactly what its manifest says"


def admit(manifest: Manifest, *, name: str, identity: Identity, model: LanguageModel, model_sha256: str) -> None:
    """Raises StudyError unless this site can run the study as its manifest says.

    ``model_sha256`` is the hash of the folder that ``model`` was loaded from.
    """
    _require(manifest.site_keys.get(name) == identity.public_key, f"the manifest has another key for {name}")
    check_code(version=manifest.package_version, sha256=manifest.package_sha256)
    _require(manifest.model_sha256 == model_sha256, "the base model's files are not those of the study")
    differences = model.differences_from(manifest.study.model.lora)
    _require(not differences, f"the adapter is not the study's: {'; '.join(differences[:3])}")
    _require(manifest.dimension == model.layout.dimension, "the adapter has another size than the study's")
    _require(
        manifest.frozen_adapter_sha256 == model.frozen_adapter_sha256, "the frozen adapter is another than the study's"
    )


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise StudyError(otherwise, why=_WHY, fix="ask the study's author for a manifest that fits this site")
