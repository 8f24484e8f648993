#!/usr/bin/env bash
# The gate: quality against gamma; the paper's grid is 0.55 to 0.75 without a guard.
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
experiment ablation-gamma --cases "$cases" --facts "$facts" --set generations=0 "$@"
