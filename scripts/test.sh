#!/usr/bin/env bash
# Install where needed, then ruff, mypy, the import rules, the spelling and the tests.
#
#     scripts/test.sh                  everything that this machine can run, a file to each core
#     scripts/test.sh -m "not slow"    without the tests on the demo model
#     scripts/test.sh tests/store -x   the tests of a folder, file or name, in one process
#
# Arguments go to pytest; paths are relative to the root of the checkout. The slow tests are left out
# where the demo model cannot be had, the gpu tests where there is no GPU.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
"$root/scripts/setup.sh" test
cd "$root"

.venv/bin/ruff check .
.venv/bin/mypy
.venv/bin/lint-imports --no-logo
.venv/bin/codespell

select=
also() {
    select+="${select:+ and }($1)"
}
if ! .venv/bin/python -m neuraldb_faiss.models.demo; then
    echo "test: no demo model, so the slow tests are left out"
    also "not slow"
fi
if ! .venv/bin/python -c 'import torch; raise SystemExit(not torch.cuda.is_available())'; then
    echo "test: torch sees no NVIDIA GPU, so the gpu tests are left out"
    also "not gpu"
fi

# pytest heeds its last -m alone, so that of the caller is joined with ours. Processes share the cores
# by files of tests, each with one thread; for a few tests, more processes cost more than they save.
arguments=()
parallel=(-n logical --maxprocesses 4)
while [ $# -gt 0 ]; do
    if [ "$1" = -m ] && [ $# -gt 1 ]; then
        also "$2"
        shift
    else
        arguments+=("$1")
        if [ -e "${1%%::*}" ]; then parallel=(); fi
    fi
    shift
done
if [ ${#parallel[@]} -gt 0 ]; then
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
fi
exec .venv/bin/python -m pytest ${parallel[@]+"${parallel[@]}"} ${select:+-m "$select"} \
    ${arguments[@]+"${arguments[@]}"}
