"""``save_vae`` and ``load_vae``: what was saved is loaded, in another process too, or there is an error."""

import os
import re
import sys
from pathlib import Path

import many_programs
import numpy as np
import pytest
import torch
from forked import Forked, file_of
from many_programs import PIXELS, decoder, encoder, measured, programs, vae
from torch import nn

import pyro_vae as pv
from pyro_vae import files, guides, likelihoods, networks, priors
from pyro_vae.estimators import ImportanceWeighted
from pyro_vae.saved import PARAMETERS
from pyro_vae.saved.contents import decode
from pyro_vae.saved.programs import encoded_program
from pyro_vae.structure import difference, structure

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_part_is_loaded_in_another_process_with_the_same_bits(tmp_path):
    found = {}
    for name, (program, batch) in programs().items():
        state = torch.get_rng_state()
        pv.save_vae(program, tmp_path / name)
        assert torch.equal(state, torch.get_rng_state())
        found[name] = measured(program, batch)
    assert len(set(found.values())) == len(found)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = Forked(file_of(many_programs.__file__), tmp_path, environment, [tmp_path]).wait()
    assert done.returncode == 0, done.stderr
    assert dict(line.split() for line in done.stdout.splitlines()) == found


def test_the_format_on_disk_is_the_one_that_saved_programs_have():
    """Another number, or other entries, would leave them unread."""
    header, tensors = decode(encoded_program(vae().eval()), "it")
    assert header["format"] == 4 and tensors.keys() == vae().state_dict().keys()
    assert header.keys() == {"format", "parts", "training", "in the other mode", "frozen"} and not header["training"]


def test_dtype_frozen_parameters_and_modes_are_kept(tmp_path):
    program = many_programs.of_torch()
    pv.save_vae(program, tmp_path)
    again = pv.load_vae(tmp_path)
    assert {value.dtype for value in again.parameters()} == {torch.float64}
    assert [name for name, value in again.named_parameters() if not value.requires_grad] == [
        "likelihood.network.0.0.weight"
    ]
    assert [module.training for module in again.modules()] == [module.training for module in program.modules()]
    assert again.training and not again.posterior.training


def test_shared_parts_stay_shared_and_are_written_once(tmp_path):
    program = many_programs.vamp()
    pv.save_vae(program, tmp_path)
    again = pv.load_vae(tmp_path)
    assert again.prior.posterior is again.posterior
    assert len(list(again.parameters())) == len(list(program.parameters()))
    size = sum(value.numel() * value.element_size() for value in program.parameters())
    assert size < (tmp_path / PARAMETERS).stat().st_size < size + 4000


@pytest.mark.slow
def test_a_trained_program_goes_on_training_after_loading(tmp_path):
    program, data = vae(), pv.Data("few", *[pv.Split(PIXELS)] * 3)
    settings = {"epochs": 1, "batch_size": 6, "lr": 1e-2, "progress": False}
    pv.fit(program, data, ImportanceWeighted(K=2), **settings)
    pv.save_vae(program, tmp_path)
    again = pv.load_vae(tmp_path)
    for one in (program, again):
        pv.fit(one, data, ImportanceWeighted(K=2), **settings)
    assert all(map(torch.equal, program.parameters(), again.parameters()))


def test_a_part_that_was_exchanged_is_saved_as_it_is(tmp_path):
    program = vae()
    program.prior, program.likelihood.network = priors.Mixture(3, 2), nn.Sequential(decoder(), nn.Tanh())
    pv.save_vae(program, tmp_path)
    assert difference(structure(program), structure(pv.load_vae(tmp_path))) is None


class Own(nn.Module):
    def __init__(self, width=5):
        super().__init__()
        self.layer, self.width = nn.Linear(3, width), width

    def forward(self, z):
        return self.layer(z)[..., :1].expand(*z.shape[:-1], 64).unflatten(-1, (1, 8, 8))


def of_own(**arguments):
    return vae(likelihood=likelihoods.Bernoulli(Own(**arguments)))


def changed(change):
    program = vae()
    change(program)
    return program


def hooked(program):
    program.posterior.network.register_forward_hook(lambda *_: None)


def tied(program):
    program.posterior.network.layers[1].bias = nn.Parameter(torch.zeros(8))
    program.likelihood.network.layers[0].bias = program.posterior.network.layers[1].bias


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (of_own, r"program\.likelihood\.network: Own is no part of this library; save its parameters alone, save_vae"),
        (
            lambda: vae(posterior=guides.MeanField(encoder(activation=lambda: nn.ReLU()), 3)),
            r"activation: the function",
        ),
        (lambda: vae(prior=priors.Flow(3, lambda *_: priors.spline(3, 1, 8))), r"program\.prior\.steps: the function"),
        (lambda: pv.Augmented(vae(), lambda images: images), "Augmented is no part .* save the program that it wraps"),
        (lambda: pv.handlers.KLWeighted(vae(), 4.0), r"KLWeighted is no part .* save_vae\(vae\.program, folder\), or"),
        (lambda: pv.Averaged(vae(), 0.9), r"Averaged is no part .* save_vae\(vae\.average, folder\), or"),
        (lambda: changed(hooked), r"its posterior\.network: _forward_hooks is 1 in one and missing in the other"),
        (lambda: changed(tied), "the tensors that are shared are"),
        (
            lambda: changed(lambda it: setattr(it.likelihood, "binarize", likelihoods.intensity)),
            "binarize is .*intensity",
        ),
        (lambda: changed(lambda it: setattr(it, "observe", print)), "observe is builtins.print in one and missing"),
        (
            lambda: changed(lambda it: setattr(it.posterior.network.layers, "1", nn.Linear(64, 9))),
            "out_features is 9 in one and 8 in",
        ),
        (lambda: vae().to("meta"), "wanted tensors in its state dict, got a tensor without values under 'prior.loc'"),
    ],
)
def test_what_cannot_be_described_is_refused_before_anything_is_written(tmp_path, program, message):
    with pytest.raises((ValueError, TypeError), match=message):
        pv.save_vae(program(), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_own_parts_are_loaded_by_a_factory(tmp_path, monkeypatch):
    program = of_own()
    pv.save_vae(program, tmp_path / "folder", parameters_only=True)
    monkeypatch.setitem(sys.modules, "my_programs", sys.modules[__name__])
    for factory in (of_own, "my_programs:of_own"):
        again = pv.load_vae(tmp_path / "folder", factory=factory)
        assert torch.equal(again.encode(PIXELS), program.encode(PIXELS))
        assert torch.equal(again.reconstruct(PIXELS), program.reconstruct(PIXELS))
    with pytest.raises(pv.CheckpointError, match=r"parts of its own; write load_vae.*factory=build"):
        pv.load_vae(tmp_path / "folder")


def with_layers(change):
    """Return a factory of a program with three linear layers of one shape, changed by a function of these."""

    def factory():
        layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), decoder())
        change(layers)
        return vae(likelihood=likelihoods.Bernoulli(layers))

    return factory


def share(layers):
    layers[1].weight = layers[0].weight


def test_parameters_that_are_shared_stay_shared_with_a_factory(tmp_path):
    factory = with_layers(share)
    pv.save_vae(factory(), tmp_path, parameters_only=True)
    again = pv.load_vae(tmp_path, factory=factory).likelihood.network
    assert again[0].weight is again[1].weight and again[0].weight.requires_grad


def test_a_factory_does_not_say_what_is_frozen(tmp_path):
    factory = with_layers(lambda layers: layers.requires_grad_(False))
    program = factory()
    program.likelihood.network[0].requires_grad_(True)
    pv.save_vae(program, tmp_path, parameters_only=True)
    again = pv.load_vae(tmp_path, factory=factory)
    found, wanted = ([value.requires_grad for value in it.parameters()] for it in (again, program))
    assert found == wanted


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "norm", [nn.utils.spectral_norm, nn.utils.weight_norm, nn.utils.parametrizations.spectral_norm]
)
def test_weights_that_are_computed_before_each_call_are_loaded_by_a_factory(tmp_path, norm):
    factory = with_layers(lambda layers: norm(layers[0]))
    program = factory()
    program.likelihood(torch.randn(4, 3))  # a step of the power iteration
    pv.save_vae(program, tmp_path, parameters_only=True)
    z = torch.randn(5, 3)
    assert torch.equal(pv.load_vae(tmp_path, factory=factory).decode(z), program.decode(z))


def test_sizes_of_numpy_are_saved(tmp_path):
    latent, shape = np.int64(3), tuple(np.array([1, 8, 8]))
    program = vae(priors.StandardNormal(latent), likelihoods.Bernoulli(decoder(latent=latent, shape=shape)))
    pv.save_vae(program, tmp_path)
    assert torch.equal(pv.load_vae(tmp_path).encode(PIXELS), program.encode(PIXELS))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda: of_own(width=6), r"its likelihood\.network: width is 5 in one and 6 in the other"),
        (
            lambda: vae(likelihood=likelihoods.ContinuousBernoulli(Own())),
            r"its likelihood: class is .*Bernoulli in one",
        ),
        (vae, r"likelihood\.network"),
    ],
)
def test_a_factory_of_another_program_is_refused(tmp_path, factory, message):
    pv.save_vae(of_own(), tmp_path, parameters_only=True)
    with pytest.raises(pv.CheckpointError, match=f"the factory makes another program than was saved: .*{message}"):
        pv.load_vae(tmp_path, factory=factory)


def test_a_factory_is_refused_where_none_is_needed_and_must_be_a_function(tmp_path):
    pv.save_vae(vae(), tmp_path)
    with pytest.raises(ValueError, match="describes its own program; write load_vae"):
        pv.load_vae(tmp_path, factory=vae)
    pv.save_vae(vae(), tmp_path, parameters_only=True, overwrite=True)
    with pytest.raises(ValueError, match="factory: wanted a function, or its name as 'module:function', got 'build'"):
        pv.load_vae(tmp_path, factory="build")
    assert difference(structure(pv.load_vae(tmp_path, factory=vae)), structure(vae())) is None


def test_a_program_is_not_overwritten_by_accident(tmp_path):
    first, second = vae(), vae()
    pv.save_vae(first, tmp_path)
    with pytest.raises(FileExistsError, match="holds a program; give another folder, or overwrite=True"):
        pv.save_vae(second, tmp_path)
    assert torch.equal(pv.load_vae(tmp_path).posterior.head.weight, first.posterior.head.weight)
    pv.save_vae(second, tmp_path, overwrite=True)
    assert torch.equal(pv.load_vae(tmp_path).posterior.head.weight, second.posterior.head.weight)
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(FileExistsError, match="is the folder of a run; give the program a folder of its own"):
        pv.save_vae(second, tmp_path, overwrite=True)


def test_a_full_disk_leaves_the_program_that_was_there(tmp_path, monkeypatch):
    def full(file, data):
        file.write(data[:100])
        raise OSError(28, "No space left on device")

    first = vae()
    pv.save_vae(first, tmp_path)
    monkeypatch.setattr(files, "_write", full)
    with pytest.raises(pv.CheckpointError, match="free some space"):
        pv.save_vae(vae(), tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [PARAMETERS]
    assert torch.equal(pv.load_vae(tmp_path).posterior.head.weight, first.posterior.head.weight)


def test_folders_without_a_program(tmp_path):
    with pytest.raises(pv.CheckpointError, match=re.escape(f"{tmp_path} holds no program: there is no {PARAMETERS}")):
        pv.load_vae(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(pv.CheckpointError, match="cannot be made"):
        pv.save_vae(vae(), tmp_path / "file/folder")


def test_it_is_loaded_onto_a_device(tmp_path):
    pv.save_vae(many_programs.vamp(), tmp_path)
    assert {value.device.type for value in pv.load_vae(tmp_path, "meta").state_dict().values()} == {"meta"}


def test_a_large_image_network_under_a_vamp_prior_is_loaded(tmp_path):
    guide = guides.MeanField(networks.ConvEncoder((1, 64, 64), channels=(32, 64)), 3)
    prior = priors.Vamp(guide, torch.rand(300, 1, 64, 64))
    pv.save_vae(vae(prior, likelihoods.Normal(decoder(shape=(1, 64, 64)), -1.0), guide), tmp_path)
    assert pv.load_vae(tmp_path).prior.logits.shape == (300, 1, 64, 64)
