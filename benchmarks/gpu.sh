#!/usr/bin/env bash
# All benchmarks that need a GPU, in less than nine minutes:
#
#     OUT=benchmarks/results bash benchmarks/gpu.sh
#
# Each benchmark is stopped after its share of the time; what it has written stays. Missing packages
# are installed from the wheels in the folder wheels/, if it exists, and peers that are not
# installed are left out. PYTHON names another interpreter.
set -u
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
export JAXATTN_RESULTS="${OUT:-benchmarks/results}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

if [ -d wheels ]; then
    "$python" -m pip install --quiet --no-index --no-deps wheels/*.whl || echo "without the wheels"
fi
if ! "$python" -c 'import importlib.metadata as m; m.version("jaxattn")' 2>/dev/null; then
    mkdir -p jaxattn.egg-info  # results name our version, installed or not
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
    printf 'Metadata-Version: 2.1\nName: jaxattn\nVersion: %s\n' "$version" \
        > jaxattn.egg-info/PKG-INFO
fi

# share SECONDS BENCHMARK ARGUMENTS...
share() {
    local seconds=$1 status=0
    shift
    echo "== $*"
    timeout --kill-after=5 "$seconds" "$python" -m "benchmarks.$1" "${@:2}" || status=$?
    [ "$status" -eq 0 ] || echo "== status $status (124: out of time)"
}

shapes=28x28x512x16,8x8x192x16,7x7x2048x16,28x28x128x16,8x8x2080x16,7x7x128x16,12x12x160x16,8x8x512x12
share 140 attention_kernel --batches=256,16 --dtypes=bfloat16,float32 --shapes="$shapes"
share 200 train_step --models=resnet50,resnet50_sa,irv2_sa --dtypes=bfloat16
share 75 input_pipeline
share 40 scaling
share 50 patch_throughput --dtype=bfloat16 --pytorch
