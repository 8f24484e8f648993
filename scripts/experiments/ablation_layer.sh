#!/usr/bin/env bash
# The layer: quality against the one that is edited.
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
experiment ablation-layer --cases "$cases" --facts "$facts" --set generations=0 "$@"
