"""A study's folder: manifest, checkpoints, adapter and report, each written whole or not at all."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..common.errors import StorageError
from ..common.files import make_folder, rename_folder, write_atomically
from ..common.identity import canonical_json
from ..common.language_model import LanguageModel
from ..common.manifest import Manifest
from ..server.checkpoint import Checkpoint
from ..server.report import render_json
from ..server.report_page import render_html, render_model_card


@dataclass(frozen=True)
class StudyFolder:
    """``study.json``, ``checkpoints/``, ``adapter/``, ``report.json``, ``report.html``, ``sites/`` below ``path``."""

    path: Path

    @classmethod
    def create(cls, path: Path) -> "StudyFolder":
        """Claim a new or empty folder. Raises StorageError for one with content, or that cannot be written."""
        try:
            make_folder(path)
            taken = any(path.iterdir())
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise StorageError(
                f"{path} cannot be used: {error.strerror}",
                why="the adapter and its report are written there",
                fix="choose another folder with --output",
            ) from error
        if taken:
            raise StorageError(
                f"{path} is not empty",
                why="results of another study would be mixed with this one's or lost",
                fix="choose another folder with --output, or move that one away",
            )
        return cls(path)

    def site_state(self, site: str) -> Path:
        """Where a simulated site keeps what a real one keeps at its hospital."""
        return self.path / "sites" / site

    def save_manifest(self, manifest: Manifest) -> None:
        """Write the study's manifest in its canonical form."""
        write_atomically(self.path / "study.json", canonical_json(manifest.model_dump(mode="json")))

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write the state after a round."""
        checkpoint.save(self.path / "checkpoints")

    def save_results(self, report: dict[str, Any], model: LanguageModel, *, base_model: str) -> None:
        """Write the report and the adapter that ``model`` holds, with a card that carries the claim."""
        self._save_adapter(model, base_model, render_model_card(report))
        write_atomically(self.path / "report.html", render_html(report).encode())
        write_atomically(self.path / "report.json", render_json(report))

    def _save_adapter(self, model: LanguageModel, base_model: str, card: str) -> None:
        adapter = self.path / "adapter"
        try:
            with tempfile.TemporaryDirectory(dir=self.path, prefix=".adapter-") as folder:
                whole = Path(folder) / "adapter"
                model.export(whole, base_model=base_model)
                write_atomically(whole / "README.md", card.encode())
                rename_folder(whole, adapter)
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"{adapter} cannot be written: {getattr(error, 'strerror', None) or error}",
                why="it is the study's result",
                fix="free space; the checkpoints hold the trained adapter",
            ) from error
