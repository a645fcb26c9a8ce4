"""A study's first adapter, where it was made beforehand: a file, which the study names by its hash.

It is of public text, or what an earlier study left: then this one is its next stage, and each has a claim of its own.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np

from ..crypto.identity import Hex32, sha256
from ..errors import ModelError, StudyError
from ..model.adapter import Vector
from ..model.adapter_file import read_tensors
from ..model.language_model import LanguageModel
from ..schema import Section, Words, validated
from .study import Study

# What a study that is fixed has in place of the file's path.
BY_HASH: Final = "sha256:"

_WHY: Final = "every site begins with it, and it is what the study's sums are added to"
_FIX: Final = "make it with `grandrounds adapter prepare` or `adapter continue`, of the study as it is now"
_MADE: Final = "grandrounds"  # the one entry of the file's metadata, since several would stand in no fixed order


class Made(Section):
    """How a first adapter was made: on which base model (``model_folder_sha256``), of which text, called what.

    It is what the maker says: whose text it was, no hash can show. Of what an earlier study left, ``study_sha256`` is
    its manifest's hash, ``text`` its claim, and ``text_sha256`` the hash of the file that it left.
    """

    base_sha256: Hex32
    text: Words
    text_sha256: Hex32
    study_sha256: Hex32 | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class FirstAdapter:
    """All tensors that a study begins with, trained or not, by peft's names, in a file ``data`` of safetensors."""

    data: bytes
    tensors: Mapping[str, Vector]
    made: Made

    @classmethod
    def of(cls, tensors: Mapping[str, Vector], made: Made) -> Self:
        """The same tensors and words are the same bytes."""
        from safetensors.numpy import save

        text = json.dumps(made.model_dump(exclude_none=True), sort_keys=True)
        return cls(data=save(dict(tensors), metadata={_MADE: text}), tensors=tensors, made=made)

    @classmethod
    def read(cls, path: Path, *, expected: str | None = None) -> Self:
        """The adapter of a file, whose SHA-256 is the ``expected`` one, if one is. Raises StudyError."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _unfit(f"{path} cannot be read: {error.strerror}") from error
        if expected not in (None, sha256(data)):
            raise _unfit(f"{path} has the SHA-256 {sha256(data)}, and not {expected}")
        return cls.parse(data, called=str(path))

    @classmethod
    def parse(cls, data: bytes, *, called: str) -> Self:
        """The adapter of such bytes; ``called`` names them. Raises StudyError."""
        try:
            tensors = read_tensors(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            made = validated(Made, json.loads(header["__metadata__"][_MADE]))
        except (ModelError, StudyError, KeyError, TypeError, ValueError) as error:
            raise _unfit(f"{called} is no first adapter that this program made") from error
        if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
            raise _unfit(f"{called} has numbers that are not finite")
        return cls(data=data, tensors=tensors, made=made)

    @property
    def sha256(self) -> str:
        """The file's hash, by which a study names it."""
        return sha256(self.data)

    def put_on(self, model: LanguageModel) -> None:
        """Replace all of the model's adapter. Raises StudyError where it was made for another model or adapter."""
        if model.folder_sha256 != self.made.base_sha256:
            raise _unfit(
                f"the first adapter was made on another base model than the study's: its SHA-256 is "
                f"{self.made.base_sha256}, and not {model.folder_sha256}"
            )
        expected = {**dict(model.layout.shapes), **dict(model.frozen_layout.shapes)}
        found = {name: tensor.shape for name, tensor in self.tensors.items()}
        if found != expected:
            other = sorted(name for name in found | expected if found.get(name) != expected.get(name))
            raise _unfit(
                f"the first adapter was made for another adapter than the study's: {other[0]} has the shape "
                f"{_shape(found.get(other[0]))} in it, and {_shape(expected.get(other[0]))} in the study"
            )
        model.set_adapter(model.layout.flatten({name: self.tensors[name] for name, _ in model.layout.shapes}))
        model.set_frozen_adapter(
            model.frozen_layout.flatten({name: self.tensors[name] for name, _ in model.frozen_layout.shapes})
        )


def first_adapter_of(study: Study) -> FirstAdapter | None:
    """The first adapter of a study that names its file, if it does. Raises StudyError."""
    place = study.model.first_adapter
    if place is None:
        return None
    if place.startswith(BY_HASH):
        raise _unfit(f"the study names its first adapter by the hash {place} alone", fix="name its file instead")
    return FirstAdapter.read(Path(place))


def with_pinned_adapter(study: Study) -> Study:
    """The study with the hash of its first adapter in place of the file, and in words what that was made of.

    Raises StudyError.
    """
    place = study.model.first_adapter
    if place is None or place.startswith(BY_HASH):
        return study
    first = FirstAdapter.read(Path(place))
    made, said = first.made, study.model
    if said.first_study not in (None, made.study_sha256):
        raise _unfit(f"{place} is of {_origin(made)}, and the study names {said.first_study} as first_study")
    if made.study_sha256 is not None and said.first_text not in (None, made.text):
        raise _unfit(
            f"{place} is of {_origin(made)}, which first_text would call otherwise", fix="leave first_text out"
        )
    pinned = {
        "first_adapter": f"{BY_HASH}{first.sha256}",
        "first_text": said.first_text or made.text,
        "first_study": made.study_sha256,
    }
    return study.model_copy(update={"model": said.model_copy(update=pinned)})


def _origin(made: Made) -> str:
    return "public text" if made.study_sha256 is None else f"the study {made.study_sha256}"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))


def _unfit(what: str, *, fix: str = _FIX) -> StudyError:
    return StudyError(what, why=_WHY, fix=fix)
