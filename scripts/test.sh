#!/usr/bin/env bash
# Install where needed, then ruff, mypy and the tests. Arguments go to pytest; paths among them are
# relative to the root of the checkout. The slow tests are left out where the demo model cannot be
# had, the gpu tests where there is no GPU.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
"$root/scripts/setup.sh" test
cd "$root"

.venv/bin/ruff check .
.venv/bin/mypy
.venv/bin/lint-imports --no-logo
.venv/bin/codespell

leave_out=()
if ! .venv/bin/python -m neuraldb_faiss.models.demo; then
    echo "test: no demo model, so the slow tests are left out"
    leave_out+=("not slow")
fi
if ! .venv/bin/python -c 'import torch; raise SystemExit(not torch.cuda.is_available())'; then
    echo "test: torch sees no NVIDIA GPU, so the gpu tests are left out"
    leave_out+=("not gpu")
fi
select=
for mark in ${leave_out[@]+"${leave_out[@]}"}; do
    select+=${select:+ and }$mark
done
exec .venv/bin/python -m pytest ${select:+-m "$select"} "$@"
