"""One stack for all of these tests: starting vLLM takes a minute."""

from collections.abc import Iterator

import openai
import pytest

from tests.support.vllm_stack import VLLM, Stack, stack_in


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if not (VLLM / "vllm").exists():
        pytest.skip("no vLLM: .venv-vllm is not installed")
    with stack_in(tmp_path_factory.mktemp("conformance")) as made:
        yield made


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with stack.openai() as made:
        yield made
