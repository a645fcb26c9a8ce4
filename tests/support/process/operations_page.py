"""The table of what leaves a hospital, as OPERATIONS.md has it."""

import re

from support.places import ROOT

PAGE = ROOT / "deploy" / "OPERATIONS.md"
ROW = re.compile(r"^\| ([a-z-]+) \| ([\d.]+) kB(?: and (?:\d or )?(\d+) B for each ([a-z ]+?))? \|", re.MULTILINE)


def largest_messages(*, sites, dimension):
    """The size in bytes that no message of a kind exceeds, by kind."""
    times = {"": 0, "other site": sites - 1, "site": sites, "trained number": dimension}
    table = PAGE.read_text(encoding="utf-8").split("## What leaves a hospital")[1].split("\n## ")[0]
    return {
        name: 1000 * float(fixed) + int(each or 0) * times[what or ""] for name, fixed, each, what in ROW.findall(table)
    }
