#!/usr/bin/env bash
# Check and measure hf_async_mtl on one GPU machine, within eight minutes and without a network.
#
#     bash run.sh [--device cuda|cpu] [--quick] [--parts "smoke right fast quality"] OUTPUT
#
# From the folder that pack.sh made, on a machine with what pack.sh says: it makes a virtual environment on top of the
# Python that it finds (python3), installs what was packed, and runs four parts, each with a time limit of its own:
# smoke, right, fast and quality (see the Python files of these names). Each writes OUTPUT/<part>.json and
# OUTPUT/<part>.log. A part that fails leaves its last lines under `errors`, and the others run. Exit status: 1 if a part
# has an error.
#
# In a clone, or to use an environment that has all packages, give its Python, and the data and the encoder that the
# folder would have:
#
#     PYTHON=.venv/bin/python DATA=data ENCODER=all-MiniLM-L6-v2 bash scripts/benchmarks/gpu/run.sh runs/gpu
#
# --parts runs some of them. --quick takes tiny sizes, and four times as long limits: it shows that the parts work, and
# its figures mean nothing.
set -uo pipefail

device=cuda quick=() output=
scale=1  # of the time limits
parts=(smoke right fast quality)
while [ $# -gt 0 ]; do
    case $1 in
        --device) device=$2; shift 2 ;;
        --quick) quick=(--quick) scale=4; shift ;;
        --parts) read -ra parts <<< "$2"; shift 2 ;;
        -*) echo "run.sh takes --device cuda|cpu, --quick, --parts and a folder; found $1." >&2; exit 2 ;;
        *) output=$1; shift ;;
    esac
done
if [ -z "$output" ]; then
    echo "run.sh needs the folder for its results: bash run.sh [--device cuda|cpu] [--quick] [--parts ...] OUTPUT" >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$output" && output=$(cd "$output" && pwd)
total=$((475 * scale))  # seconds of all parts, the installation included
for part in "${parts[@]}"; do rm -f "$output/$part.json" "$output/$part.log"; done

if [ -n "${PYTHON:-}" ]; then
    python=$PYTHON
else
    work=$output/work
    rm -rf "$work" && mkdir -p "$work"
    python3 -m venv --system-site-packages --without-pip "$work/venv" || exit 1
    python=$work/venv/bin/python
    # python3 may be that of a virtual environment, whose packages are not those of the system.
    packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    python3 -c 'import site; print(*site.getsitepackages(), sep="\n")' > "$packages/machine.pth"
    # A peft of the machine would import models of Transformers that are not packed.
    echo 'import sys; sys.modules["peft"] = None' > "$packages/no_peft.pth"
    "$python" "$here/unpack.py" "$here" "$work" || exit 1
    "$python" -m pip install -q --no-index --no-deps --ignore-installed "$work"/wheels/*.whl || exit 1
    "$python" -c 'import hf_async_mtl.training.trainer, datasets, evaluate, scipy.stats, seqeval, torchjd' || exit 1
    here=$work/scripts/benchmarks/gpu DATA=$work/data ENCODER=$work/encoder HF_DATASETS_CACHE=$work/cache
    COMMIT=$(cat "$work/commit")
    export HF_DATASETS_CACHE COMMIT
    echo "installed after $SECONDS s"
fi
export DATA=${DATA:-} ENCODER=${ENCODER:-} HF_HUB_OFFLINE=1 PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
[ "$device" = cpu ] && export CUDA_VISIBLE_DEVICES=

# run_part NAME SCRIPT LIMIT [VARIABLE=VALUE ...]
run_part() {
    local name=$1 script=$2 limit=$(($3 * scale))
    shift 3
    [ "$limit" -gt $((total - SECONDS)) ] && limit=$((total - SECONDS))
    if [ "$limit" -lt 1 ]; then
        echo "There was no time left for this part." > "$output/$name.log"
        "$python" "$here/common.py" "$output" "$name" 0
        return
    fi
    env "$@" timeout --kill-after=10 "$limit" "$python" "$here/$script" "$output" --device "$device" "${quick[@]}" \
        --seconds "$limit" > "$output/$name.log" 2>&1 || "$python" "$here/common.py" "$output" "$name" "$limit"
    echo "$name ended after $SECONDS s"
}

for part in "${parts[@]}"; do
    case $part in
        smoke) run_part smoke smoke.py 60 ;;
        right) run_part right right.py 110 CUBLAS_WORKSPACE_CONFIG=:4096:8 ;;
        fast) run_part fast fast.py 230 ;;
        quality) run_part quality quality_part.py "$total" OMP_NUM_THREADS=1 ;;
        *) echo "The parts are smoke, right, fast and quality; found $part." >&2; exit 2 ;;
    esac
done

"$python" "$here/common.py" "$output" "${parts[@]}"
