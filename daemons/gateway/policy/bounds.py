"""How much a request may ask for."""

from pydantic import Field

from daemons.runtime.settings import Settings


class PolicySettings(Settings):
    """Bounds on the parameters of a request; a request beyond one is refused and told which."""

    n: int = Field(default=4, ge=1)
    """Answers to one prompt; each costs as much as a request."""
    max_tokens: int = Field(default=131072, ge=1)
    """Tokens of an answer."""
    logprobs: int = Field(default=20, ge=0)
    """Log probabilities beside each token."""
    prompt_logprobs: int = Field(default=5, ge=0)
    """Log probabilities beside each token of the prompt."""
    count: int = Field(default=2**31 - 1, ge=1)
    """Whole numbers that count something and have no bound of their own."""
    stop: int = Field(default=16, ge=0)
    """Stop strings and stop tokens."""
    stop_bytes: int = Field(default=4096, ge=0)
    """Bytes of all stop strings or stop tokens together."""
    token_lists: int = Field(default=1024, ge=0)
    """Entries of ``logit_bias``, ``allowed_token_ids`` and ``bad_words``."""
    tools: int = Field(default=128, ge=0)
    """Tools offered to the model."""
    tools_bytes: int = Field(default=262144, ge=0)
    """Bytes of all tools together."""
    schema_bytes: int = Field(default=65536, ge=0)
    """Bytes of a schema or a grammar."""
    schema_depth: int = Field(default=32, ge=1)
    """Nesting of a schema, and of the groups of a regular expression."""
    regex_bytes: int = Field(default=2048, ge=0)
    """Bytes of a regular expression that an answer must match."""
    messages: int = Field(default=2048, ge=1)
    """Messages of a conversation."""
    prompts: int = Field(default=256, ge=1)
    """Prompts of one request for completions."""
    inputs: int = Field(default=2048, ge=1)
    """Texts or documents of one request for embeddings, scores or ranks."""
    items: int = Field(default=1024, ge=1)
    """Items of a response's input."""
    entries: int = Field(default=8192, ge=1024)
    """Entries of all lists within one parameter, lists of token ids apart."""
    value_bytes: int = Field(default=65536, ge=1024)
    """Bytes of a parameter that is no text, conversation, schema or set of tools."""
    template_kwargs_bytes: int = Field(default=4096, ge=0)
    """Bytes of ``chat_template_kwargs``."""
