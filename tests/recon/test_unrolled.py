# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bmex_bids.network.weights.checkpoints import load_network
from bmex_bids.recon.attention import POOLINGS, Classifier
from bmex_bids.recon.operators import Encoding
from bmex_bids.recon.unrolled import Cascade, Residual2d


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(1, 3, 18, 22)) + 1j * rng.normal(size=(1, 3, 18, 22))
    maps = torch.from_numpy((maps / np.linalg.norm(maps, axis=1, keepdims=True)).astype("c8"))
    encoding = Encoding(maps, torch.ones(1, 1, 1, 22))
    image = torch.from_numpy(rng.normal(size=(1, 18, 22)).astype("c8"))
    return image, encoding


@pytest.mark.parametrize("solver", ["cg", "gradient"])
def test_an_untrained_cascade_keeps_the_image_of_full_sampling(problem, solver):
    image, encoding = problem
    network = Cascade(2, 4, solver=solver)
    done = network(encoding.normal(image), encoding)
    assert len(done.images) == len(done.scores) == 2
    assert torch.allclose(done.images[-1], image, atol=0.05 * float(image.abs().max()))


def test_every_weight_of_the_cascade_learns(problem):
    image, encoding = problem
    network = Cascade(2, 4)
    torch.manual_seed(0)
    for module in (network.denoise, network.focus):  # zero, they let no gradient through
        torch.nn.init.normal_(module.last.weight, std=0.1)
    done = network(encoding.normal(image), encoding)
    (done.images[-1].abs().square().mean() + sum(s.sum() for s in done.scores)).backward()
    still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_a_guide_takes_the_place_of_the_activation_map(problem):
    image, encoding = problem
    network = Cascade(1, 4)
    torch.nn.init.ones_(network.focus.last.weight)
    none, full = (network(image, encoding, torch.full((1, 1, 18, 22), v)) for v in (0.0, 1.0))
    assert not torch.allclose(none.images[-1], full.images[-1])
    assert (full.attention == 1).all()


@pytest.mark.parametrize("shape", [(16, 16), (15, 21)])
def test_images_of_any_size_pass(shape):
    image = torch.randn(2, *shape, dtype=torch.complex64)
    assert torch.equal(Residual2d(0, 4)(image), image)  # untrained


def test_a_small_lesion_moves_the_score_unless_the_mean_drowns_it():
    scores = torch.zeros(1, 1, 40, 40)
    scores[..., 3:5, 3:5] = 10.0
    found = {
        name: float(pool(scores) - pool(torch.zeros_like(scores)))
        for name, pool in POOLINGS.items()
    }
    assert found["top"] == pytest.approx(5.0)
    assert found["log-sum-exp"] > 3
    assert found["mean"] < 0.03


def test_bright_skin_takes_nothing_from_a_lesion_far_away():
    torch.manual_seed(0)
    network, image = Classifier(4), torch.rand(1, 1, 160, 64)
    bright = image.clone()
    bright[..., :16, :] += 100
    near, far = (network(bright)[1] - network(image)[1])[..., :16, :], slice(60, None)
    assert near.abs().max() > 0.1
    assert torch.allclose(network(bright)[1][..., far, :], network(image)[1][..., far, :])


def test_an_untrained_classifier_expects_a_lesion_in_half_of_the_slices_and_looks_nowhere():
    torch.manual_seed(0)
    network = Cascade(1, 4)
    for parameter in network.classify.map.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        score, attention = network.look(torch.ones(1, 192, 192) + 0j)
    assert float(torch.sigmoid(score)) == pytest.approx(0.5, abs=0.1)
    assert float(attention.max()) < 0.001


def test_a_file_of_weights_says_its_network(tmp_path):
    network = Cascade(3, 4, solver="gradient", steps=2, pooling="mean", attention="none")
    state = {k: v.to(torch.float16).contiguous() for k, v in network.state_dict().items()}
    save_file(state, tmp_path / "recon.safetensors")
    read = load_network(tmp_path / "recon.safetensors", "lfmri")
    assert (read.stages, read.steps, read.solve) == (3, 2, network.solve)
    assert (read.classify.pool, read.attention) == (POOLINGS["mean"], "none")
