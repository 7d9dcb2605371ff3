"""The page of the parts is complete."""

from pyro_vae.config import ESTIMATOR, SLOTS
from pyro_vae.data.sets import SETS
from pyro_vae.runs.page import parts_page


def test_the_page_of_the_parts_names_all_of_them():
    page = parts_page()
    for slot in (*SLOTS, ESTIMATOR):
        assert f"`{slot.flag}`" in page
        for part in slot.parts():
            assert f"| `{part.word}`" in page and part.help in page
            assert all(f"`{option.flag}`" in page for option in part.options)
    assert all(f"| `{known.word}` | {known.help} |" in page for known in SETS.values())
