"""What a site's prepared records have to be before a study trains on them."""

import numpy as np
import pytest

from grandrounds.client.site.site_records import SiteRecords
from grandrounds.common.data.blocks import Block
from grandrounds.common.data.preparation import Prepared
from grandrounds.common.data.quarantine import Quarantine
from grandrounds.common.data.store import Store
from grandrounds.common.data.windows import Window
from grandrounds.common.errors import DataError, ModelError, StorageError


def records_of(*learnt):
    """One patient's windows of the tokens 5, 6, 7, in each of which these spans are learnt."""
    windows = [[Window(tokens=np.array([5, 6, 7], dtype=np.int32), learnt=spans)] for spans in learnt]
    units = np.array([0, len(windows)])
    store = Store(block=Block.of(windows, np.uint16), units=units, patients=["a"])
    return SiteRecords.of(Prepared(store=store, quarantine=Quarantine(), cut=0, lost=0), None)


def units_of(records):
    return records.store.select("patient", records.kept, max_tokens=4)


def test_records_in_which_nothing_can_be_learnt_are_refused():
    silent = records_of((), ((0, 1),))
    with pytest.raises(DataError, match="none of the 2 windows"):
        silent.check_learnable(units_of(silent))
    one = records_of((), ((0, 1),), ((1, 3),))
    one.check_learnable(units_of(one))
    assert (units_of(one).windows, units_of(one).learnable) == (3, 1)


def test_their_windows_have_the_lengths_of_those_who_are_read(tmp_path):
    def window(size):
        return Window(tokens=np.arange(size, dtype=np.int32), learnt=((0, size),))

    records = [[window(3)], [window(9), window(4)], [window(5)], [window(8), window(2)]]
    store = Store(block=Block.of(records, np.uint16), units=np.array([0, 1, 3, 4]), patients=["a", "b", "c"])
    (tmp_path / "opted-out.txt").write_text("a\n")
    read = SiteRecords.of(Prepared(store=store, quarantine=Quarantine(), cut=0, lost=0), tmp_path / "opted-out.txt")
    assert read.lengths.tolist() == [9, 4, 5, 8, 2]
    assert [len(content) for content in read.contents()] == [2 * 13, 2 * 5, 2 * 10], "in the order of their contents"


def test_tokens_that_no_preparation_leaves_are_damage_of_the_disk():
    records_of(((0, 3),)).check_tokens(stated=8, size=8)
    with pytest.raises(StorageError, match="prepared records are damaged") as refused:
        records_of(((0, 3),)).check_tokens(stated=7, size=7)
    assert "noise alone" in refused.value.why and "prepare --again" in refused.value.fix


@pytest.mark.parametrize("stated", [None, 9])
def test_tokens_that_the_model_does_not_have_are_refused_where_its_configuration_does_not_say(stated):
    records_of(((0, 3),)).check_tokens(stated=stated, size=8)
    with pytest.raises(ModelError, match="of which there are 7"):
        records_of(((0, 3),)).check_tokens(stated=stated, size=7)
