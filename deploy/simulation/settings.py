"""The table ``[simulation]`` of a study file: what a simulation is told beside its study."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import Field, model_validator

from ...common.crypto.identity import Name
from ...common.model.devices import PROCESSORS, Devices
from ...common.schema import Help, Option, Section, Spelt, validated
from ...common.sources.identifiers import Similar
from ...common.sources.rows import Column
from ...common.sources.source import DataSource, Delimiter, Encoding
from ...common.study.study import MODEL, TRAINING
from ..builtin.patients import DemoOptions, Split

MAX_BUILTIN_SITES: Final = 50
UNITS_PER_STEP: Final = 24
DEFAULT_DROPOUT: Final = "hospital-2@3"
NO_DROPOUT: Final = "none"

_Files = dict[Name, Annotated[Path, Field(strict=False)]]


# Where evaluation records come from that a caller says nothing of.
UNDESCRIBED: Final = "records given to the simulation"
# In the place of a file of evaluation records: synthetic patients of a hospital that takes no part.
BUILTIN_EVALUATION: Final = Path("builtin")


class Simulation(Section):
    """The table ``[simulation]``. Without ``data``: ``builtin_sites`` built-in hospitals; paths are as given.

    ``table`` has the records of all sites, who have a value each of its column ``site_column``.
    ``nominal_units`` states those of the sites with data, where the study has no ``[[sites]]``; ``opted_out`` names a
    site's file of patients whose records are left out; ``similar_identifiers`` is as in a site's settings; all sites
    compute on the same ``devices``. ``columns``, ``encoding`` and ``delimiter`` are of sites with nothing but a path.
    """

    panel: ClassVar[str] = MODEL
    data: Annotated[
        dict[Name, DataSource],
        Option(
            "A site and its records: a file, folder or glob; or in a study file a table, as in site.toml",
            only="simulate",
            example='{ north = "north.jsonl", south = { files = ["notes/*.csv.gz"], patient = "mrn", text = "note" } }',
        ),
    ] = Field(default_factory=dict)
    table: Annotated[
        DataSource | None,
        Help("The records of all sites, told apart by site_column: --data without a site", example='"all.parquet"'),
    ] = None
    site_column: Annotated[
        Annotated[str, Spelt(r"^[^{}]+$", "needs a column's name")] | None,
        Option("A column by which one table of --data is that of several sites", only="simulate", metavar="COLUMN"),
    ] = None
    columns: Annotated[
        dict[Column, str],
        Option(
            "What a column of records is called in the files of --data",
            unset="as records have it",
            name="column",
            only="simulate",
            example='{ patient_id = "subject_id", text = "note" }',
        ),
    ] = Field(default_factory=dict)
    encoding: Annotated[Encoding, Option("Of the files of --data", only="simulate", metavar="NAME")] = "utf-8"
    delimiter: Annotated[
        Delimiter | None,
        Option("Between the columns of their CSV", unset="as their first lines show", only="simulate", example='";"'),
    ] = None
    nominal_units: Annotated[
        dict[Name, Annotated[int, Field(ge=1, le=10**9)]],
        Option("A site's number of units, public or coarse: one for each with data", only="simulate"),
    ] = Field(default_factory=dict)
    similar_identifiers: Annotated[
        Similar | None,
        Option("Patients whose ids differ in spelling alone", unset="refused", only="simulate", example='"same"'),
    ] = None
    opted_out: Annotated[
        _Files, Help("A site's patients who are left out, one identifier a line", example='{ north = "north.txt" }')
    ] = Field(default_factory=dict)
    evaluation: Annotated[
        Path | None,
        Option(
            "Records to evaluate on: public or synthetic only; builtin are synthetic patients",
            unset="builtin without data",
            only="simulate",
            example='"evaluation.jsonl"',
        ),
        Field(strict=False),
    ] = None
    builtin_sites: Annotated[
        int, Option("Built-in hospitals", name="sites", only="simulate", panel=""), Field(ge=3, le=MAX_BUILTIN_SITES)
    ] = 5
    builtin_patients: Annotated[
        int,
        Option("Patients of a built-in hospital", name="patients", only="simulate", panel=""),
        Field(ge=1, le=10**4),
    ] = DemoOptions().patients_per_hospital
    builtin_split: Annotated[
        Split,
        Option(
            "How they are spread: iid, or by age, so that hospitals differ", name="split", only="simulate", panel=""
        ),
    ] = "iid"
    builtin_seed: Annotated[
        int, Help("Which synthetic patients; nothing of privacy rests on it"), Field(ge=0, le=2**31)
    ] = DemoOptions().seed
    units_per_step: Annotated[
        int | None,
        Option(
            "Units in a step on average, over all sites",
            unset=f"{UNITS_PER_STEP}; half of all without data",
            name="batch",
            panel=TRAINING,
        ),
        Field(ge=1, le=10**9),
    ] = None
    dropouts: Annotated[
        tuple[str, ...] | None,
        Option(
            "A site that goes away in the middle of a round; or 'none'",
            unset=f"{DEFAULT_DROPOUT} without data",
            name="dropout",
            metavar="SITE@ROUND",
            only="simulate",
            panel="",
        ),
        Field(strict=False),
    ] = None
    devices: Annotated[
        Devices,
        Option(
            "Where the model computes: cpu, cuda, cuda:1; or several, each for a part of a step",
            name="device",
            metavar="NAME",
            only="simulate",
            panel=TRAINING,
        ),
    ] = (PROCESSORS,)

    @model_validator(mode="before")
    @classmethod
    def _one_table(cls, given: Any) -> Any:
        """Data that are of no site are the table of all."""
        is_table = isinstance(given, dict) and isinstance(given.get("data"), str | Path)
        return {**given, "table": given["data"], "data": {}} if is_table else given

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        if self.table is not None and self.site_column is None:
            raise ValueError("table: of whom its rows are, site_column says (--site-column); or --data names a site")
        if self.table is None and self.site_column is not None:
            raise ValueError("site_column: is of one table, which no site is named for: --data FILE")
        if self.table is not None and self.data:
            raise ValueError("table: has all sites' records, and there are data of sites beside it")
        return self

    @property
    def files(self) -> dict[str, DataSource]:
        """What each site's records are read from. Raises StudyError."""
        return {name: self.described(given) for name, given in self.data.items()}

    def described(self, given: DataSource) -> DataSource:
        """A source that is a path alone, with what is said of all such. Raises StudyError."""
        if given.model_fields_set != {"files"}:
            return given
        named = {"patient" if ours == "patient_id" else ours: theirs for ours, theirs in self.columns.items()}
        fields = {"files": given.files, "encoding": self.encoding, "delimiter": self.delimiter, **named}
        return validated(DataSource, fields, table="simulation.columns")
