"""The campaign: a short one each time, the whole one when asked for (`-m slow`)."""

from pathlib import Path

import pytest

from tests.campaign.__main__ import FULL, SHORT, campaign


@pytest.mark.whole
def test_a_short_campaign_holds(tmp_path: Path) -> None:
    tally = campaign(tmp_path, SHORT, 11, "", is_full=False)
    assert tally.fell == []
    tried = {name: row.tried for name, row in tally.rows.items()}
    assert tried == {name: row.held for name, row in tally.rows.items()}
    assert tried["kill -9 encode"] >= 1
    assert tried["kill -9 index"] >= 1
    assert tried["kill -9 compact"] >= 1
    assert (tried["bit flips, store"], tried["bit flips, index"]) == (6, 3)
    assert tried["full disk, index"] == 1
    assert tried["mutated images"] == 250
    assert tried["writers and readers together"] == 6


@pytest.mark.slow
def test_the_whole_campaign_holds(tmp_path: Path) -> None:
    tally = campaign(tmp_path, FULL, 11, "", is_full=True)
    assert sum(row.tried for row in tally.rows.values()) > 5_800
    assert tally.fell == []
