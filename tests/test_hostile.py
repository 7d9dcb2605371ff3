"""Whatever a file or a network holds: an error that says so, or finite numbers; never a crash, never code run."""

import gzip
import json
import shutil
import struct
import warnings

import hypothesis.extra.numpy as numpy_strategies
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from data_files import idx_bytes, mat_bytes, npy_bytes
from hypothesis import HealthCheck, example, given, settings
from saved_programs import FIXTURE
from torch import nn

from pyro_vae import VAE, guides, likelihoods, load_vae, networks, priors
from pyro_vae.config import LIKELIHOODS, SETTINGS, PartSettings
from pyro_vae.data import formats
from pyro_vae.data import sets as D
from pyro_vae.files import CheckpointError
from pyro_vae.saved import contents
from pyro_vae.saved.old_runs import OLD_PARAMETERS as PARAMETERS
from pyro_vae.saved.programs import encoded_program
from pyro_vae.training.checkpoint import decode, encode

CHECKPOINT = encode({"step": 3, "loc": torch.arange(5.0), "rows": [{"bound": -1.0}]})
QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
FAMILIES = {word: {"lik": word, "bins": 5} for word in LIKELIHOODS} | {"intensity": {"binarize": "intensity"}}


IMAGES = idx_bytes(np.arange(3 * 28 * 28).astype(np.uint8).reshape(3, 28, 28))


@st.composite
def damaged(draw, content):
    """The content cut off, with bytes changed, or with bytes put in."""
    at = draw(st.integers(0, len(content) - 1))
    kind = draw(st.sampled_from(["cut", "change", "insert"]))
    if kind == "cut":
        return content[:at]
    new = draw(st.binary(min_size=1, max_size=8))
    changed = content[:at] + new + content[at + (len(new) if kind == "change" else 0) :]
    return changed if changed != content else content + b"\0"


def loaded_idx(tmp_path, content, name="images"):
    path = tmp_path / name
    path.write_bytes(content)
    return formats.read_idx(path.with_suffix(""), dims=3)


@pytest.mark.slow
@QUICK
@given(damaged(IMAGES) | st.binary(max_size=100))
def test_any_idx_file_is_images_or_an_error(tmp_path, content):
    try:
        assert loaded_idx(tmp_path, content).dtype == torch.uint8
    except D.DataError as error:
        assert str(tmp_path) in str(error) and "remove it" in str(error)


@pytest.mark.parametrize("size", [0, 1 << 16, (1 << 32) - 1])
def test_an_idx_file_may_declare_any_size(tmp_path, size):
    content = struct.pack(">4B3I", 0, 0, 8, 3, size, size, size) + bytes(100)
    with pytest.raises(D.DataError, match="the header declares"):
        loaded_idx(tmp_path, content)


def test_a_small_archive_of_a_large_file_is_refused_in_little_memory(tmp_path):
    bomb = gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, 1 << 14, 28, 28) + bytes(1 << 25))
    with pytest.raises(D.DataError, match="the header declares 12,845,056 bytes, it holds more"):
        loaded_idx(tmp_path, bomb, "images.gz")


@QUICK
@given(damaged(gzip.compress(IMAGES, mtime=0)))
def test_any_idx_archive_is_images_or_an_error(tmp_path, content):
    try:
        assert loaded_idx(tmp_path, content, "images.gz").dtype == torch.uint8
    except D.DataError as error:
        assert "remove it" in str(error)


def own_images(tmp_path, **contents):
    """A folder of images whose files have these contents."""
    for name, content in {**dict.fromkeys(SPLITS, npy_bytes(OWN)), **contents}.items():
        (tmp_path / f"{name}.npy").write_bytes(content)
    return tmp_path


SPLITS = ("train", "valid", "test")
OWN = np.arange(256, dtype=np.uint8).reshape(4, 1, 8, 8)
ARRAYS = numpy_strategies.arrays(
    numpy_strategies.scalar_dtypes(), numpy_strategies.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5)
)


@QUICK
@given(damaged(npy_bytes(OWN)) | st.binary(max_size=200))
def test_any_file_of_a_folder_is_images_or_an_error(tmp_path, content):
    folder = own_images(tmp_path, train=content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", D.DataWarning)  # a changed header may well give dark images
        try:
            assert D.load(folder).train.images.dtype == torch.uint8
        except D.DataError as error:
            assert str(tmp_path) in str(error)


@pytest.mark.slow
@QUICK
@given(ARRAYS)
def test_any_array_is_these_images_or_an_error(tmp_path, array):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", D.DataWarning)
        for made, refused in (
            (lambda: D.Split(array), ValueError),
            (lambda: D.load(own_images(tmp_path, **dict.fromkeys(SPLITS, npy_bytes(array)))).train, D.DataError),
        ):
            try:
                split = made()
                assert array.dtype == np.uint8 and np.array_equal(split.images.flatten(), array.flatten())
            except refused as error:
                assert "write" in str(error) or "make it again" in str(error)


@pytest.mark.slow
@QUICK
@given(ARRAYS | numpy_strategies.arrays(numpy_strategies.scalar_dtypes(), 4))
def test_any_labels_are_these_classes_or_an_error(tmp_path, array):
    for made, refused in (
        (lambda: D.Split(OWN, array), ValueError),
        (lambda: D.load(own_images(tmp_path, train_labels=npy_bytes(array))).train, D.DataError),
    ):
        try:
            labels = made().labels
            assert labels.dtype == torch.int64 and labels.min() >= 0 and labels.tolist() == array.tolist()
        except refused as error:
            assert "labels: wanted" in str(error)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("front", [True, False])
def test_any_mat_file_is_faces_or_an_error(tmp_path, compress, front):
    whole = mat_bytes(compress, ff=np.arange(560 * 1965).astype(np.uint8).reshape(560, 1965))
    path = tmp_path / D.FREY_FILE
    path.parent.mkdir()

    @QUICK
    @given(damaged(whole[:260] if front else whole))
    def check(content):
        path.write_bytes(content + whole[260:] if front else content)
        try:
            assert formats.read_frey(path).shape == (1965, 1, 28, 20)
        except D.DataError as error:
            assert str(path) in str(error) and "remove it" in str(error)

    check()


@QUICK
@given(damaged(CHECKPOINT) | st.binary(max_size=200))
def test_a_checkpoint_with_any_change_is_refused(content):
    with pytest.raises(CheckpointError, match="it"):
        decode(content, "it")


def test_a_checkpoint_cut_off_anywhere_is_refused():
    for end in range(len(CHECKPOINT)):
        with pytest.raises(CheckpointError, match="it"):
            decode(CHECKPOINT[:end], "it")


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(FIXTURE, tmp_path / "run")
    return tmp_path / "run"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


def models(folder, content):
    """Loads the run with this metrics.json: None where it is refused."""
    (folder / "metrics.json").write_bytes(content)
    try:
        return load_vae(folder)
    except CheckpointError as error:
        assert str(folder) in str(error)
        return None


@pytest.mark.slow
@QUICK
@given(JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=100))
@example(b"[" * 100_000)
@example(b'{"settings": ' * 50_000)
@example(b"9" * 10_000)
def test_any_metrics_that_are_none_are_refused(folder, content):
    assert models(folder, content) is None


@QUICK
@given(st.data())
def test_any_value_of_any_setting_loads_the_same_model_or_none(folder, data):
    metrics = json.loads((FIXTURE / "metrics.json").read_text())
    name = data.draw(st.sampled_from([*SETTINGS, "format", "shape"]))
    value = data.draw(
        JSON
        | st.sampled_from(
            [
                10**9,
                [10**9],
                [1] * 1000,
                2**16,
                [2**16, 2**16],
                "vamp",
                "planar",
                "spline",
                "inverse-autoregressive",
                [1, 10**4, 10**4],
            ]
        )
    )
    part = {"format": metrics, "shape": metrics["dataset"]}.get(name, metrics["settings"])
    part[name] = value
    vae = models(folder, json.dumps(metrics).encode())
    if vae is not None:
        state = torch.load(FIXTURE / PARAMETERS, weights_only=True)
        assert all(torch.equal(value, state[name]) for name, value in vae.state_dict().items())


@QUICK
@given(damaged((FIXTURE / PARAMETERS).read_bytes()))
def test_any_parameters_are_a_model_or_an_error(folder, content):
    (folder / PARAMETERS).write_bytes(content)
    models(folder, (FIXTURE / "metrics.json").read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_any_logits_and_pixels_give_finite_numbers(family):
    chosen = PartSettings(**FAMILIES[family])
    likelihood = LIKELIHOODS[chosen.lik](chosen, lambda maps: nn.Identity())
    maps = likelihood.parameters_per_pixel

    @settings(QUICK, max_examples=100)
    @given(
        st.lists(st.floats(-1e4, 1e4, width=32), min_size=4 * maps, max_size=4 * maps),
        st.binary(min_size=4, max_size=4),
    )
    def check(logits, pixels):
        z = torch.tensor(logits).reshape(maps, 2, 2).requires_grad_()
        x = likelihood.observe(torch.tensor(list(pixels), dtype=torch.uint8).reshape(1, 1, 2, 2))
        p = likelihood(z)
        log_prob = p.log_prob(x[0])
        (gradient,) = torch.autograd.grad(log_prob, z)
        assert log_prob.isfinite() and gradient.isfinite().all() and p.mean.isfinite().all()

    check()


SAVED = encoded_program(
    VAE(
        priors.StandardNormal(2),
        likelihoods.Bernoulli(networks.MLPDecoder(2, (1, 4, 4), 1, hidden=(3,))),
        guides.MeanField(networks.MLPEncoder((1, 4, 4), hidden=(3,)), 2),
    )
)


@QUICK
@given(damaged(SAVED) | st.binary(max_size=200))
def test_a_saved_program_with_any_change_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_vae(tmp_path)


VALUES = st.sampled_from(
    [
        *(10**9, -1, 2**16, True, "vae.VAE", "builtins.eval", [10**9], [1] * 1000, {"part": "program"}, {"partial": 1}),
        *({"name": name} for name in ("nn.ReLU", "os.system", "priors.spline", "networks.lowered_precision")),
        *({"part": f"program.{slot}"} for slot in ("prior", "likelihood", "posterior", "likelihood.network")),
        *({kind: [10**9], "dtype": "float32"} for kind in ("tensor", "parameter")),
        {"partial": {"name": "networks.MLPDecoder"}, "args": [10**6, [10**6], 1], "keywords": {"pairs": []}},
    ]
)


@pytest.mark.slow
@QUICK
@given(st.data())
def test_any_description_with_a_right_checksum_is_a_program_of_these_parameters_or_refused(tmp_path, data):
    header, tensors = contents.decode(SAVED, "it")
    part = data.draw(st.sampled_from(sorted(header["parts"])))
    argument = data.draw(st.sampled_from(["class", *header["parts"][part]["arguments"]]))
    value = data.draw(JSON | VALUES)
    place = header["parts"][part] if argument == "class" else header["parts"][part]["arguments"]
    place[argument] = value
    for key in data.draw(st.lists(st.sampled_from(["training", "frozen", "in the other mode", "format"]), max_size=1)):
        header[key] = data.draw(JSON)
    (tmp_path / "model.safetensors").write_bytes(contents.encode(header, tensors))
    try:
        program = load_vae(tmp_path)
    except CheckpointError as error:
        assert str(tmp_path) in str(error)
    else:
        assert all(torch.equal(value, tensors[name]) for name, value in contents.own_tensors(program).items())
