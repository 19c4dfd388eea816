#!/usr/bin/env bash
# Instructions of one decode step at the AVX2 level, with 1 and with 4 workers, under callgrind. Takes the paths
# of decode_step programs (cmake -DHOGWILD_NATIVE_TESTS=ON, target decode_step), e.g. before and after a change;
# with two of them also medians of 9 alternating rounds.
set -euo pipefail
export HOGWILD_SIMD=avx2

instructions() { # program steps workers
  valgrind --tool=callgrind --callgrind-out-file=/dev/null "$1" "$2" "$3" 2>&1 | sed -n 's/.*Collected : //p'
}
for program in "$@"; do
  for workers in 1 4; do
    few=$(instructions "$program" 2 "$workers")
    many=$(instructions "$program" 7 "$workers")
    echo "$program, $workers workers: $(((many - few) / 5)) instructions per step"
  done
done
if (($# == 2)); then
  for round in 1 2 3 4 5 6 7 8 9; do
    for program in "$@"; do echo "$program $("$program" 60)"; done
  done | sort -s -k1,1 | awk '{ t[$1] = t[$1] " " $2; hash[$1] = $5 }
    END { for (p in t) { n = split(t[p], v, " "); asort(v); print p ": median " v[int((n + 1) / 2)] " us, logits " hash[p] } }'
fi
