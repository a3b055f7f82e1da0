"""The request bodies that vLLM takes, as far as they change the simulator; other fields are ignored."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator


class Body(BaseModel):
    """Base of every request body: unknown fields are ignored, as by vLLM."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None


class StreamOptions(BaseModel):
    """``stream_options``."""

    include_usage: bool | None = True
    continuous_usage_stats: bool | None = False


class Generation(Body):
    """What chat and completion requests share."""

    max_tokens: int | None = None
    n: int | None = 1
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    ignore_eos: bool = False
    min_tokens: int = 0
    include_stop_str_in_output: bool = False
    cache_salt: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class Function(BaseModel):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    """An entry of ``tools``."""

    type: Literal["function"] = "function"
    function: Function


class NamedFunction(BaseModel):
    """The name in a named tool choice."""

    name: str


class NamedTool(BaseModel):
    """``tool_choice`` by name."""

    type: Literal["function"] = "function"
    function: NamedFunction


class ChatRequest(Generation):
    """``/v1/chat/completions``."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = 0
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None


class CompletionRequest(Generation):
    """``/v1/completions``."""

    prompt: list[int] | list[list[int]] | str | list[str] | None = None
    logprobs: int | None = None
    echo: bool | None = False


class MessagesRequest(Body):
    """``/v1/messages``."""

    messages: list[dict[str, Any]]
    max_tokens: int
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = False
    temperature: float | None = None
    top_p: float | None = None

    @field_validator("max_tokens")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value <= 0:
            raise ValueError("max_tokens must be positive")
        return value


class CountRequest(Body):
    """``/v1/messages/count_tokens``."""

    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] | None = None


class ResponsesRequest(Body):
    """``/v1/responses``."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    stream: bool | None = False
    temperature: float | None = None
    top_p: float | None = None
    metadata: dict[str, Any] | None = None
    previous_response_id: str | None = None
    user: str | None = None


class EmbeddingRequest(Body):
    """``/v1/embeddings``."""

    input: list[int] | list[list[int]] | str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


class TokenizeRequest(Body):
    """``/tokenize``; one of the two is given."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    return_token_strs: bool | None = False


class DetokenizeRequest(Body):
    """``/detokenize``."""

    tokens: list[int]
