"""The transformer: sizes of the published models, causality, and settings that change no number."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from research.errors import UserError
from research.models import Specification, TransformerConfig
from research.models.attention import rotate

SMALL = TransformerConfig(layers=2, width=32, heads=4)
LLAMA = replace(
    SMALL,
    key_value_heads=2,
    positions="rotary",
    normalization="rms",
    activation="swiglu",
    tied_head=False,
)
SPECIFICATION = Specification((16,), 50)


def tokens(rows=3, length=16, seed=0):
    return np.random.default_rng(seed).integers(0, 50, (rows, length)).astype(np.int32)


def model_of(config, specification=SPECIFICATION):
    return config.build(specification, jax.random.key(0))


def count(config, specification):
    module = jax.eval_shape(lambda key: config.build(specification, key), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def test_gpt2_has_its_published_number_of_parameters():
    """124,439,808: Radford et al. 2019's smallest model, as every implementation counts it."""
    gpt2 = TransformerConfig(layers=12, width=768, heads=12, bias=True)
    assert count(gpt2, Specification((1024,), 50_257)) == 124_439_808


def test_nanogpt_cpu_model_has_its_published_number_of_parameters():
    """0.80 M without positions, as nanoGPT prints it for 4 layers, 128 wide, 65 characters."""
    config = TransformerConfig(layers=4, width=128, heads=4)
    assert count(config, Specification((64,), 65)) - 64 * 128 == 795_904


@pytest.mark.parametrize("config", [SMALL, LLAMA], ids=["gpt2", "llama"])
def test_a_token_sees_nothing_after_itself(config):
    model, first = model_of(config), tokens()
    second = first.copy()
    second[:, 9:] = (second[:, 9:] + 1) % 50
    before, after = model(first), model(second)
    np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert not np.allclose(before[:, 9:], after[:, 9:])


@pytest.mark.parametrize("config", [SMALL, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize(
    "change",
    [{"remat": "full"}, {"remat": "dots"}, {"remat": "attention"}, {"unroll": 2}],
    ids=lambda change: "-".join(map(str, change.values())),
)
def test_how_layers_are_run_changes_no_gradient(config, change):
    """Only the order of float32 sums may differ: 1e-5 of gradients of order one."""

    def gradients(config):
        graph, parameters = nnx.split(model_of(config), nnx.Param)

        def loss(parameters):
            return jnp.mean(nnx.merge(graph, parameters)(tokens()) ** 2)

        return nnx.to_pure_dict(jax.jit(jax.grad(loss))(parameters))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradients(config),
        gradients(replace(config, **change)),
    )


def test_rotary_scores_depend_on_distance_only():
    """Su et al. 2021, eq. 16: <rotate(q, m), rotate(k, n)> is a function of m - n."""
    query, key = jax.random.normal(jax.random.key(0), (2, 8))
    turned = lambda x: rotate(jnp.broadcast_to(x, (1, 12, 1, 8)), jnp.arange(12), 10_000.0)[0, :, 0]  # noqa: E731
    scores = turned(query) @ turned(key).T  # [12, 12]
    for distance in range(-11, 12):
        diagonal = np.diagonal(scores, distance)
        # float32 cosines of angles up to 12 radians
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)


def test_grouped_queries_share_keys_and_values():
    """With its 2 key-value heads repeated for 4 query heads, the model is the ungrouped one."""
    grouped = model_of(LLAMA)
    full = model_of(replace(LLAMA, key_value_heads=4))
    state = nnx.to_pure_dict(nnx.state(grouped, nnx.Param))
    for name in ("key", "value"):
        kernel = state["blocks"]["attention"][name]["kernel"]  # [layers, width, heads, head_dim]
        state["blocks"]["attention"][name]["kernel"] = jnp.repeat(kernel, 2, axis=2)
    graph, _ = nnx.split(full, nnx.Param)
    np.testing.assert_allclose(
        nnx.merge(graph, state)(tokens()), grouped(tokens()), rtol=1e-5, atol=1e-5
    )


def test_dropout_is_drawn_from_every_examples_key_in_training_only():
    model = model_of(replace(SMALL, dropout=0.5))
    keys = jax.random.split(jax.random.key(1), len(tokens()))
    plain = model(tokens())
    np.testing.assert_array_equal(model(tokens(), keys=keys), plain)
    drawn = model(tokens(), train=True, keys=keys)
    assert not np.allclose(drawn, plain)
    # An example's draws are its own: alone or in any order it gets the same ones.
    for row in (1, 0):
        alone = model(tokens()[row : row + 1], train=True, keys=keys[row : row + 1])
        np.testing.assert_allclose(alone[0], drawn[row], rtol=1e-5, atol=1e-6)


def test_residual_projections_start_smaller_with_depth():
    """GPT-2: 0.02 / sqrt(2 · layers). 5 % is several deviations of 8,192 draws."""
    model = model_of(replace(SMALL, layers=8, width=32))
    for kernel in (model.blocks.attention.output.kernel, model.blocks.mlp.down.kernel):
        assert np.std(kernel[...]) == pytest.approx(0.02 / 4, rel=0.05)
    assert np.std(model.blocks.mlp.up.kernel[...]) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": 5}, ["width 32", "5 heads", "35"]),
        ({"key_value_heads": 3}, ["heads 4", "key_value_heads 3"]),
        ({"head_dim": 7, "positions": "rotary"}, ["head_dim 7", "odd"]),
        ({"dropout": 1.0}, ["dropout 1.0"]),
        ({"vocabulary_size": 40}, ["40", "50"]),
        ({"experts": -2}, ["experts -2: use 2 or more, or 0 for no mixture"]),
        ({"experts": 8, "experts_per_token": 9}, ["experts_per_token 9 of 8", "1 to 8", "9 or"]),
        ({"experts": 8, "experts_per_token": 0}, ["experts_per_token 0 of 8 experts: use 1 to 8"]),
        ({"experts": 8, "capacity_factor": 0.0}, ["capacity_factor 0.0 leaves", "1.25", "None"]),
        ({"experts": 8, "capacity_factor": -1.0}, ["capacity_factor -1.0 leaves every expert"]),
        ({"experts": 8, "capacity_factor": float("nan")}, ["capacity_factor nan leaves"]),
        ({"experts": 8, "balance_loss": -0.1}, ["balance_loss -0.1", "use 0 or more"]),
        ({"experts": 8, "router_z_loss": -0.1}, ["router_z_loss -0.1", "use 0 or more"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_sizes_that_do_not_fit_are_named(change, words):
    with pytest.raises(UserError) as error:
        model_of(replace(SMALL, **change))
    for word in words:
        assert word in str(error.value)


def test_more_tokens_than_learned_positions_are_refused():
    with pytest.raises(UserError, match=r"17 tokens .* 16 learned positions"):
        model_of(SMALL)(tokens(length=17))
    assert model_of(LLAMA)(tokens(length=17)).shape == (3, 17, 50)
