"""The page of all parts by their words: ``python -m pyro_vae.runs.page`` prints it."""

from pyro_vae.config import ESTIMATOR, GUIDE, LIKELIHOOD, NETWORK, PRIOR
from pyro_vae.data import sets
from pyro_vae.records import markdown


def parts_page() -> str:
    """Return a page in Markdown of all parts and data sets, with their options.

    ``python -m pyro_vae.runs.page`` prints it.
    """
    titles = {"likelihood": LIKELIHOOD, "prior": PRIOR, "guide": GUIDE, "network": NETWORK, "estimator": ESTIMATOR}
    tables = ["\n".join(markdown(slot, title)) for title, slot in titles.items()]
    rows = [f"| `{known.word}` | {known.help} |" for known in sets.SETS.values()]
    sets_table = "\n".join(["| data set (`--dataset`) | |", "| --- | --- |", *rows])
    return "\n\n".join(["# Parts by their words", *tables, sets_table]) + "\n"


if __name__ == "__main__":
    print(parts_page(), end="")
