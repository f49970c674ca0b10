#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Fuzzes decoder and encoder side by side, with address and undefined-behaviour sanitizers.
#   csrc/fuzz/run.sh SECONDS
# Needs CMake, Ninja and clang++ with libFuzzer. Starts from the committed corpus; fails on the first input that breaks
# a promise and leaves that input in $FUZZ_OUT (default: a new temporary folder).
set -eu
seconds=${1:?usage: csrc/fuzz/run.sh SECONDS}
here=$(cd "$(dirname "$0")" && pwd)
csrc=$(dirname "$here")
out=${FUZZ_OUT:-$(mktemp -d)}
echo "fuzzing for $seconds s; results in $out"

cmake -S "$csrc" -B "$out/build" -G Ninja -DCMAKE_CXX_COMPILER="${CXX:-clang++}" -DMLIC_FAST_EXTENSIONS=OFF \
    -DMLIC_FAST_SANITIZE=ON -DMLIC_FAST_WERROR=ON >"$out/cmake.log" || { cat "$out/cmake.log"; exit 1; }
cmake --build "$out/build" --target fuzz_decoder fuzz_encoder
mkdir -p "$out/decoder" "$out/encoder"

run() {
    "$out/build/fuzz_$1" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$out/$1-" "$out/$1" "$here/corpus/$1" >"$out/$1.log" 2>&1
}

run decoder & decoder=$!
run encoder & encoder=$!
status=0
wait "$decoder" || status=1
wait "$encoder" || status=1
for name in decoder encoder; do
    echo "$name: $(grep -E 'number_of_executed_units' "$out/$name.log" || tail -n 30 "$out/$name.log")"
done
exit $status
