#!/usr/bin/env bash
# Make one folder of at most 60 MiB with all that run.sh needs on a machine without a network.
#
#     DATA=data ENCODER=all-MiniLM-L6-v2 PYTHON=.venv/bin/python bash scripts/benchmarks/gpu/pack.sh OUTPUT_FOLDER
#
# DATA has the folders glue, ecommerce and weak, with the columns of the Hub; ENCODER is a folder with a BERT encoder; PYTHON
# has this project's packages, pip and a network. `strip` (binutils) must be there too.
#
# The target is Python 3.12 on Linux x86-64 with PyTorch 2.11 and what it requires, numpy, scipy, scikit-learn, pandas and
# matplotlib. PYTHON_VERSION and TORCH_VERSION change it.
#
# As they are, the wheels would take 150 MiB, and the encoder 43. What does not fit, and what is done instead:
#
# * Wheels lose their tests, headers, typing stubs and symbol tables; pyarrow its clients of S3, Azure, HDFS and Flight;
#   transformers the models that no part uses. All is compressed again, together. The rules are in pack.py.
# * Packages that no part imports are left out, although metadata require them: see LEFT_OUT in pack.py.
# * The encoder has the three layers that the comparison of methods uses, in bfloat16, and zeros for the word pieces that
#   the packed texts do not have. The measurement on GLUE uses random weights of all its layers, which are as fast.
#
# Compressing takes two minutes. Checked with Python 3.12 on a machine with an NVIDIA H200, and with PYTHON_VERSION=3.11 in
# an environment that had the packages above alone.
set -euo pipefail

if [ $# -ne 1 ] || [ -z "${DATA:-}" ] || [ -z "${ENCODER:-}" ]; then
    echo "pack.sh needs a folder to make, and the variables DATA and ENCODER; see its first lines." >&2
    exit 2
fi
output=$1 limit_mib=60
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
python=$(command -v "${PYTHON:-python3}")
version=${PYTHON_VERSION:-3.12}
if [ -e "$output" ] && [ -n "$(ls -A "$output")" ]; then
    echo "The folder to make must be empty; $output is not. Give another one." >&2
    exit 2
fi
mkdir -p "$output"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
wheels=$scratch/wheels absent=$scratch/absent
mkdir "$wheels" "$absent"

target=(--python-version "$version" --implementation cp --abi "cp${version/./}" --abi abi3 --abi none --only-binary=:all:)
for platform in manylinux2014 manylinux_2_17 manylinux_2_24 manylinux_2_27 manylinux_2_28; do
    target+=(--platform "${platform}_x86_64")
done

# Empty wheels stand for what the machine has and for what is left out, so that pip does not fetch it.
"$python" "$here/pack.py" absent "$absent" "${TORCH_VERSION:-2.11.0}" "$root/constraints.txt" > "$scratch/constraints.txt"
# seqeval has no wheel in the index.
"$python" -m pip wheel -q --no-deps -c "$root/constraints.txt" --wheel-dir "$wheels" "$root" seqeval
"$python" -m pip download -q --dest "$wheels" --find-links "$absent" -c "$scratch/constraints.txt" "${target[@]}" \
    "$wheels"/*.whl torchjd
rm -f "$wheels"/*+image-*.whl "$wheels"/*+absent-*.whl
"$python" "$here/pack.py" strip "$wheels"

# Each dependency is in the folder, on the machine, or named in LEFT_OUT.
"$python" -m pip download -q --no-index --find-links "$wheels" --find-links "$absent" "${target[@]}" \
    --dest "$scratch/checked" hf-async-mtl torchjd

"$python" "$here/pack.py" rest "$scratch/rest" "$root" "$DATA" "$ENCODER"
git -C "$root" rev-parse --short HEAD > "$scratch/rest/commit" || true
"$python" "$here/pack.py" compress "$output/wheels.tar.xz" "$wheels" wheels code
for name in "$scratch"/rest/*; do
    "$python" "$here/pack.py" compress "$output/$(basename "$name").tar.xz" "$name" "$(basename "$name")" text
done
cp "$here/run.sh" "$here/unpack.py" "$output"

size=$(du -sb "$output" | cut -f1)
ls -l "$output"
echo "$output has $((size / 1048576)) MiB and $((size % 1048576)) bytes; at most $limit_mib MiB are allowed."
[ "$size" -le $((limit_mib * 1048576)) ] || exit 1
