"""Turn the GGUF of SmolLM2-135M-Instruct into a folder that vLLM serves.

Run by the vLLM environment's interpreter: ``python convert_smollm2.py MODEL.gguf FOLDER``. It
stands alone and does without transformers, whose GGUF loader takes five times as long, refuses
to save what it loaded, and loses this tokenizer's splitting of digits.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

BOS, EOS, PAD = 1, 2, 2
SAMPLING = {"do_sample": False, "temperature": 0.0}
"""Greedy unless the client asks otherwise: at vLLM's own default, 1.0, a model of this size drifts off."""
CONTROL_TOKEN = 3
"""``TokenType.CONTROL`` of the GGUF specification."""

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def llama_name(name: str) -> str:
    """The Hugging Face name of a llama tensor of a GGUF file; ``KeyError`` for an unknown one."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"


def unpermute(weights: Any, heads: int) -> Any:
    """Undo the interleaving of rotary halves that llama.cpp's converter applies to Q and K."""
    rows, columns = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


class Source:
    """The parts of the GGUF file that the folder needs."""

    def __init__(self, path: Path) -> None:
        self._reader = GGUFReader(path)
        self.heads = self.field("llama.attention.head_count")
        self.kv_heads = self.field("llama.attention.head_count_kv")

    def field(self, name: str) -> Any:
        return self._reader.fields[name].contents()

    def tensors(self) -> dict[str, Any]:
        """Every tensor, by its Hugging Face name."""
        heads = {"attn_q": self.heads, "attn_k": self.kv_heads}
        found = {}
        for tensor in self._reader.tensors:
            weights = dequantize(tensor.data, tensor.tensor_type)
            part = tensor.name.split(".")[-2]
            if part in heads:
                weights = unpermute(weights, heads[part])
            found[llama_name(tensor.name)] = torch.tensor(weights, dtype=torch.bfloat16)
        return found

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "hidden_act": "silu",
            "hidden_size": self.field("llama.embedding_length"),
            "intermediate_size": self.field("llama.feed_forward_length"),
            "max_position_embeddings": self.field("llama.context_length"),
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.field("llama.block_count"),
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": round(self.field("llama.attention.layer_norm_rms_epsilon"), 9),
            "rope_theta": self.field("llama.rope.freq_base"),
            "tie_word_embeddings": True,
            "vocab_size": self.field("llama.vocab_size"),
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
        }

    def tokenizer(self) -> Tokenizer:
        """Byte-level BPE that splits digits one by one: the pre-tokenizer ``smollm`` of GGUF."""
        tokens = self.field("tokenizer.ggml.tokens")
        kinds = self.field("tokenizer.ggml.token_type")
        merges = [tuple(pair.split(" ", 1)) for pair in self.field("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(
            [
                AddedToken(token, special=True, normalized=False)
                for token, kind in zip(tokens, kinds, strict=True)
                if kind == CONTROL_TOKEN
            ]
        )
        return tokenizer


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def convert(source: Source, folder: Path) -> None:
    """Write weights, configuration, tokenizer and chat template into an existing folder."""
    tokenizer = source.tokenizer()
    save_file(source.tensors(), folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", source.config())
    write_json(
        folder / "generation_config.json",
        {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD, **SAMPLING},
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokenizer.id_to_token(BOS),
            "eos_token": tokenizer.id_to_token(EOS),
            "pad_token": tokenizer.id_to_token(PAD),
            "unk_token": tokenizer.id_to_token(0),
            "model_max_length": source.field("llama.context_length"),
            "clean_up_tokenization_spaces": False,
        },
    )
    template = source.field("tokenizer.chat_template")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


if __name__ == "__main__":
    convert(Source(Path(sys.argv[1])), Path(sys.argv[2]))
