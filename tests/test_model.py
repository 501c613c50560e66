"""The whole model against transformers' Llama, Qwen3 and Mistral of the same weights; its size, cost, first loss."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from minillm.attention import Attention, attend
from minillm.baseline import cross_entropy
from minillm.embeddings import rotary_angles, rotary_frequencies
from minillm.model import PRESETS, ModelConfig, Transformer, count_parameters, flops_per_token


TINY: dict[str, Any] = {"vocab_size": 31, "n_layers": 2, "n_heads": 4, "d_model": 16, "max_seq_len": 16}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "groups": {"n_kv_heads": 2, "rope_theta": 500.0},
    "one key-value head": {"n_kv_heads": 1, "d_ff": 20, "norm_eps": 1e-3},
    "wide heads": {"n_heads": 6, "n_kv_heads": 3, "head_dim": 10, "d_model": 24},
    "tied": {"tie_embeddings": True, "n_kv_heads": 2},
}
NAMES = {
    "embedding": "embed_tokens",
    "blocks": "layers",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
}


def randomised(config: ModelConfig, seed: int = 0, window: int | None = None) -> Transformer:
    """A model in which every weight matters; a fresh one has output projections of zero and shows nothing."""
    torch.manual_seed(seed)
    model = Transformer(config, window=window)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            nn.init.uniform_(weight, 0.5, 1.5)
        else:
            nn.init.normal_(weight, std=1.0 if name == "embedding.weight" else weight.shape[1] ** -0.5)
    return model.eval()


def peer(model: Transformer) -> PreTrainedModel:
    """The same shape and weights in transformers: Qwen3 has QK-norm, Mistral a window, Llama neither."""
    c = model.config
    shape: dict[str, Any] = {
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.max_seq_len,
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tie_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "attn_implementation": "eager",
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if c.qk_norm:
        theirs = Qwen3ForCausalLM(Qwen3Config(**shape))
    elif model.window < c.max_seq_len:
        theirs = MistralForCausalLM(MistralConfig(**shape, sliding_window=model.window))
    else:
        theirs = LlamaForCausalLM(LlamaConfig(**shape))
    state = {}
    for name, value in model.state_dict().items():
        for ours, other in NAMES.items():
            name = name.replace(f"{ours}.", f"{other}.")
        state[name if name.startswith("lm_head") else f"model.{name}"] = value
    state["lm_head.weight"] = state.pop("model.head.weight")
    theirs.load_state_dict(state)
    return theirs.eval()


def use(model: Transformer, inner: Callable[..., Tensor]) -> None:
    """Exchange attention's inner product in every layer."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = inner


def ids_for(config: ModelConfig, B: int, T: int, seed: int = 1) -> Tensor:
    return torch.randint(config.vocab_size, (B, T), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def assert_same_logits(model: Transformer, T: int) -> None:
    ids = ids_for(model.config, 3, T)
    ours, theirs = model(ids), peer(model)(ids).logits
    assert ours.std() > 0.5  # there is something to compare
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0.0)


# Against transformers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_are_those_of_llama_and_qwen3(shape, qk_norm):
    model = randomised(ModelConfig(**{**TINY, **shape}, qk_norm=qk_norm))
    assert type(peer(model)) is (Qwen3ForCausalLM if qk_norm else LlamaForCausalLM)
    assert_same_logits(model, 16)


@pytest.mark.parametrize("window", [1, 3, 15])
def test_a_window_is_that_of_mistral(window):
    model = randomised(ModelConfig(**TINY, n_kv_heads=2, qk_norm=False), window=window)
    assert type(peer(model)) is MistralForCausalLM
    assert_same_logits(model, 16)


def test_beyond_its_context_a_model_looks_back_as_far_as_it_has_learned():
    model = randomised(ModelConfig(**{**TINY, "max_seq_len": 5}, qk_norm=False))
    assert model.window == 5
    longer = randomised(ModelConfig(**{**TINY, "max_seq_len": 99}, qk_norm=False), window=5)
    ids = ids_for(model.config, 2, 40)
    assert torch.equal(model(ids), longer(ids))
    assert_same_logits(longer, 40)


def test_a_window_may_be_wider_than_the_context():
    config = ModelConfig(**{**TINY, "max_seq_len": 5}, qk_norm=False)
    model = randomised(config, window=30)
    assert model.window == 30
    assert_same_logits(model, 20)


def test_padded_and_packed_rows_are_as_if_alone():
    model = randomised(ModelConfig(**TINY, n_kv_heads=2))
    theirs, rows = peer(model), [ids_for(model.config, 1, n, seed=n) for n in (7, 4, 1, 5)]
    alone = [theirs(row).logits for row in rows]
    packed = model(torch.cat(rows, dim=1), torch.cat([torch.arange(row.shape[1]) for row in rows])[None])
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), atol=1e-4, rtol=0.0)
    for row, expected in zip(rows, alone):
        n = row.shape[1]
        ids = torch.cat((torch.zeros(1, 7 - n, dtype=torch.long), row), dim=1)
        out = model(ids, torch.tensor([[-1] * (7 - n) + list(range(n))]))
        torch.testing.assert_close(out[:, 7 - n :], expected, atol=1e-4, rtol=0.0)


def test_positions_that_say_nothing_new_change_nothing():
    model = randomised(ModelConfig(**TINY))
    ids = ids_for(model.config, 2, 24)
    torch.testing.assert_close(model(ids, torch.arange(24).expand(2, -1)), model(ids), atol=1e-5, rtol=1e-4)
    moved = model(ids, torch.arange(100, 124).expand(2, -1))  # rotary positions are relative
    torch.testing.assert_close(moved, model(ids), atol=1e-3, rtol=0.0)


def test_tokens_stand_where_their_positions_say():
    """With gaps, which a shift of the whole row would not show."""
    model = randomised(ModelConfig(**{**TINY, "max_seq_len": 99}))
    ids, places = ids_for(model.config, 2, 6), torch.tensor([[0, 1, 4, 5, 20, 21], [3, 7, 8, 9, 10, 98]])
    expected = peer(model)(ids, position_ids=places, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(model(ids, places), expected, atol=1e-4, rtol=0.0)
    assert not torch.allclose(model(ids), expected, atol=1e-2)


def test_the_future_does_not_leak_and_the_past_does():
    model = randomised(ModelConfig(**TINY))
    ids = ids_for(model.config, 1, 12)
    base = model(ids)[0]
    for s in range(12):
        changed = ids.clone()
        changed[0, s] = (changed[0, s] + 1) % 31
        moved = (model(changed)[0] - base).abs().amax(-1)
        assert (moved[:s] == 0).all()
        assert (moved[s:] > 1e-6).all()


@pytest.mark.parametrize("inner", ["kernel", "ours"])
def test_gradients_are_those_of_transformers(inner):
    model = randomised(ModelConfig(**TINY, n_kv_heads=2))
    if inner == "ours":
        use(model, attend)
    ids, theirs = ids_for(model.config, 2, 9), peer(model)
    cross_entropy(model, ids[:, :-1], ids[:, 1:]).backward()
    nn.functional.cross_entropy(
        theirs(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
    ).backward()
    for (name, ours), other in zip(model.named_parameters(), ordered(model, theirs)):
        assert ours.grad is not None, name
        torch.testing.assert_close(ours.grad, other.grad, atol=1e-3, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def ordered(model: Transformer, theirs: PreTrainedModel) -> list[nn.Parameter]:
    """Their parameters in our order."""
    found, parameters = [], dict(theirs.named_parameters())
    for name, _ in model.named_parameters():
        for ours, other in NAMES.items():
            name = name.replace(f"{ours}.", f"{other}.")
        found.append(parameters["lm_head.weight" if name == "head.weight" else f"model.{name}"])
    return found


# Size and cost ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_parameters_are_counted_as_transformers_counts_them(shape, qk_norm):
    model = Transformer(ModelConfig(**{**TINY, **shape}, qk_norm=qk_norm))
    assert count_parameters(model) == peer(model).num_parameters()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("T", [1, 16])
def test_flops_are_those_that_torch_counts(shape, T):
    """Torch counts the scores of the future too: T keys a token where (T + 1) / 2 are seen. All else is equal."""
    config = ModelConfig(**{**TINY, **shape})
    model = randomised(config)
    use(model, attend)  # the fused kernel's work on a CPU is not counted
    with FlopCounterMode(display=False) as counter:
        model(ids_for(config, 3, T)).sum().backward()
    future = config.n_layers * config.n_heads * 4 * config.head_dim * (T - 1) / 2
    assert counter.get_total_flops() == 3 * T * (flops_per_token(config, T, training=True) + 3 * future)
    assert flops_per_token(config, T, training=True) == 3 * flops_per_token(config, T)


def test_flops_are_those_of_a_full_context_unless_said_otherwise():
    config = ModelConfig(**TINY)
    assert flops_per_token(config) == flops_per_token(config, 16) > flops_per_token(config, 15)


# The beginning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [{}, {"n_kv_heads": 1, "qk_norm": False}])
def test_the_first_loss_is_ln_V_and_the_first_logits_are_equal(shape):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**{**TINY, **shape}))
    ids = ids_for(model.config, 4, 17)
    assert not model(ids).any()
    assert cross_entropy(model, ids[:, :-1], ids[:, 1:]).item() / 64 == pytest.approx(math.log(31), rel=1e-6)


def test_a_tied_model_begins_near_ln_V():
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**{**TINY, "vocab_size": 500, "d_model": 64}, tie_embeddings=True))
    assert model.head.weight is model.embedding.weight
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)
    ids = ids_for(model.config, 4, 17)
    assert cross_entropy(model, ids[:, :-1], ids[:, 1:]).item() / 64 == pytest.approx(math.log(500), rel=0.02)


def test_every_block_begins_as_the_identity_and_every_matrix_keeps_unit_variance():
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=4000, n_layers=2, n_heads=4, n_kv_heads=2, d_model=128))
    assert model.embedding.weight.std().item() == pytest.approx(1.0, rel=0.02)
    x = torch.randn(2, 7, 128)
    for block in model.blocks:
        assert torch.equal(block(x, rotary_angles(torch.arange(7), rotary_frequencies(32))), x)
    for name in ("attention.query", "attention.key", "attention.value", "feed_forward.gate", "feed_forward.up"):
        for block in model.blocks:
            linear = block.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            assert linear(torch.randn(1000, linear.in_features)).std().item() == pytest.approx(1.0, rel=0.05)
            assert linear.weight.abs().max() <= (3 / 128) ** 0.5


def test_every_weight_gets_a_gradient_after_the_first_step():
    model = Transformer(ModelConfig(**TINY))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = ids_for(model.config, 4, 12)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(model, ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_a_seed_decides_the_weights():
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(Transformer(ModelConfig(**TINY)).parameters())

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_frequencies_are_not_saved():
    model = Transformer(ModelConfig(**TINY))
    assert not [name for name in model.state_dict() if "freq" in name]


def test_everything_happens_where_the_model_is():
    """On a device that holds no data; a mask made elsewhere would be refused, in the plain and in the long text."""
    model = Transformer(ModelConfig(**TINY)).to("meta")
    for T in (1, 16, 20):
        ids = torch.zeros(2, T, dtype=torch.long, device="meta")
        assert model(ids).shape == (2, T, 31)
        assert model(ids, torch.zeros_like(ids)).shape == (2, T, 31)


def test_a_model_in_half_precision_still_tells_far_positions_apart():
    """Angles of float32, or at position 1000 a step of bfloat16 would be 8 tokens wide."""
    model = randomised(ModelConfig(**{**TINY, "max_seq_len": 1024}))
    ids = ids_for(model.config, 1, 1024)
    far = torch.arange(1024)[None]
    exact = model(ids, far)
    model.to(torch.bfloat16)
    rounded = model(ids, far)
    assert rounded.dtype == torch.bfloat16
    error = (rounded.float() - exact).abs().mean(dim=(0, 2))
    assert error[-100:].mean() < 2 * error[:100].mean()
    assert error.max() < 0.2


# Configurations -----------------------------------------------------------------------------------------------------


def test_what_is_not_given_is_derived():
    config = ModelConfig(vocab_size=9, n_heads=6, d_model=384)
    assert (config.n_kv_heads, config.head_dim, config.d_ff) == (6, 64, 1024)
    assert ModelConfig(vocab_size=9, d_model=128).d_ff == 344  # 8/3 of 128 is 341.3
    assert ModelConfig(vocab_size=9, d_model=16, head_dim=10, n_kv_heads=2, d_ff=5).d_ff == 5
    for d_model in range(4, 400, 4):
        d_ff = ModelConfig(vocab_size=9, d_model=d_model, head_dim=4).d_ff
        assert d_ff % 8 == 0
        assert 0 <= d_ff - 8 / 3 * d_model < 8


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    config = ModelConfig.preset(name, vocab_size=100, max_seq_len=7)
    assert (config.vocab_size, config.max_seq_len, config.d_model) == (100, 7, PRESETS[name]["d_model"])


def test_the_gpt2_preset_has_its_vocabulary():
    assert ModelConfig.preset("gpt2").vocab_size == 50_257


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be positive, not 0"),
        ({"n_layers": -1}, "n_layers must be positive, not -1"),
        ({"n_heads": 0}, "n_heads must be positive, not 0"),
        ({"n_heads": -2}, "n_heads must be positive, not -2"),
        ({"n_kv_heads": -2}, "n_kv_heads must be positive, not -2"),
        ({"d_model": 0}, "d_model must be positive, not 0"),
        ({"d_model": -16}, "d_model must be positive, not -16"),
        ({"d_ff": -8}, "d_ff must be positive, not -8"),
        ({"max_seq_len": 0}, "max_seq_len must be positive, not 0"),
        ({"rope_theta": 0.0}, "rope_theta must be positive, not 0.0"),
        ({"norm_eps": 0.0}, "norm_eps must be positive, not 0.0"),
        ({"d_model": 18}, "d_model 18 is not a multiple of n_heads 4; give head_dim"),
        ({"n_kv_heads": 3}, "n_heads 4 is not a multiple of n_kv_heads 3"),
        ({"n_kv_heads": 8}, "n_heads 4 is not a multiple of n_kv_heads 8"),
        ({"d_model": 12}, "head_dim 3 is odd; rotary positions need pairs of coordinates"),
        ({"head_dim": 5}, "head_dim 5 is odd"),
    ],
)
def test_shapes_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{**TINY, **changes})


def test_an_unknown_preset_names_those_there_are():
    with pytest.raises(ValueError, match="no preset is called 'huge'; there are nano, micro, mini, gpt2"):
        ModelConfig.preset("huge")


@pytest.mark.parametrize("window", [0, -3])
def test_a_window_holds_a_token_at_least(window):
    with pytest.raises(ValueError, match=f"window must be at least 1 token, not {window}"):
        Transformer(ModelConfig(**TINY), window=window)
