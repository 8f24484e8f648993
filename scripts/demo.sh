#!/usr/bin/env bash
# Install where needed, get the demo model, build indexes/demo from examples/facts.jsonl and show the
# model's answers before and after. Arguments go to `neuraldb demo`.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
"$root/scripts/setup.sh"
cd "$root"   # the demo's models/ and indexes/ are this checkout's
exec .venv/bin/neuraldb demo "$@"
