"""The command line of data sets: what it refuses."""

import pytest

from pyro_vae.runs import data

pytestmark = pytest.mark.usefixtures("searched")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mnsit"], "error: mnsit: no such data set, folder or file; did you mean mnist?\n"),
        (["quux"], "wanted one of mnist, fashion, "),
        (["digits", "--size", "4"], "error: size: wanted none"),
        (["digits", "--size", "1", "2", "3"], "error: --size: wanted a side, or height and width"),
    ],
)
def test_what_is_no_data_set_is_an_error(capsys, words, message):
    assert data.main(words) == 1
    assert message in capsys.readouterr().err


def test_an_empty_folder_and_one_of_tables_say_what_to_do(capsys, tmp_path):
    (tmp_path / "pets.csv").write_text("a,b\n1,2\n")
    assert data.main([str(tmp_path)]) == 1
    assert f"write Data.from_frame(pandas.read_csv('{tmp_path / 'pets.csv'}'))" in capsys.readouterr().err
