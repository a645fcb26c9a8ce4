"""The site operator's road: what cannot be used is refused with a diagnosis."""

import pytest

from grandrounds.client.site import SiteFolder
from grandrounds.common.errors import StorageError
from grandrounds.deploy import site_operator


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be used"):
        site_operator.init(SiteFolder(tmp_path / "file" / "site"), name="north", data=tmp_path / "d", model="tiny")
