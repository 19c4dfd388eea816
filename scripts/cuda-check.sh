#!/usr/bin/env bash
# Compiles the addon with its CUDA kernels and holds them against the committed tables: registers and spills
# (cuda/budget.json), instructions of the main loops (cuda/loops.json). The file must not outgrow the package.
#
#   scripts/cuda-check.sh FOLDER ARCHITECTURES
#
# FOLDER: of the build. ARCHITECTURES: `all`, or CMake's names of some, e.g. '80-real;90-real'. Needs nvcc.
set -euo pipefail
folder=$1 architectures=$2
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly MAX_BYTES=13500000

cmake -S . -B "$folder" -G 'Unix Makefiles' -DCMAKE_BUILD_TYPE=Release -DHOGWILD_CUDA=on \
  -DHOGWILD_CUDA_ARCHITECTURES="$architectures" -DHOGWILD_WERROR=ON >/dev/null
make -C "$folder" -j2 --output-sync=target hogwild >"$folder/ptxas.txt" 2>&1 || { cat "$folder/ptxas.txt"; exit 1; }
budget=$(node scripts/cuda-budget.cjs "$folder/ptxas.txt")
loops=$(node scripts/cuda-loops.cjs "$folder/kept")
strip -o "$folder/stripped.node" "$folder/hogwild.node"
bytes=$(stat -c %s "$folder/stripped.node")
echo "$architectures: $budget; $loops; $bytes bytes"
((bytes < MAX_BYTES))
