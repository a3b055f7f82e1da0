"""The engines' dashboard on the real vLLM, on the CPU."""

import time
from pathlib import Path

import pytest

from daemons.llmctl.up.models import SMOLLM2, model_cache
from observability.grafana.panels import boards, panels
from observability.grafana.pictures import Window
from tests.integration.observability.lab import ROOT, lab, missing

VLLM = ROOT / ".venv-vllm" / "bin" / "vllm"
MODEL = model_cache() / SMOLLM2
LOAD_SECONDS = 15.0

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(missing()), reason=f"needs {missing()}: apt-get install {missing()}"),
    pytest.mark.skipif(
        not (VLLM.exists() and (MODEL / "config.json").exists()),
        reason="needs the real vLLM and its model: run `make up` once",
    ),
]

WITHOUT_DATA = {
    "Offload tier A": "no second tier is configured",
    "Running, waiting, swapped C": "this release swaps nothing",
}


def test_every_query_of_the_engines_dashboard_finds_data(library: Path, tmp_path: Path) -> None:
    with lab(tmp_path, library) as running:
        settings = {"vllm": [str(VLLM)], "model": str(MODEL), "max_num_seqs": 4, "max_model_len": 2048}
        running.engine("smollm2-cpu", "smollm2", {**settings, "kv_cache_memory_bytes": 256 << 20})
        load = running.gateway(broken="none")
        prometheus = running.prometheus("1s")
        start = time.time()
        load.run(LOAD_SECONDS, 4)
        window = Window(start, time.time(), 1, "10s")
        empty = set()
        for panel in panels(boards()["engines"]):
            for query in panel.queries:
                found = prometheus.over(window.fill(query.expr), window.start, window.end, 2)
                if not any(one.points for one in found):
                    empty.add(f"{panel.title} {query.ref}")
        assert empty == set(WITHOUT_DATA)
