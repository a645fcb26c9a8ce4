"""The base model of a study and the adapter on it, as people write them."""

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from ..crypto.identity import Hex32
from ..model.base_model import Precision
from ..model.lora import FirstA, Kind, Lora
from ..model.target_layers import ALL_LINEAR
from ..schema import LINE, Help, Option, Section, Spelt, Words
from .layers import Alpha, Block, LayerName, Rank, TargetModules

ModelName = Annotated[str, Spelt(LINE, "needs a folder, a hub's name or builtin, in one line", 512)]
FirstFile = Annotated[str, Spelt(LINE, "needs a file of `grandrounds adapter prepare`, in one line", 512)]


# Tuples are not strict: TOML and JSON have lists alone. What stands in them is as strict as the rest.
class ModelSection(Section):
    """The base model and the adapter trained on it."""

    panel: ClassVar[str] = "Data and model"
    name: Annotated[
        ModelName,
        Option("Folder or hub name of a causal language model; builtin is SmolLM2-135M-Instruct", name="model"),
    ] = "builtin"
    precision: Annotated[
        Precision,
        Option("Of the base model: bfloat16 takes half the memory of float32, nf4 less than a quarter"),
    ] = "float32"
    adapter: Annotated[
        Kind,
        Help("ffa: A is frozen, B is trained; lora: both are; core: a matrix between the two, of a first_adapter"),
    ] = "ffa"
    a_init: Annotated[FirstA, Help("How A is drawn: uniform, or its rows orthonormal, of the same norm on average")] = (
        "uniform"
    )
    first_adapter: Annotated[
        FirstFile | None,
        Option(
            "File to begin with: A and B of public text (`adapter prepare`), or a study's (`adapter continue`)",
            metavar="FILE",
            unset="drawn",
            example='"first.safetensors"',
        ),
    ] = None
    first_text: Annotated[
        Words | None,
        Help("What that text is; if left out, what the file states", example='"an ontology of diseases"'),
    ] = None
    first_study: Annotated[
        Hex32 | None,
        Help("Hash of the manifest of the study that it is of; if left out, what the file states", example='"0123…"'),
    ] = None
    target_modules: Annotated[
        TargetModules,
        Option(
            f"Layers that get an adapter, by the last part of their name; {ALL_LINEAR}; or a pattern of whole names",
            metavar="NAME,NAME",
        ),
    ] = ("v_proj",)
    rank: Annotated[Rank, Option("Rank of the adapter")] = 4
    alpha: Annotated[Alpha, Help("The adapter's output is scaled by alpha / rank")] = 16.0
    rank_pattern: Annotated[
        dict[LayerName, Rank], Help("The rank where it is another", example="{ o_proj = 8 }"), Field(max_length=64)
    ] = Field(default_factory=dict)
    alpha_pattern: Annotated[
        dict[LayerName, Alpha], Help("Alpha where it is another", example="{ o_proj = 32.0 }"), Field(max_length=64)
    ] = Field(default_factory=dict)
    rslora: Annotated[bool, Help("alpha / √rank takes the place of alpha / rank (rsLoRA)")] = False
    dora: Annotated[bool, Help("Each row's magnitude is trained by itself, too (DoRA)")] = False
    layers: Annotated[
        tuple[Block, Block] | None,
        Help(
            "The first and the last block that get one, from 0; upper ones alone cost less",
            example="[12, 23]",
            unset="all",
        ),
        Field(strict=False),
    ] = None
    license: Annotated[
        Words | None,
        Help("The base model's; if left out, what its folder's README.md states", example='"apache-2.0"'),
    ] = None

    @property
    def lora(self) -> Lora:
        """The adapter, as the language model is loaded with it."""
        return Lora(
            kind=self.adapter,
            target_modules=self.target_modules,
            layers=self.layers,
            rank=self.rank,
            alpha=self.alpha,
            rank_pattern=self.rank_pattern,
            alpha_pattern=self.alpha_pattern,
            rslora=self.rslora,
            dora=self.dora,
            a_init=self.a_init,
        )

    @model_validator(mode="after")
    def _begins(self) -> Self:
        if self.first_adapter is not None and self.a_init != "uniform":
            raise ValueError("a_init: A is that of first_adapter, and none is drawn; leave one of the two out")
        if self.first_study is not None and self.first_adapter is None:
            raise ValueError("first_study: the study of a first_adapter, and none is named")
        if self.adapter == "core" and self.first_adapter is None:
            raise ValueError("first_adapter: a core adapter has A and B of public text; name a file with them")
        if self.adapter == "core" and self.dora:
            raise ValueError("dora: it is not built for a core adapter, of which nothing but the core is trained")
        return self
