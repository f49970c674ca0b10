#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Fuzzes the readers of files one after the other: container, guard, alpha, official layout, weights, pictures, strings.
#   tests/fuzz/run.sh SECONDS [TARGET...]
# SECONDS: for each target. Needs atheris (pip install '.[fuzz]').
# Starts from the committed corpus; fails on the first input that breaks a promise, takes longer than 10 s or needs
# more than 2 GiB, and leaves that input in $FUZZ_OUT (default: a new temporary folder).
set -eu
seconds=${1:?usage: tests/fuzz/run.sh SECONDS [TARGET...]}
shift
here=$(cd "$(dirname "$0")" && pwd)
out=${FUZZ_OUT:-$(mktemp -d)}
echo "fuzzing each target for $seconds s; results in $out"

status=0
# `picture` is Pillow more than it is ours: it runs where it is named.
[ $# -gt 0 ] || set -- container official guard alpha native pickle pillow strings
for target; do
    mkdir -p "$out/$target"
    "${PYTHON:-python}" "$here/fuzz.py" "$target" -max_total_time="$seconds" -max_len=4096 -timeout=10 \
        -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$out/$target-" \
        "$out/$target" "$here/corpus/$target" >"$out/$target.log" 2>&1 || status=1
    echo "$target: $(grep -E 'number_of_executed_units' "$out/$target.log" || tail -n 30 "$out/$target.log")"
done
exit $status
