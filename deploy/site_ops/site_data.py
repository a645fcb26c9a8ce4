"""What a site's records are read from, as its operator gives it to `init`, and as site.toml says it."""

from pathlib import Path
from typing import Any, Final

from ...client.site.folder import SiteSettings
from ...common.schema import Section, as_toml, read_toml, validated
from ...common.sources.source import DataSource

_EXAMPLES: Final = """
# What one path cannot say stands in a table here, in the place of `data` above (SOURCES.md has all that one may say):
# [data]
# files = ["exports/*.csv.gz"]    # files, globs and folders: JSON lines, CSV, Parquet, also packed by gzip or zstd
# patient = "mrn"                 # what the columns are called
# text = "note_text"              # or: prompt = "Findings: {findings}" with completion = "impression"
# where = { status = "final" }    # the rows that are read
# crosswalk = "merged.csv"        # which identifiers (from) are which patient's (to)
# As hospitals have them, without a word of columns:
#   FHIR:           format = "fhir", files = ["export"]
#   OMOP CDM:       omop = { url = "postgresql://reader@warehouse/cdm", schema = "cdm" }, or format = "omop" with files
#   MIMIC-IV-Note:  format = "mimic-iv-note", files = ["mimic-iv-note/2.2/note"]
"""
_WHY: Final = "it says what records the site trains on"


class SiteData(Section):
    """The records of a site, and those that are held out."""

    data: DataSource
    held_out: DataSource | None = None

    @classmethod
    def given(cls, data: Path) -> "SiteData":
        """What ``--data`` of init names: records, or a TOML file with the tables that site.toml has.

        Paths start from where it is given, or from the TOML file's folder. Raises StudyError.
        """
        if data.suffix.lower() != ".toml":
            return cls(data=DataSource.of(data).below(Path.cwd()))
        given, folder = validated(cls, read_toml(data, why=_WHY), source=data, why=_WHY), data.absolute().parent
        return cls(data=given.data.below(folder), held_out=given.held_out and given.held_out.below(folder))


def data_toml(settings: SiteSettings) -> dict[str, str]:
    """The parts of site.toml that say it: the lines ``data`` and ``held_out``, and ``tables`` at its end."""
    held_out = settings.held_out or DataSource.of("held-out.jsonl")
    written: dict[str, Any] = {
        name: source.model_dump(by_alias=True) for name, source in (("data", settings.data), ("held_out", held_out))
    }
    lines = {name: f"{name} = {as_toml(said)}" for name, said in written.items()}
    tables = ""
    for name, said in written.items():
        if isinstance(said, dict):
            lines[name] = f"# {name}: see the end"
            fields = (f"{field} = {as_toml(value)}\n" for field, value in said.items())
            tables += f"\n[{name}]\n{''.join(fields)}"
    if settings.held_out is None:
        lines["held_out"] = f"# {lines['held_out']}"
    return {**lines, "tables": tables or _EXAMPLES}
