"""Norm, feed-forward network and block against PyTorch's and transformers'."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding

from minillm.attention import Attention
from minillm.blocks import Block, RMSNorm, SwiGLU
from minillm.embeddings import rotary_angles, rotary_frequencies


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 1e-1])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e3])  # small vectors show where eps stands
def test_norm_is_pytorchs_and_transformers(eps, size):
    torch.manual_seed(0)
    ours, theirs, peer = RMSNorm(12, eps), nn.RMSNorm(12, eps), LlamaRMSNorm(12, eps)
    for module in (ours, theirs, peer):
        module.weight.data.copy_(torch.linspace(-1, 2, 12))
    x = size * torch.randn(2, 3, 12)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x), peer(x))


def test_norm_by_hand():
    assert RMSNorm(2, 1e-12)(torch.tensor([3.0, 4.0])).tolist() == pytest.approx([3 / 12.5**0.5, 4 / 12.5**0.5])
    assert RMSNorm(2).eps == 1e-5
    assert RMSNorm(4)(torch.zeros(1, 4)).tolist() == [[0.0] * 4]
    x = torch.randn(5, 64) + 3
    torch.testing.assert_close(RMSNorm(64)(x).square().mean(-1), torch.ones(5), atol=1e-4, rtol=0)


def test_feed_forward_is_that_of_transformers():
    torch.manual_seed(1)
    ours = SwiGLU(8, 20)
    theirs = LlamaMLP(LlamaConfig(hidden_size=8, intermediate_size=20, num_attention_heads=1))
    theirs.load_state_dict({f"{name}_proj.weight": getattr(ours, name).weight for name in ("gate", "up", "down")})
    x = 3 * torch.randn(2, 3, 8)
    torch.testing.assert_close(ours(x), theirs(x))


def test_block_is_a_layer_of_transformers():
    torch.manual_seed(2)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        rms_norm_eps=1e-5,
        attn_implementation="eager",  # pyright: ignore[reportCallIssue]
    )
    theirs = LlamaDecoderLayer(config, layer_idx=0)
    norms = [RMSNorm(16), RMSNorm(16)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    ours = Block(Attention(16, 4, 2, 6), SwiGLU(16, 24), *norms)
    pairs = {
        "self_attn.q_proj": ours.attention.query,
        "self_attn.k_proj": ours.attention.key,
        "self_attn.v_proj": ours.attention.value,
        "self_attn.o_proj": ours.attention.output,
        "input_layernorm": ours.attention_norm,
        "post_attention_layernorm": ours.ff_norm,
        **{f"mlp.{name}_proj": getattr(ours.feed_forward, name) for name in ("gate", "up", "down")},
    }
    theirs.load_state_dict({f"{name}.weight": module.weight for name, module in pairs.items()})
    x, places = torch.randn(2, 5, 16), torch.arange(5)
    closed = torch.full((5, 5), -torch.inf).triu(1)[None, None]
    expected = theirs(x, attention_mask=closed, position_embeddings=LlamaRotaryEmbedding(config)(x, places[None]))
    torch.testing.assert_close(ours(x, rotary_angles(places, rotary_frequencies(6))), expected, atol=1e-5, rtol=1e-4)


def test_no_bias_anywhere():
    block = Block(Attention(16, 4, 2, 6), SwiGLU(16, 24), RMSNorm(16), RMSNorm(16))
    assert not [name for name, _ in block.named_parameters() if "bias" in name]
