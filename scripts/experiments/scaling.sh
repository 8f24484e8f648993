#!/usr/bin/env bash
# docs/performance.md: 1,000 to 1,000,000 entries, the real ones of a database first. DATABASE names it (keys are enough).
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
experiment scaling --cases "$cases" --set "database=\"${DATABASE:?name a database: DATABASE=indexes/DB}\"" \
    --set "texts=\"$data/wikitext2_raw_test.jsonl.gz\"" "$@"
