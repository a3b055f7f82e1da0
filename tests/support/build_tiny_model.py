"""Build a tiny random Llama that vLLM serves: the same bytes on every run.

Run by the vLLM environment's interpreter: ``.venv-vllm/bin/python tests/support/build_tiny_model.py
[FOLDER]``. Without FOLDER it goes to the cache (``$XDG_CACHE_HOME``, else ``~/.cache``). A folder
that is there already is left alone. Its text is noise: send ``ignore_eos`` for a fixed length.
"""

import os
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 20_260
VOCABULARY = 512
SPECIAL = ["<unk>", "<|im_start|>", "<|im_end|>"]
BOS, EOS, PAD = 1, 2, 2
CORPUS = [
    "The quick brown fox jumps over the lazy dog while the slow grey cat sleeps in the sun.",
    "A server answers many requests at once, and every answer is a stream of small tokens.",
    "Count from one to ten: one, two, three, four, five, six, seven, eight, nine, ten.",
    "What is the capital of France? The capital of France is Paris, a city on the Seine.",
    "def add(left: int, right: int) -> int:\n    return left + right\n",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def default_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "llm-inference-stack" / "models" / "tiny"


def build_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=SPECIAL[0],
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[EOS],
        pad_token=SPECIAL[PAD],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )


def build_weights() -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        initializer_range=0.2,  # spread enough that greedy decoding does not repeat one token
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def build(folder: Path) -> None:
    """Write the model under a temporary name beside ``folder``, then rename it into place."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        made = Path(temporary) / folder.name
        build_tokenizer().save_pretrained(made)
        build_weights().save_pretrained(made)
        GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD).save_pretrained(made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():  # another run was faster
                raise


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else default_folder()
    build(target)
    sys.stdout.write(f"{target}\n")
