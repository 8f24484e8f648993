#!/usr/bin/env bash
# Figures 1 and 3, tables 2 and 6: quality and general ability against the number of facts.
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
statistics
experiment budgets --cases "$many" --set "counts=$counts" --set 'methods=["neuraldb", "base", "memit", "alphaedit", "rect"]' \
    --set generations=0 --set 'tasks=["general"]' --set data="$data" "$@"
