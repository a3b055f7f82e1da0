"""Every request parameter the gateway knows, and what becomes of it: the one table of the policy.

A parameter that is not in the table is dropped, so that what a new engine release adds stays shut until
somebody has judged it. ``docs/policy.md`` is made from this table.
"""

from dataclasses import dataclass
from enum import StrEnum

from daemons.gateway.policy import checks
from daemons.gateway.policy.bounds import PolicySettings
from daemons.gateway.policy.checks import Check


class Action(StrEnum):
    """What becomes of a parameter."""

    PASS = "passes"  # noqa: S105 - no password
    BOUND = "bounded"
    DROP = "dropped"
    REFUSE = "refused"
    SET = "set by the gateway"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table.

    Attributes:
        action: what becomes of the parameter.
        reason: why, in one sentence.
        check: raises when the value is out of bounds.
        bounds: the keys of `PolicySettings` that the check goes by.
    """

    action: Action
    reason: str
    check: Check | None = None
    bounds: tuple[str, ...] = ()


def _rules(
    action: Action, reason: str, names: str, check: Check | None = None, bounds: str = ""
) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), Rule(action, reason, check, tuple(bounds.split())))


_COMPILED = "Compiled on the engine's CPU; hostile ones hang or kill it (CVE-2026-55574, CVE-2026-105757)."

RULES: dict[str, Rule] = {
    **_rules(Action.PASS, "Changes only the caller's own answer.", "model stream"),
    **_rules(
        Action.PASS, "Text of the caller's own prompt.", "system instructions instruction query suffix tokens"
    ),
    **_rules(
        Action.PASS,
        "Changes only the caller's own answer; its size is bounded.",
        "temperature top_p min_p frequency_penalty presence_penalty repetition_penalty"
        " length_penalty seed user metadata echo ignore_eos include_stop_str_in_output"
        " skip_special_tokens spaces_between_special_tokens add_special_tokens add_generation_prompt"
        " continue_final_message parallel_tool_calls tool_choice reasoning_effort reasoning include_reasoning"
        " include truncation truncation_side encoding_format embed_dtype endianness use_activation padding"
        " return_token_strs thinking service_tier prompt_cache_key return_documents",
        checks.small,
        "value_bytes",
    ),
    **_rules(
        Action.BOUND,
        "An engine fails at numbers beyond 64 bits.",
        "top_k thinking_token_budget truncate_prompt_tokens dimensions top_n max_tokens_per_doc"
        " max_tokens_per_query max_tool_calls",
        checks.number("count", least=-1),
        "count",
    ),
    **_rules(Action.BOUND, "Each answer costs as much as a request.", "n", checks.number("n", least=1), "n"),
    **_rules(
        Action.BOUND,
        "Reserves an engine for as long as the answer takes.",
        "max_tokens max_completion_tokens max_output_tokens",
        checks.number("max_tokens"),
        "max_tokens",
    ),
    **_rules(Action.BOUND, "Forces long answers.", "min_tokens", checks.number("max_tokens"), "max_tokens"),
    **_rules(
        Action.BOUND,
        "Costs memory and bytes for each token; -1 would mean the whole vocabulary.",
        "logprobs top_logprobs",
        checks.number("logprobs"),
        "logprobs",
    ),
    **_rules(
        Action.BOUND,
        "Costs memory for each token of the prompt; -1 would mean the whole vocabulary.",
        "prompt_logprobs",
        checks.number("prompt_logprobs"),
        "prompt_logprobs",
    ),
    **_rules(
        Action.BOUND,
        "Searched for after every token.",
        "stop stop_sequences",
        checks.stop,
        "stop stop_bytes",
    ),
    **_rules(Action.BOUND, "Compared after every token.", "stop_token_ids", checks.stop, "stop stop_bytes"),
    **_rules(
        Action.BOUND,
        "Changes logits on the GPU; oversized lists have corrupted other users' (CVE-2026-93840, -93989).",
        "logit_bias allowed_token_ids bad_words",
        checks.token_list,
        "token_lists value_bytes",
    ),
    **_rules(
        Action.BOUND,
        "Each is rendered into the prompt.",
        "tools",
        checks.tools,
        "tools tools_bytes schema_depth regex_bytes",
    ),
    **_rules(
        Action.BOUND,
        _COMPILED,
        "response_format text output_config",
        checks.schema,
        "schema_bytes schema_depth regex_bytes",
    ),
    **_rules(
        Action.BOUND,
        _COMPILED,
        "structured_outputs",
        checks.structured_outputs,
        "schema_bytes schema_depth regex_bytes",
    ),
    **_rules(
        Action.BOUND,
        "Rendered by a template, message by message.",
        "messages",
        checks.messages,
        "messages",
    ),
    **_rules(
        Action.BOUND,
        "Every prompt is a request of its own (CVE-2026-73559).",
        "prompt",
        checks.prompts("prompts"),
        "prompts",
    ),
    **_rules(
        Action.BOUND,
        "Every text is a request of its own; items of a conversation are rendered one by one.",
        "input documents data_1 data_2 text_1 text_2 queries items",
        checks.prompts("inputs"),
        "inputs",
    ),
    **_rules(
        Action.BOUND,
        "Arguments of the template; a template among them would run on the engine (GHSA-69j4-grxj-j64p).",
        "chat_template_kwargs",
        checks.template_kwargs,
        "template_kwargs_bytes",
    ),
    **_rules(
        Action.SET, "Usage is always asked for, and removed for clients that did not.", "stream_options"
    ),
    **_rules(
        Action.SET, "Derived from the tenant, so that nobody can time another's prefixes.", "cache_salt"
    ),
    **_rules(Action.SET, "Always false: one tenant's answers must not be fetched by another.", "store"),
    **_rules(Action.DROP, "The order of requests follows from the key's class.", "priority"),
    **_rules(
        Action.DROP, "Names a request inside the engine, where names must not meet.", "request_id session_id"
    ),
    **_rules(Action.DROP, "Steers transfers between engines.", "kv_transfer_params ec_transfer_params"),
    **_rules(Action.DROP, "Runs as a program on the engine (CVE-2026-115911).", "chat_template"),
    **_rules(
        Action.DROP,
        "Reaches into media processing (PYSEC-2026-4361, CVE-2026-105760).",
        "mm_processor_kwargs media_io_kwargs return_mm_kwargs",
    ),
    **_rules(Action.DROP, "Arguments for plug-ins, not for tenants.", "vllm_xargs watermarking"),
    **_rules(
        Action.DROP,
        "Shows the engine's inner workings; clients of the OpenAI API do not know it.",
        "return_token_ids return_tokens_as_token_ids return_prompt_text return_token_offsets"
        " routed_experts_prompt_start logprob_token_ids enable_response_messages previous_input_messages"
        " repetition_detection",
    ),
    **_rules(Action.DROP, "Would hold tokens back from the stream.", "stream_interval"),
    **_rules(Action.REFUSE, "Executes deserialised tensors (CVE-2026-56340).", "prompt_embeds mm_payload"),
    **_rules(Action.REFUSE, "Multiplies the work of a request without a bound.", "use_beam_search best_of"),
    **_rules(
        Action.REFUSE,
        "Answers are not kept: send the conversation with each request.",
        "previous_response_id background",
    ),
}


def as_markdown() -> str:
    """The table as a page of the documentation, and the bounds below it."""
    lines = [
        "# What a request may ask",
        "",
        "Made from `daemons/gateway/policy/table.py` by `python -m daemons.gateway.policy`.",
        "Whatever is not listed is dropped. Bounds are the keys of `policy` in `gateway.yaml`, each with its",
        "default; what they mean is told [below](#bounds).",
        "",
        "| parameter | what becomes of it | bounds | reason |",
        "|---|---|---|---|",
    ]
    fields = PolicySettings.model_fields
    for name, rule in sorted(RULES.items()):
        bounds = ", ".join(f"`{key}` {fields[key].default}" for key in rule.bounds)
        lines.append(f"| `{name}` | {rule.action} | {bounds} | {rule.reason} |")
    lines += ["", "## Bounds", "", "| key of `policy` | default | what it bounds |", "|---|---|---|"]
    for key, field in fields.items():
        lines.append(f"| `{key}` | {field.default} | {(field.description or '').replace('``', '`')} |")
    return "\n".join(lines) + "\n"
