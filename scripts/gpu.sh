#!/usr/bin/env bash
# What only a GPU can show, in stages: what must be right before what is fast.
#
#   scripts/gpu.sh build               compiles the programs, for the GPU that is there or else for 9.0
#   scripts/gpu.sh first [stage...]    a first look at a card, within BUDGET seconds (default 300): all stages, or those
#                                      named. Called again it goes on where it was: what passed at this commit on this
#                                      card is not run again unless it is named.
#   scripts/gpu.sh test | bench        the stages of that kind, without a budget
#
#   stage         kind
#   conformance   test    simt's wrappers: each instruction does what its twin on the CPU does
#   kernels       test    all kernels against float64
#   stress        test    many CTAs, graphs, streams and threads at once, large pools
#   e2e           test    the addon, where Node.js and a build with CUDA are there (npm run build)
#   bench         bench   bench/gpu/bench.cc: attention, matrix products, sampling, whole steps
#   memcheck      test    compute-sanitizer, where it is installed
#   torch         bench   the same sizes by PyTorch, where python3 has it
#   racecheck     test    compute-sanitizer, one case of each kind
#   ncu           bench   Nsight Compute on the two kernels that matter, where it is installed
#
# Results are JSON lines in bench/results/gpu/, one file for each card and commit: what the card is, the lines of the
# benchmarks, and a line after each stage with its exit code, seconds and last lines of output. Each line is complete
# when it is written: a run that is cut off loses only what was under way. `node scripts/gpu-figures.cjs` makes tables.
#
# Environment: BUDGET; STAGE_SECONDS: the most for each stage; HOGWILD_GPU_BUILD: folder of the programs, which are then
# taken as they are (default build/gpu, compiled where nvcc is there); HOGWILD_GPU_LIBRARIES: archives with the kernels,
# their device and the engine, which are compiled without it; HOGWILD_GPU_RESULTS: of the results.
# Exit codes: 0; 1 where something failed; 3 where there is no GPU or no nvcc, so that nothing was run.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

nothing() {
  echo "nothing was run: $1" >&2
  exit 3
}

build=${HOGWILD_GPU_BUILD:-build/gpu}
results=${HOGWILD_GPU_RESULTS:-bench/results/gpu}
# CMakeLists.txt has the list. simt is a stage of its own, and so is stress.
read -ra all_tests < <(sed -nE 's/^set\(HOGWILD_KERNEL_TESTS ([a-z ]+)\).*/\1/p' CMakeLists.txt)
tests=()
for name in "${all_tests[@]}"; do [[ $name == simt || $name == stress ]] || tests+=("$name"); done
((${#tests[@]} > 0)) || nothing 'CMakeLists.txt has no list of tests'

# ---- build ----------------------------------------------------------------------------------------------

capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1)
[[ "$capability" =~ ^[0-9]+\.[0-9]+$ ]] || capability=

compile() { # SOURCE OBJECT: unless nothing has changed since; says how many seconds of a processor it took
  [[ -e $2 && -z $(find cuda native test/native test/cuda bench/gpu -newer "$2" -print -quit) ]] && return
  local TIMEFORMAT="%U + %S s  $1"
  time nvcc -std=c++20 -O3 -lineinfo -arch="sm_${architecture}" -DHOGWILD_CUDA -I cuda -I native -I test/cuda \
    -x cu -c "$1" -o "$2"
}

build_all() {
  command -v nvcc >/dev/null || nothing 'nvcc was not found'
  architecture=${capability:-9.0}
  architecture=${architecture/./}
  mkdir -p "$build"
  local source program job rc=0 jobs=() library=() sources=(cuda/*.cu cuda/plan.cc native/core/{fragments,quant}.cc native/device/{backends,sampling}.cc
    native/device/cuda/*.cc)
  local programs=(bench/gpu/bench.cc)
  for program in "${all_tests[@]}"; do programs+=("test/cuda/${program}_test.cc"); done
  if [[ -n ${HOGWILD_GPU_LIBRARIES:-} ]]; then
    read -ra library <<<"$HOGWILD_GPU_LIBRARIES"
    sources=()
  fi
  for source in "${sources[@]}"; do library+=("$build/$(basename "$source").sm_$architecture.o"); done
  for source in "${sources[@]}" "${programs[@]}"; do
    while (($(jobs -rp | wc -l) >= $(nproc))); do wait -n; done
    compile "$source" "$build/$(basename "$source").sm_$architecture.o" &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do wait "$job" || rc=1; done
  ((rc == 0)) || return 1
  for source in "${programs[@]}"; do
    program=$build/$(basename "$source" .cc)
    nvcc -arch="sm_$architecture" -Xcompiler -static-libstdc++,-static-libgcc \
      "$build/$(basename "$source").sm_$architecture.o" -Xlinker --start-group "${library[@]}" -Xlinker --end-group \
      -o "$program" || return 1
  done
}

# ---- results --------------------------------------------------------------------------------------------

escape() { # standard input as the inside of a JSON string
  LC_ALL=C tr -d '\000-\010\013-\037\177-\377' | sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/\t/ /g' |
    awk '{printf "%s%s", n++ ? "\\n" : "", $0}'
}
query() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1 | escape; }

start_results() {
  commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
  [[ -z $(git status --porcelain --untracked-files=no 2>/dev/null) ]] || commit+=-dirty
  card=$(query name)
  mkdir -p "$results" "$build/logs"
  file=$results/$(tr -cs '[:alnum:]\n' - <<<"$card" | tr '[:upper:]' '[:lower:]')-$commit.jsonl
  printf '{"stage": "card", "card": "%s", "capability": "%s", "driver": "%s", "clocks": "%s", "commit": "%s", "date": "%s"}\n' \
    "$card" "$capability" "$(query driver_version)" "$(query clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw)" \
    "$commit" "$(date -u +%FT%TZ)" >>"$file"
}
has_passed() { grep -q "^{\"stage\": \"$1\", \"rc\": 0," "$file"; }

failed=0
# note STAGE NAME RC SECONDS LOG
note() {
  local end
  end=$(tail -n 8 "$5" 2>/dev/null | cut -c1-300 | escape)
  printf '{"stage": "%s", "rc": %s, "name": "%s", "seconds": %s, "end": "%s"}\n' "$1" "$3" "$2" "$4" "$end" >>"$file"
  printf '%4d s  %-24s rc %-3s %s\n' "$SECONDS" "$2" "$3" "$(tail -n 1 "$5" 2>/dev/null | cut -c1-120)"
  [[ $3 == 0 ]] || failed=1
}
leave_out() {
  printf '{"stage": "%s", "left_out": "%s"}\n' "$1" "$2" >>"$file"
  printf '%4d s  %-24s left out: %s\n' "$SECONDS" "$1" "$2"
}

# ---- stages ---------------------------------------------------------------------------------------------

# begin STAGE NEEDS LIMIT [COMMAND]: whether to run it; sets `limit`, in seconds.
begin() {
  [[ " ${wanted[*]} " == *" $1 "* ]] || return 1
  if [[ $named == 0 ]] && has_passed "$1"; then
    echo "$1: has passed"
    return 1
  fi
  local left=$((deadline - SECONDS))
  if ((left < $2)); then
    leave_out "$1" "needs $2 s, $left s are left"
    return 1
  fi
  if [[ -n ${4:-} ]] && ! command -v "$4" >/dev/null; then
    leave_out "$1" "$4 was not found"
    return 1
  fi
  limit=$(($3 < left ? $3 : left))
  limit=$((limit < ${STAGE_SECONDS:-$limit} ? limit : ${STAGE_SECONDS:-$limit}))
}
# together STAGE: each of `commands` (NAME COMMAND), at once, within `limit`. One line for each, and for several one
# more for the stage: that of what failed first.
together() {
  local stage=$1 start=$SECONDS i name log rc all=0 jobs=()
  for ((i = 0; i < ${#commands[@]}; i += 2)); do
    log=$build/logs/$stage-${commands[i]}.log
    timeout -k 3 "$limit" bash -c "${commands[i + 1]}" >"$log" 2>&1 </dev/null &
    jobs+=($!)
  done
  for ((i = 0; i < ${#commands[@]}; i += 2)); do
    name=${commands[i]}
    rc=0
    wait "${jobs[i / 2]}" || rc=$?
    ((all != 0)) || all=$rc
    if ((${#commands[@]} == 2)); then
      note "$stage" "$name" "$rc" $((SECONDS - start)) "$build/logs/$stage-$name.log"
    else
      note "$stage:$name" "$name" "$rc" $((SECONDS - start)) "$build/logs/$stage-$name.log"
    fi
  done
  ((${#commands[@]} == 2)) || note "$stage" "$stage" "$all" $((SECONDS - start)) /dev/null
}
# lines STAGE COMMAND: its standard output are results.
lines() {
  local start=$SECONDS rc=0 log=$build/logs/$1.log
  # Only whole lines: one that is cut off has no end. A program that prints none has failed.
  timeout -k 3 "$limit" bash -c "$2" 2>"$log" </dev/null | tee -a "$log" |
    grep --line-buffered -E '^\{"[^{}]*\}$' >>"$file"
  rc=$((PIPESTATUS[0] != 0 ? PIPESTATUS[0] : PIPESTATUS[2]))
  note "$1" "$1" "$rc" $((SECONDS - start)) "$log"
}

run_stages() {
  local name commands reduced='HOGWILD_TEST_CASES=1 HOGWILD_TEST_ROW_WIDTHS=80,128,256'
  if begin conformance 5 30; then commands=(simt "'$build/simt_test'") && together conformance; fi
  if begin kernels 10 70; then
    commands=()
    for name in "${tests[@]}"; do commands+=("$name" "'$build/${name}_test'"); done
    together kernels
  fi
  if begin stress 15 70; then commands=(stress "'$build/stress_test'") && together stress; fi
  if begin e2e 15 75 npx; then
    if [[ -e build/Release/hogwild.node && -d node_modules ]]; then
      commands=(e2e 'npx jest --config jest.cuda.config.cjs') && together e2e
    else
      leave_out e2e 'the addon is not built here'
    fi
  fi
  # Nothing else runs beside these.
  if begin bench 25 110; then
    lines bench "'$build/bench' --seconds $((limit - 8))"
    printf '{"stage": "clocks", "after": "bench", "clocks": "%s"}\n' \
      "$(query clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw)" >>"$file"
  fi
  if begin memcheck 30 75 compute-sanitizer; then
    commands=()
    for name in simt "${tests[@]}" 'stress captured'; do
      commands+=("${name// /-}" "$reduced compute-sanitizer --tool memcheck --error-exitcode 9 --print-limit 20 '$build/${name%% *}_test' ${name#"${name%% *}"}")
    done
    together memcheck
  fi
  if begin torch 20 45 python3; then
    if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
      lines torch 'python3 -u bench/gpu/torch_reference.py'
    else
      leave_out torch 'python3 has no PyTorch with CUDA'
    fi
  fi
  # Up to a hundred times slower: one case of each kind.
  if begin racecheck 30 70 compute-sanitizer; then
    commands=()
    for name in 'racecheck attention single_tokens' 'racecheck matmul one_to_eight' 'racecheck sample what_' \
      'racecheck simt' 'synccheck attention single_segments' 'synccheck matmul few_rows'; do
      set -- $name
      commands+=("$1-$2" "$reduced compute-sanitizer --tool $1 --error-exitcode 9 --print-limit 20 '$build/${2}_test' ${3:-}")
    done
    together racecheck
  fi
  if begin ncu 30 60 ncu; then
    local sections='--clock-control none --section SpeedOfLight --section LaunchStats --section Occupancy --section WarpStateStats --section MemoryWorkloadAnalysis'
    commands=(attend "ncu $sections -k regex:attend -s 8 -c 1 '$build/bench' --seconds 20 attention"
      multiply "ncu $sections -k regex:multiply -s 2 -c 4 '$build/bench' --seconds 20 matmul")
    together ncu
  fi
}

command=${1:-}
[[ $# == 0 ]] || shift
test_stages=(conformance kernels stress e2e memcheck racecheck)
bench_stages=(bench torch ncu)
named=1
deadline=1000000
case $command in
  build)
    build_all
    exit
    ;;
  first)
    deadline=${BUDGET:-300}
    wanted=("$@")
    ((${#wanted[@]} > 0)) || { named=0 && wanted=("${test_stages[@]}" "${bench_stages[@]}"); }
    ;;
  test) wanted=("${test_stages[@]}") ;;
  bench) wanted=("${bench_stages[@]}") ;;
  *)
    echo 'expected build, first, test or bench' >&2
    exit 1
    ;;
esac
for stage in "${wanted[@]}"; do
  [[ " ${test_stages[*]} ${bench_stages[*]} " == *" $stage "* ]] || { echo "there is no stage '$stage'" >&2 && exit 1; }
done
[[ -n $capability ]] || nothing 'no NVIDIA GPU was found'
if [[ -z ${HOGWILD_GPU_BUILD:-} ]]; then
  # Where nvcc is missing: what was built elsewhere and brought here.
  if command -v nvcc >/dev/null; then build_all || exit 1; elif [[ ! -x $build/bench ]]; then nothing 'nvcc was not found'; fi
fi
start_results
run_stages
echo "$SECONDS s; $([[ $failed == 0 ]] && echo 'all passed' || echo 'SOMETHING FAILED'); see $file"
exit $failed
