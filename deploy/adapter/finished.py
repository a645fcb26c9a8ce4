"""A finished adapter, shown to be its study's before anything is made of it."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from ...common.crypto.identity import sha256
from ...common.errors import ModelError, OtherProgramError, StorageError, StudyError
from ...common.model.adapter import AdapterLayout, Vector
from ...common.model.adapter_config import adapter_config
from ...common.model.adapter_file import read_tensors, vector_of
from ...common.model.base_folder import published_name
from ...common.model.base_model import Precision
from ...common.model.language_model import LanguageModel
from ...common.model.lora import Lora
from ...common.study.artefacts import ADAPTER, CONFIG, MANIFEST, WEIGHTS
from ...server.report.claim import NO_PRIVACY
from ..builtin.models import base_model_folder
from ..verify.adapter_claims import ADAPTER_CLAIMS
from ..verify.case import Case
from ..verify.claims import verdict_on
from ..verify.established import require_established
from ..verify.evidence import read_evidence
from ..verify.verdict import Status

# What makes an adapter its study's, by the server's word; what the sites signed, and what it cost: ``require_claim``.
_CLAIMS: Final = ("ledger", "manifest", *(claim.name for claim in ADAPTER_CLAIMS))
UNVOUCHED: Final = (
    "Nobody vouched for the study’s manifest (--manifest-hash was not given): anybody can make a study that is whole, "
    "with keys of their own, and its claim is worth nothing. Ask a site for the hash of the manifest that it signed, "
    "and compare it with this one’s."
)
_SETTING: Final = "--base"
_NO_LICENSE: Final = "which its publisher states"


@dataclass(frozen=True, kw_only=True, eq=False)
class FinishedAdapter:
    """An adapter's numbers, and how they are used.

    Attributes:
        tensors: all of them, by peft's names.
        lora: rank, scaling and layers; of kind ``lora``, since nothing of it is trained any more.
        base: the base model, as the study names it or, where there is none, the adapter's configuration.
        precision: in which the base model was held while it was trained; float32 where no study states it.
        base_sha256: of the base model's folder (``model_folder_sha256``); None where no study states it.
        published: what the base model is called elsewhere.
        license: the base model's, as its publisher states it, or words for none known.
        origin: whose adapter it is, in words; that it has no privacy, if it has none.
        weights_sha256: of the file of its numbers.
        case: the study that it was held against; None where there is none beside it.
    """

    tensors: Mapping[str, Vector]
    lora: Lora
    base: str
    precision: Precision
    base_sha256: str | None
    published: str
    license: str
    origin: str
    weights_sha256: str
    case: Case | None

    @classmethod
    def read(cls, folder: Path, *, manifest_hash: str | None = None) -> Self:
        """The adapter of a study's folder, verified, or that of a folder with an adapter alone.

        ``manifest_hash`` is the SHA-256 of the study's manifest, as somebody else vouches for it. Raises StorageError
        where there is neither; StudyError where it is not what the study left, or that of another study; ModelError
        where it is no adapter that a study could leave; OtherProgramError where the study is another version's.
        """
        if folder.name == ADAPTER and (folder.parent / MANIFEST).exists():
            return cls._of_study(folder.parent, manifest_hash)
        if (folder / MANIFEST).exists():
            return cls._of_study(folder, manifest_hash)
        if manifest_hash is not None and folder.is_dir():
            raise StudyError(
                f"no study is in {folder}, or beside it",
                why="whose adapter it is would be shown by the manifest that has the given hash",
                fix=f"name the study's folder, with its {MANIFEST}; or leave out --manifest-hash",
            )
        if (folder / Path(CONFIG).name).exists():
            return cls._alone(folder)
        raise StorageError(
            f"{folder} has no adapter: there is neither a study's {MANIFEST} in it nor an {Path(CONFIG).name}"
            if folder.is_dir()
            else f"{folder} is no folder",
            why="the adapter is read from there, and compared with the study's ledger where that lies beside it",
            fix="name the folder that `grandrounds simulate` wrote, that `grandrounds client fetch --output` or the "
            f"server's operator gave you, or its {ADAPTER}/",
        )

    @classmethod
    def _of_study(cls, folder: Path, manifest_hash: str | None) -> Self:
        case = Case(evidence=read_evidence(folder), manifest_hash=manifest_hash)
        case.check_form()
        for finding in verdict_on(case, *_CLAIMS, *(["authorship"] if manifest_hash is not None else [])).findings:
            if finding.status is not Status.AGREES:
                raise StudyError(
                    f"the adapter in {folder} is not shown to be its study's. {finding.claim}: {finding.detail}",
                    why="another adapter may do anything, and no claim of privacy covers it",
                    fix=f"get the study's folder anew, and see what `grandrounds verify {folder}` says of it",
                )
        manifest, weights = case.verified.manifest, case.result(WEIGHTS)
        return cls(
            tensors=read_tensors(weights),
            lora=replace(manifest.study.model.lora, kind="lora"),
            base=manifest.study.model.name,
            precision=manifest.study.model.precision,
            base_sha256=manifest.model_sha256,
            published=published_name(manifest.study.model.name),
            license=manifest.study.model.license or _NO_LICENSE,
            origin=f"what study {manifest.study_id[:12]} left, by its manifest {manifest.sha256}"
            + ("" if manifest.study.privacy.noise else f". {NO_PRIVACY}"),
            weights_sha256=sha256(weights),
            case=case,
        )

    @classmethod
    def _alone(cls, folder: Path) -> Self:
        try:
            text = (folder / Path(CONFIG).name).read_bytes()
            weights = (folder / Path(WEIGHTS).name).read_bytes()
            tensors = read_tensors(weights)
        except OSError as error:
            raise StorageError(
                f"{error.filename} cannot be read: {error.strerror}",
                why="an adapter is a file of numbers, and one that says how they are used",
                fix="get the adapter's folder anew, whole",
            ) from error
        try:
            config = json.loads(text)
            base, targets = str(config["base_model_name_or_path"]), tuple(map(str, config["target_modules"]))
            numbers = [int(number) for number in config.get("layers_to_transform", [])]
            ranks, alphas = (dict(config.get(f"{name}_pattern", {})) for name in ("rank", "alpha"))
            lora = Lora(
                target_modules=targets,
                layers=(numbers[0], numbers[-1]) if numbers else None,
                kind="lora",
                rank=int(config["r"]),
                alpha=float(config["lora_alpha"]),
                rank_pattern={str(layer): int(rank) for layer, rank in ranks.items()},
                alpha_pattern={str(layer): float(alpha) for layer, alpha in alphas.items()},
                rslora=bool(config.get("use_rslora", False)),
                dora=bool(config.get("use_dora", False)),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise _no_study_s(folder) from error
        # Whatever else peft could be told there would make another adapter of the same numbers.
        rendered = [
            adapter_config(lora, base_model=base, fan_in_fan_out=each, tensors=tensors) for each in (False, True)
        ]
        if text not in rendered:
            raise _no_study_s(folder)
        origin = "an adapter with no study beside it: nothing shows whose it is, nor that the base model is its own"
        return cls(
            tensors=tensors,
            lora=lora,
            base=base,
            precision="float32",
            base_sha256=None,
            published=base,
            license=_NO_LICENSE,
            origin=f"{origin}, nor that it was trained on it in float32, as is taken for granted",
            weights_sha256=sha256(weights),
            case=None,
        )

    def require_claim(self) -> None:
        """Raises StudyError or OtherProgramError where a study is beside the adapter whose claim is not established.

        All of it has to be, as ``verify`` has it: until enough sites signed the end, which adapter the last round left
        is the server's word alone. Who vouched for the manifest is ``case``'s to say.
        """
        if self.case is not None:
            require_established(
                self.case,
                what="the claim of the adapter's study",
                why="what is made of the adapter would carry it on, to people who cannot see the study",
            )

    @functools.cached_property
    def privacy(self) -> str:
        """What its study claims of it and of what is made of it, in sentences; or that, and why, nothing is claimed."""
        if self.case is None:
            return "Nothing shows whose adapter it is: no claim of privacy goes with it."
        if not self.case.verified.manifest.study.privacy.noise:
            return NO_PRIVACY
        try:
            self.require_claim()
        except (StudyError, OtherProgramError) as error:
            return f"No claim of privacy goes with it: {error.what}."
        report = self.case.report
        before, unvouched = report["training"]["began_with"], self.case.manifest_hash is None
        return " ".join([report["claim"], *([before] if before else []), *([UNVOUCHED] if unvouched else [])])

    def base_folder(self, given: str | None = None) -> Path:
        """The folder of the base model: ``given`` as a folder or hub name, or where the study has it."""
        try:
            return base_model_folder(given or self.base)
        except ModelError as error:
            if given is not None:
                raise
            raise ModelError(
                error.what, why=error.why, fix=f"name its folder on this machine with --base; or {error.fix}"
            ) from error

    def on(self, base: Path) -> LanguageModel:
        """The base model of a folder with this adapter on it, as it was trained, on processors.

        The folder's hash is compared before anything is loaded from it. Raises StudyError where it is not the study's,
        ModelError where the adapter does not fit or the model cannot be loaded.
        """
        return self._attached(
            LanguageModel.load(
                base, self.lora, seed=0, precision=self.precision, sha256=self.base_sha256, setting=_SETTING
            ),
            base,
        )

    def widened_on(self, base: Path) -> LanguageModel:
        """As ``on``, with the same numbers held in float32: what the adapter can be merged into exactly."""
        return self._attached(
            LanguageModel.load_widened(
                base, self.lora, seed=0, precision=self.precision, sha256=self.base_sha256, setting=_SETTING
            ),
            base,
        )

    def _attached(self, model: LanguageModel, base: Path) -> LanguageModel:
        layout = AdapterLayout.of({name: tensor.shape for name, tensor in self.tensors.items()})
        if layout != model.layout:
            raise ModelError(
                f"the adapter does not fit the model in {base}: its tensors have other names or shapes",
                why="it was trained on another base model, and means nothing on this one",
                fix=f"name the folder of {self.published} with --base",
            )
        model.set_adapter(vector_of(self.tensors, kind=self.lora.kind, trained=True))
        return model


def _no_study_s(folder: Path) -> ModelError:
    return ModelError(
        f"{folder / Path(CONFIG).name} is not as a study writes it",
        why="peft makes other adapters of the same numbers under other settings",
        fix="get the adapter's folder anew; one that other programs made is for peft itself to load",
    )
