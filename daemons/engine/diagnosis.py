"""Turns the output of a vLLM that would not start into one line that says what to do."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from daemons.runtime.errors import EXIT_CONFIG, Fatal


@dataclass(frozen=True, slots=True)
class _Known:
    pattern: re.Pattern[str]
    advice: str
    exit_code: int = EXIT_CONFIG


def _known(pattern: str, advice: str, exit_code: int = EXIT_CONFIG) -> _Known:
    return _Known(re.compile(pattern), advice, exit_code)


# The first that matches decides; {0}, {1} are its groups.
_KNOWN = (
    _known(r"unrecognized arguments: (.+)", "vLLM does not know {0}: correct extra_args"),
    _known(r"error: argument ([^:]+): (.+)", "vLLM refuses {0}: {1}"),
    _known(
        r"No space left on device", "the disk is full: free some space in the engine's cache folder and /tmp"
    ),
    _known(r"Disk quota exceeded", "the disk quota is used up: free some space"),
    _known(
        r"(?:\[Errno 98\]|error while attempting to bind).*[Aa]ddress already in use",
        "an address vLLM needs is already in use: stop what listens there",
        1,
    ),
    _known(
        r"GatedRepoError|Access to model \S+ is restricted|trying to access a gated repo",
        "the model is gated: accept its licence on the hub, and give a token that may read it (hf-token)",
    ),
    _known(
        r"LocalEntryNotFoundError|outgoing traffic has been disabled|offline mode is enabled",
        "the model is not on this machine: fetch it with llmctl download",
    ),
    _known(
        r"RepositoryNotFoundError|is not a valid model identifier|Repo id must be in the form"
        r"|does not appear to have a file named config\.json|No such file or directory: '[^']*config\.json'",
        "there is no such model: correct the key model",
    ),
    _known(r"RevisionNotFoundError", "the model has no such revision: correct the key revision"),
    _known(
        r"Model architectures? (\[.*?\]) (?:are|is) not supported",
        "this vLLM cannot serve models of architecture {0}: use a newer vLLM or another model",
    ),
    _known(
        r"trust_remote_code=True",
        "the model brings its own code, which vLLM runs only with trust-remote-code in extra_args: "
        "read the code first",
    ),
    _known(
        r"Free memory on device .*?\(([\d.]+)/([\d.]+) GiB\).*?less than desired",
        "only {0} of {1} GiB of GPU memory are free, fewer than gpu_memory_utilization asks for: "
        "stop what else uses the GPU, or lower it",
        1,
    ),
    _known(
        r"To serve at least one request with the models?.s max seq len \((\d+)\)",
        "the KV cache does not hold one request of {0} tokens: lower max_model_len, "
        "or raise gpu_memory_utilization",
    ),
    _known(
        r"The model's max seq len \((\d+)\) is larger than the maximum number of tokens",
        "the KV cache does not hold one request of {0} tokens: lower max_model_len, "
        "or raise gpu_memory_utilization",
    ),
    _known(
        r"No available memory for the cache blocks",
        "after the weights no memory is left for the KV cache: raise gpu_memory_utilization, "
        "lower max_model_len, or take a smaller or quantized model",
    ),
    _known(
        r"torch\.(?:cuda\.)?OutOfMemoryError|CUDA out of memory",
        "the GPU's memory is exhausted: see `llmctl plan`, lower max_num_seqs, "
        "or take a smaller or quantized model",
    ),
    _known(
        r"User-specified max_model_len \((\d+)\) is greater than the derived max_model_len "
        r"\([^=]*=?(\d+)",
        "max_model_len {0} is more than the model's own {1}: lower it",
    ),
    _known(
        r"No CUDA GPUs are available|Failed to infer device type|CUDA driver version is insufficient",
        "vLLM sees no usable GPU: check nvidia-smi and the driver, or set gpus: [] for the CPU",
        1,
    ),
)
_RAISED = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b: \S")


def diagnose(lines: Sequence[str], returncode: int) -> Fatal:
    """What to tell the operator about a start that ended.

    Args:
        lines: the last messages of vLLM, oldest first.
        returncode: as from `subprocess`, negative for a signal.
    """
    for known in _KNOWN:
        for line in lines:
            found = known.pattern.search(line)
            if found:
                advice = known.advice.format(*(group or "" for group in found.groups()))
                return Fatal(f"vLLM did not start: {advice}", known.exit_code)
    return Fatal(f"vLLM did not start ({describe_exit(returncode)}): {_last_word(lines)}")


def describe_exit(returncode: int) -> str:
    """``exit status 1`` or ``killed by signal 9``."""
    return f"killed by signal {-returncode}" if returncode < 0 else f"exit status {returncode}"


def _last_word(lines: Sequence[str]) -> str:
    """The line that most likely says why: the first exception that is not merely passed on, else the last."""
    raised = [line for line in lines if _RAISED.match(line) and "See root cause above" not in line]
    if raised:
        return raised[0]
    return next((line for line in reversed(lines) if line.strip()), "it wrote nothing")
