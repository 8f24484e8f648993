#!/usr/bin/env bash
# Figures 3 and 4: the weights that linear editors give to every fact's residual.
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
statistics
experiment weights --cases "$cases" --facts "$([ "$model" = demo ] && echo "$facts" || echo 1000)" "$@"
