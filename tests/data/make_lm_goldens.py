"""Write the golden checkpoints of `tests/data/lm_goldens`; needs torch, transformers.

    python tests/data/make_lm_goldens.py tests/data/lm_goldens

For each architecture: a tiny random checkpoint, two prompts, the 64 tokens that
`transformers` generates greedily after each, and the logits at every position.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

VOCAB, PROMPT, GENERATED = 96, 8, 64
TINY = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def rope(kind: str, **settings: float) -> dict:
    """Return the configuration of stretched rotary positions."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **settings}}


STRETCHED = {"factor": 4.0, "original_max_position_embeddings": 32}
LANGUAGE_MODELS = {
    "llama2": LlamaConfig(**TINY | {"num_key_value_heads": 4}),
    "llama3": LlamaConfig(
        **TINY,
        **rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0, **STRETCHED),
        attention_bias=True,
        mlp_bias=True,
    ),
    "llama_linear": LlamaConfig(**TINY, **rope("linear", factor=2.0)),
    "llama_dynamic": LlamaConfig(**TINY, **rope("dynamic", factor=2.0)),
    "llama_yarn": LlamaConfig(**TINY, **rope("yarn", **STRETCHED)),
    "smollm": LlamaConfig(**TINY, tie_word_embeddings=True, **rope("default")),
    "smollm3": SmolLM3Config(**TINY | {"num_hidden_layers": 4}),
    "mistral": MistralConfig(**TINY, sliding_window=12, head_dim=16),
    "qwen2": Qwen2Config(
        **TINY | {"num_hidden_layers": 3},
        use_sliding_window=True,
        sliding_window=10,
        max_window_layers=1,
    ),
    "qwen2_tied": Qwen2Config(**TINY, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**TINY, head_dim=16, tie_word_embeddings=True),
    "gemma": GemmaConfig(**TINY, head_dim=16),
    "gpt2": GPT2Config(**GPT2),
}
REWARD_MODELS = {
    "llama_sequence": (
        AutoModelForSequenceClassification,
        LlamaConfig(**TINY, num_labels=1),
    ),
    "qwen2_token": (AutoModelForTokenClassification, Qwen2Config(**TINY, num_labels=2)),
    "qwen3_sequence": (
        AutoModelForSequenceClassification,
        Qwen3Config(**TINY, head_dim=16, num_labels=3),
    ),
    "gpt2_sequence": (
        AutoModelForSequenceClassification,
        GPT2Config(**GPT2, num_labels=1),
    ),
    "gpt2_token": (AutoModelForTokenClassification, GPT2Config(**GPT2, num_labels=2)),
}
SHARDED = "qwen3"


def randomize(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Draw all parameters anew, large enough that an error anywhere shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(is_scale + 0.2 * noise)
    return model.eval().float()


def language_golden(config: object, seed: int) -> tuple[PreTrainedModel, dict]:
    """Return a random model and its greedy continuations, free of near ties."""
    while True:
        model = randomize(AutoModelForCausalLM.from_config(config), seed)
        prompts = torch.randint(1, VOCAB, (2, PROMPT), generator=_generator(seed))
        tokens = prompts
        with torch.no_grad():
            for _ in range(GENERATED):
                last = model(tokens, use_cache=False).logits[:, -1]
                tokens = torch.cat([tokens, last.argmax(-1, keepdim=True)], dim=1)
            logits = model(tokens, use_cache=False).logits
        best, second = logits[:, PROMPT - 1 : -1].topk(2, dim=-1).values.unbind(-1)
        if (best - second).min() > 1e-3:
            return model, {"tokens": tokens.numpy(), "logits": logits.numpy()}
        seed += 100


def reward_golden(
    auto: type, config: object, seed: int
) -> tuple[PreTrainedModel, dict]:
    """Return a random model with a reward head, and what it says of two texts."""
    model = randomize(auto.from_config(config), seed)
    tokens = torch.randint(1, VOCAB, (2, 12), generator=_generator(seed))
    tokens[1, 9:] = 0  # padding
    with torch.no_grad():
        mask = (tokens != 0).long()
        logits = model(tokens, attention_mask=mask).logits
    return model, {"tokens": tokens.numpy(), "logits": logits.numpy()}


def write(folder: Path, model: PreTrainedModel, golden: dict, sharded: bool) -> None:
    """Write a checkpoint and its golden values."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size="40KB" if sharded else "1GB")
    np.savez_compressed(folder / "golden.npz", **golden)
    (folder / "generation_config.json").unlink(missing_ok=True)


def write_all(folder: Path, seed: int) -> None:
    """Write a checkpoint for every architecture."""
    for i, (name, config) in enumerate(LANGUAGE_MODELS.items()):
        model, golden = language_golden(config, seed + i)
        write(folder / name, model, golden, name == SHARDED)
    for i, (name, (auto, config)) in enumerate(REWARD_MODELS.items()):
        model, golden = reward_golden(auto, config, seed + 50 + i)
        write(folder / name, model, golden, sharded=False)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed + 1000)


if __name__ == "__main__":
    write_all(Path(sys.argv[1]), seed=0)
