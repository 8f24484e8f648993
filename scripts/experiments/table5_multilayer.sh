#!/usr/bin/env bash
# Table 5: one layer against several, by algorithm 1 (new) and by MEMIT's spreading (old).
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
experiment multilayer --cases "$cases" --facts "$facts" --set "layers=$layers" "$@"
