"""A random Llama checkpoint, and other libraries that decode from it.

Each `*_decoder` loads the checkpoint and returns a function of the number of particles and
of tokens that draws texts without the letter e, on one thread, and counts their tokens.
"""

import asyncio
import json
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

VOCAB_SIZE, WIDTH, HIDDEN, NUM_LAYERS, NUM_HEADS = 4096, 256, 688, 4, 8
END = 1
PROMPT = "def parse"
LETTER = b"e"

Decoder = Callable[[int, int], int]


def write_checkpoint(folder: Path) -> None:
    """Write a Llama of 4.2 million random parameters, and a tokenizer for it."""
    from safetensors.numpy import save_file

    _train_tokenizer(folder)
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(0.0, 0.02, shape).astype(np.float32)

    embedding = draw(VOCAB_SIZE, WIDTH)
    # One channel tells the end apart and makes it improbable: texts are equally long.
    embedding[:, 0] = 2.0
    embedding[END, 0] = -2.0
    tensors = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": np.ones(WIDTH, np.float32),
    }
    shapes = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"}
    shapes |= {f"mlp.{name}_proj": (HIDDEN, WIDTH) for name in ("gate", "up")}
    shapes["mlp.down_proj"] = (WIDTH, HIDDEN)
    for layer in range(NUM_LAYERS):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = np.ones(WIDTH, np.float32)
        for name, shape in shapes.items():
            tensors[f"{prefix}{name}.weight"] = draw(*shape)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    _write_config(folder)


def _train_tokenizer(folder: Path) -> None:
    """Train byte-pair encoding on the source text of Python's own library."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-d]*.py"))
    tokenizer.train([str(file) for file in files], trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    tokenizer.save(str(folder / "tokenizer.json"))


def _write_config(folder: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_HEADS,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": END,
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _one_thread() -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")


def generate_decoder(folder: Path) -> Decoder:
    """`transformers.generate` with its cache: plain sampling, no constraint, no SMC."""
    import torch
    import transformers

    _one_thread()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    lm: Any = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = torch.tensor([tokenizer.encode(PROMPT)])

    def decode(num_particles: int, num_tokens: int) -> int:
        with torch.no_grad():
            texts = lm.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=True,
                top_k=0,
                num_return_sequences=num_particles,
                max_new_tokens=num_tokens,
                pad_token_id=tokenizer.eos_token_id,
            )
        ends = (texts[:, prompt.shape[1] :] == tokenizer.eos_token_id).int()
        after_end = (ends.cumsum(1) - ends).clamp(max=1)
        return int((1 - after_end).sum())

    return decode


def llamppl_decoder(folder: Path) -> Decoder:
    """SMC of llamppl; a particle draws from the tokens that have no forbidden letter."""
    from llamppl import CachedCausalLM, LMContext, Model, smc_standard

    _one_thread()
    lm: Any = CachedCausalLM.from_pretrained(
        str(folder), backend="hf", hf_opts={"device_map": None}
    )
    end = lm.tokenizer.eos_token_id
    allowed = {i for i, spelled in enumerate(lm.str_vocab) if "e" not in spelled}

    class Text(Model):
        def __init__(self, num_tokens: int):
            super().__init__()
            self.context = LMContext(lm, PROMPT)
            self.left = num_tokens

        def immutable_properties(self) -> set[str]:
            return set()

        async def step(self) -> None:
            await self.observe(self.context.mask_dist(allowed), True)
            token = await self.sample(self.context.next_token())
            self.left -= 1
            if token == end or self.left == 0:
                self.finish()

    def decode(num_particles: int, num_tokens: int) -> int:
        lm.clear_cache()
        lm.model.batch_size = num_particles
        run = smc_standard(Text(num_tokens), num_particles, 0.5)
        texts: Any = asyncio.run(run)
        return sum(text.context.token_count for text in texts)

    return decode


def genlm_decoder(folder: Path) -> Decoder:
    """SMC of genlm-control; the constraint is a table, drawn from directly.

    Its adaptive weighted rejection takes 1.5 to 3 times as long here.
    """
    import torch
    from genlm.control import PromptedLLM, direct_token_sampler
    from genlm.control.potential import Potential

    _one_thread()
    lm: Any = PromptedLLM.from_name(
        str(folder), backend="hf", hf_opts={"device_map": None}
    )
    lm.prompt_ids = lm.model.tokenizer.encode(PROMPT)

    class WithoutLetter(Potential):
        def __init__(self) -> None:
            super().__init__(lm.vocab)
            found = torch.tensor([LETTER in bytes(token) for token in lm.vocab])
            self.table = torch.where(found, -torch.inf, 0.0)
            self.table = torch.cat([self.table, torch.zeros(1)])

        async def complete(self, context: list) -> float:
            return await self.prefix(context)

        async def prefix(self, context: list) -> float:
            found = any(LETTER in bytes(token) for token in context)
            return float("-inf") if found else 0.0

        async def batch_logw_next(self, contexts: list) -> Any:
            return self.make_lazy_weights(self.table.expand(len(contexts), -1))

        async def logw_next(self, context: list) -> Any:
            return self.make_lazy_weights(self.table)

    sampler = direct_token_sampler(lm * WithoutLetter())

    def decode(num_particles: int, num_tokens: int) -> int:
        lm.model.clear_cache()
        lm.model.batch_size = num_particles
        texts = asyncio.run(sampler.smc(num_particles, 0.5, num_tokens))
        return sum(len(text) for text in texts.contexts)

    return decode


RIVALS = {
    "generate": ("transformers", generate_decoder),
    "llamppl": ("llamppl", llamppl_decoder),
    "genlm": ("genlm", genlm_decoder),
}
"""Of each rival, the module that must be there, and what makes its decoder."""
