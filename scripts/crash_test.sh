#!/usr/bin/env bash
# The crash tests in their long form: NEURALDB_CRASHES (1000) kills of a build and half as many of every other command:
# add, remove, rollback, compact, merge (into a database, into a new folder, with solving), solve, import (into a
# database, into a new folder), copy, repair. Arguments go to pytest.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
"$root/scripts/setup.sh" test
cd "$root"
export NEURALDB_CRASHES=${NEURALDB_CRASHES:-1000}
exec .venv/bin/python -m pytest tests/store/test_crash.py -s "$@"
