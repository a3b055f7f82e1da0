"""API keys for the load, and whether their limits would shape the result."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from daemons.loadtest.load.plan import Closed, Constant, Gamma, Plan, Poisson, PromptType, Ramp, Steps
from daemons.runtime.errors import EXIT_CONFIG, Fatal, describe_os_error

ENVIRONMENT = "LLM_API_KEY"


def read_secrets(plan: Plan) -> list[str]:
    """The secret of each of the plan's keys; that of ``$LLM_API_KEY`` (or none) when it has no keys.

    Raises:
        Fatal: a key file cannot be read or is empty.
    """
    if not plan.keys:
        secret = os.environ.get(ENVIRONMENT, "").strip()
        return [_one_line(secret, f"${ENVIRONMENT}") if secret else ""]
    found = []
    for key in plan.keys:
        try:
            secret = key.file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise Fatal(describe_os_error(error, "read the API key"), EXIT_CONFIG) from None
        except UnicodeDecodeError:
            raise Fatal(f"{key.file}: the key {key.name!r} is not text", EXIT_CONFIG) from None
        found.append(_one_line(secret, str(key.file)))
    return found


def _one_line(secret: str, where: str) -> str:
    if not secret or not secret.isprintable() or not secret.isascii():
        raise Fatal(f"{where}: expected one API key in one line", EXIT_CONFIG)
    return secret


def binding_limits(plan: Plan, secrets: Sequence[str], folder: Path) -> list[str]:
    """One sentence for every limit in the gateway's key files in `folder` that this load would run into."""
    weights = [key.weight for key in plan.keys] or [1.0]
    names = [key.name for key in plan.keys] or ["the key"]
    found = []
    for secret, weight, name in zip(secrets, weights, names, strict=True):
        limits = {k: v for k, v in _limits_of(secret, folder).items() if isinstance(v, int) and v > 0}
        share = weight / sum(weights)
        for limit, need in _needs(plan, share).items():
            if limit in limits and need > limits[limit]:
                found.append(
                    f"{name}: its limit of {limits[limit]} {limit.replace('_', ' ')} binds (this load needs "
                    f"about {need:.0f}); the result will show the limit, not the server"
                )
        if isinstance(plan.load, Closed):
            found += _if_fast(name, limits, plan, plan.load.concurrency * share)
    return found


def _if_fast(name: str, limits: Mapping[str, int], plan: Plan, clients: float) -> list[str]:
    """Limits a closed loop meets if the server is fast: how much it sends is the server's doing."""
    each = {"requests_per_minute": 1.0, "tokens_per_minute": _mean_tokens(plan)}
    return [
        f"{name}: its limit of {limits[limit]} {limit.replace('_', ' ')} binds if answers take less than "
        f"{clients * 60 * cost / limits[limit]:.2g} s; the result would show the limit, not the server"
        for limit, cost in each.items()
        if limit in limits
    ]


def _limits_of(secret: str, folder: Path) -> Mapping[str, object]:
    digest = f"sha256:{hashlib.sha256(secret.encode()).hexdigest()}"
    for path in sorted(folder.glob("*.yaml")):
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue  # the gateway's own check names what is wrong with it
        hashes = data.get("secrets", []) if isinstance(data, dict) else []
        if any((h.get("hash") if isinstance(h, dict) else h) == digest for h in hashes):
            limits = data.get("limits")
            return limits if isinstance(limits, dict) else {}
    return {}


def _tokens(kind: PromptType) -> float:
    return kind.prompt_tokens.mean + (0 if kind.endpoint == "embeddings" else kind.output_tokens.mean)


def _mean_tokens(plan: Plan) -> float:
    return sum(_tokens(kind) * kind.weight for kind in plan.mix) / sum(kind.weight for kind in plan.mix)


def _needs(plan: Plan, share: float) -> dict[str, float]:
    """What a key with `share` of the load needs, as far as the plan says it."""
    load = plan.load
    if isinstance(load, Closed):
        return {"concurrency": load.concurrency * share}
    if isinstance(load, Constant | Poisson | Gamma):
        rate = load.rate
    elif isinstance(load, Ramp):
        rate = max(load.from_rate, load.to_rate)
    elif isinstance(load, Steps):
        rate = max(step.rate for step in load.steps)
    else:
        return {}
    per_minute = rate * 60 * share
    return {"requests_per_minute": per_minute, "tokens_per_minute": per_minute * _mean_tokens(plan)}
