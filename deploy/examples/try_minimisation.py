"""What a site's rules leave of its records: python try_minimisation.py [SITE_FOLDER]; without one, of two notes here.

For whoever may read the records, at the site: what it prints is their text.
"""

import hmac
import secrets
import sys
from itertools import islice
from pathlib import Path

from grandrounds.client.minimisation.minimiser import Minimiser, texts_of
from grandrounds.client.minimisation.rules import Minimisation
from grandrounds.client.site.folder import SiteFolder
from grandrounds.common.data.record import Record
from grandrounds.common.data.records import named_rows, parsed
from grandrounds.common.sources.rows import Malformed
from grandrounds.common.sources.source import read_rows

RULES = {"shift_dates": True, "numbers": True, "replace": [{"pattern": r"Dr\. \w+", "with": "[DOCTOR]"}]}
NOTES = [
    {"patient_id": 7, "text": "Seen by Dr. Berg on 2024-03-07, MRN 00123456, BP 120/80."},
    {"patient_id": 7, "text": "Discharged on March 9, 2024; telephone 0151 234 5678."},
]
MOST = 20

if __name__ == "__main__":
    secret, rows = secrets.token_bytes(32), named_rows("notes", NOTES)
    minimiser = Minimiser(Minimisation.model_validate(RULES), lambda data: hmac.digest(secret, data, "sha256"))
    if len(sys.argv) > 1:
        site = SiteFolder(Path(sys.argv[1]))
        minimiser, rows = site.minimiser(), read_rows(site.settings().data)
    records = [
        Record(patient_id=one.patient_id, position=one.position, content=one.content)
        for one in islice(parsed(rows), MOST)
        if one.patient_id is not None and not isinstance(one.content, Malformed)
    ]
    for record in minimiser(records):
        print(f"{record.position}:", *(texts_of(record.content) or [record.content]), sep="\n")
