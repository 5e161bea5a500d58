"""The shape of a decoder-only transformer.

`TransformerConfig` names every choice in which Llama, Qwen, Mistral, SmolLM, Gemma and
GPT-2 differ; the model in `transformer.py` has no other. Read `hf_config.py` for how
a Hugging Face `config.json` becomes one.
"""

import dataclasses
from typing import Literal

from motes.lm_bridge.rope import Rope


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    r"""The static description of a decoder-only transformer.

    Attributes:
        vocab_size: Number of token ids, $V$.
        hidden_size: Width of the residual stream.
        num_layers: Number of blocks.
        num_heads: Query heads.
        num_kv_heads: Key and value heads; divides `num_heads`.
        head_dim: Width of a head.
        intermediate_size: Width of the feed-forward layer.
        max_positions: Longest text the checkpoint was made for.
        rope: Rotary positions, or `None` for learned ones.
        rope_layers: Layers that rotate; `None` for all.
        windows: Sliding window of each layer, `None` where attention is full.
        norm: Root-mean-square or mean-and-variance normalization.
        norm_eps: Added to the variance.
        norm_offset: Added to the scale of the norm: 1 for Gemma.
        activation: Of the feed-forward layer.
        gated: Whether the feed-forward layer has a gate.
        qkv_bias: Whether query, key and value have biases.
        output_bias: Whether the output of attention has a bias.
        mlp_bias: Whether the feed-forward layer has biases.
        qk_norm: Whether heads of query and key are normalized.
        embed_scale: Multiplies token embeddings: $\sqrt{d}$ for Gemma.
        tied: Whether the language head is the embedding.
        head: Next token, or a label for each text, or one for each token.
        num_labels: Number of labels of the last two heads.
        head_bias: Whether the head has a bias.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    rope: Rope | None
    rope_layers: tuple[bool, ...] | None = None
    windows: tuple[int | None, ...] | None = None
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    gated: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    embed_scale: float = 1.0
    tied: bool = True
    head: Literal["lm", "sequence", "token"] = "lm"
    num_labels: int = 0
    head_bias: bool = False

    @property
    def num_outputs(self) -> int:
        """Return the width of the head."""
        return self.vocab_size if self.head == "lm" else self.num_labels

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """Return the widths of query, key and value."""
        kv_size = self.num_kv_heads * self.head_dim
        return self.num_heads * self.head_dim, kv_size, kv_size
