"""Results say from which versions and commit they are."""

import re

import torch

from pyro_vae.data import Data, Split
from pyro_vae.runs import origins


def test_provenance_names_versions_and_commit():
    found = origins.provenance()
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", found["torch"])
    assert found["git_commit"] is None or re.fullmatch(r"[0-9a-f]{40}\+?", found["git_commit"])


def test_the_commit_is_that_of_the_beginning_and_a_move_is_said(monkeypatch):
    assert "git_commit_at_the_end" not in origins.provenance()
    assert origins.installed("no-package-of-this-name") is None
    monkeypatch.setattr(origins, "commit_at_start", lambda: "a" * 40)
    monkeypatch.setattr(origins, "git_commit", lambda: "b" * 40 + "+")
    found = origins.provenance()
    assert (found["git_commit"], found["git_commit_at_the_end"]) == ("a" * 40, "b" * 40 + "+")


def test_the_digest_of_test_images_tells_them_from_others():
    first, other = torch.zeros(2, 4, 1, 8, 8, dtype=torch.uint8)
    other = other.clone()
    other[3, 0, 7, 7] = 255
    a, b, c = (Data("pictures", Split(first), Split(first), Split(test)) for test in (first, other, other.clone()))
    digests = [origins.describe(data)["test_digest"] for data in (a, b, c)]
    assert digests[0] != digests[1] == digests[2] and len(digests[0]) == 12
