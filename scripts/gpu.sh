#!/usr/bin/env bash
# What only a GPU can show, built by nvcc alone: no Node.js needed.
#
#   scripts/gpu.sh test      conformance of simt's wrappers and all kernels against float64, then under
#                            compute-sanitizer where that is installed; writes bench/results/gpu-test.json
#   scripts/gpu.sh bench     speed (bench/gpu/bench.cc), beside PyTorch's attention where python3 has it; writes
#                            bench/results/gpu-bench.json. Further arguments go to the bench.
#   scripts/gpu.sh build     only compiles both, for the GPU that is there or else for 8.0
#
# Exit codes: 0; 1 where something failed; 3 where there is no GPU or no nvcc, so that nothing was run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

nothing() {
  echo "nothing was run: $1" >&2
  exit 3
}
command -v nvcc >/dev/null || nothing 'nvcc was not found'
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1) || true
if [[ ! "$capability" =~ ^[0-9]+\.[0-9]+$ ]]; then
  [[ "${1:-}" == build ]] || nothing 'no NVIDIA GPU was found'
  capability=8.0
fi
architecture=sm_${capability/./}
[[ $architecture == sm_90 ]] && architecture=sm_90a # has instructions of its own

tests=(simt attention kv matmul pointwise sample)
build=build/gpu
mkdir -p "$build" bench/results
compile=(nvcc -std=c++20 -O3 -arch="$architecture" -DHOGWILD_CUDA -I cuda -I native)

compile_all() { # sources: side by side, unless nothing has changed since; sets `objects`
  local source object jobs=()
  objects=()
  for source in "$@"; do
    object=$build/$(basename "$source").$architecture.o
    objects+=("$object")
    [[ -e $object && -z $(find cuda native test/native test/cuda bench/gpu -newer "$object" -print -quit) ]] && continue
    echo "compiling $source"
    "${compile[@]}" -x cu -c "$source" -o "$object" &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do wait "$job"; done
}
about() {
  printf '"card": "%s", "driver": "%s", "commit": "%s", "date": "%s"' \
    "$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)" \
    "$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)" \
    "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" "$(date -u +%F)"
}

run_tests() {
  local failed=0 results=() summary
  check() { # name, command...
    local name=$1 outcome=true
    shift
    echo "=== $name"
    "$@" >"$build/output.txt" 2>&1 || outcome=false
    [[ $outcome == true ]] || failed=1
    tail -n 5 "$build/output.txt"
    summary=$(tail -n 1 "$build/output.txt" | tr -d '"\\')
    results+=("{\"name\": \"$name\", \"passed\": $outcome, \"summary\": \"$summary\"}")
  }
  for name in "${tests[@]}"; do
    check "$name" "$build/${name}_test"
    if command -v compute-sanitizer >/dev/null; then
      for tool in memcheck racecheck; do
        check "$name, $tool" env HOGWILD_TEST_CASES=1 \
          compute-sanitizer --tool "$tool" --error-exitcode 1 "$build/${name}_test"
      done
    fi
  done
  printf '{%s, "tests": [\n%s\n]}\n' "$(about)" "$(IFS=$'\n' && echo "${results[*]}" | sed '$!s/$/,/')" \
    >bench/results/gpu-test.json
  return $failed
}

run_bench() {
  "$build/bench" "$@" >"$build/bench.json"
  echo null >"$build/torch.json"
  if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    python3 bench/gpu/torch_attention.py >"$build/torch.json"
  fi
  printf '{%s,\n"hogwild": %s,\n"torch": %s}\n' "$(about)" "$(cat "$build/bench.json")" "$(cat "$build/torch.json")" \
    | tee bench/results/gpu-bench.json
}

case "${1:-}" in
  test | bench | build) ;;
  *)
    echo 'expected test, bench or build' >&2
    exit 1
    ;;
esac
compile_all cuda/*.cu cuda/plan.cc native/device/{device,sampling}.cc native/device/cuda/cuda_device.cc
kernels=("${objects[@]}")
programs=()
sources=()
[[ $1 == bench ]] || programs+=("${tests[@]/%/_test}")
[[ $1 == test ]] || programs+=(bench)
for program in "${programs[@]}"; do
  [[ $program == bench ]] && folder=bench/gpu || folder=test/cuda
  sources+=("$folder/$program.cc")
done
compile_all "${sources[@]}"
for program in "${programs[@]}"; do
  "${compile[@]}" "$build/$program.cc.$architecture.o" "${kernels[@]}" -o "$build/$program"
done

case $1 in
  test) run_tests ;;
  bench) run_bench "${@:2}" ;;
esac
