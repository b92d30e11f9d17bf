#!/usr/bin/env bash
# Everything that wants a GPU, in less than nine minutes:
#
#     OUT=benchmarks/results bash benchmarks/gpu.sh
#
# Each benchmark has its share of the time and is ended after it; what it has written stays. What
# is missing is installed from the wheels in the folder wheels/, if there is one, and peers that
# are not installed are left out. PYTHON names another interpreter.
set -u
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
export JAXATTN_RESULTS="${OUT:-benchmarks/results}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

if [ -d wheels ]; then
    "$python" -m pip install --quiet --no-index --no-deps wheels/*.whl || echo "without the wheels"
fi
if ! "$python" -c 'import importlib.metadata as m; m.version("jaxattn")' 2>/dev/null; then
    mkdir -p jaxattn.egg-info  # Results name our version, installed or not.
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
    printf 'Metadata-Version: 2.1\nName: jaxattn\nVersion: %s\n' "$version" \
        > jaxattn.egg-info/PKG-INFO
fi

# share SECONDS SCRIPT ARGUMENTS...
share() {
    local seconds=$1 status=0
    shift
    echo "== $*"
    timeout --kill-after=5 "$seconds" "$python" "$@" || status=$?
    [ "$status" -eq 0 ] || echo "== status $status (124: its time was over)"
}

shapes=28x28x512x16,8x8x192x16,7x7x2048x16,28x28x128x16,8x8x2080x16,7x7x128x16,12x12x160x16,8x8x512x12
share 130 benchmarks/attention_kernel.py --batches=256,16 --dtypes=bfloat16,float32 --shapes="$shapes"
share 190 benchmarks/train_step.py --models=resnet50,resnet50_sa,irv2_sa --dtypes=bfloat16
share 70 benchmarks/input_pipeline.py
share 35 benchmarks/scaling.py
share 25 benchmarks/grouped_conv.py --batch=64
share 45 benchmarks/patch_throughput.py --dtype=bfloat16 --pytorch
