#!/usr/bin/env bash
# Table 4: time per evaluated case, and per generated token, with and without the database.
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
experiment overhead --cases "$many" --set "counts=$counts" "$@"
