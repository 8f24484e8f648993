#!/usr/bin/env bash
# Table 1: all methods on the same facts, all metrics; the linear editors in one step and in batches of 100.
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
statistics
experiment table1 --cases "$cases" --facts "$facts" --set references="$data/trex_evidence.jsonl.gz" \
    --set 'batches=[0, 100]' --set generations=10 "$@"
