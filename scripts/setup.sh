#!/usr/bin/env bash
# Make .venv where there is none and install this checkout into it with the tested versions.
#
#     scripts/setup.sh [cpu|gpu] [EXTRA]...     as in scripts/setup.sh cpu serve
#
# Without cpu or gpu: what .venv already has, else gpu where an NVIDIA GPU answers, else cpu. The other
# extras are those of pyproject.toml: serve, eval, test and so on; an unknown one is answered with the list.
# Extras that were installed before stay. Quick when nothing changed since. PYTHON=... picks the
# interpreter for a new .venv.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"
venv=$root/.venv
stamp=$venv/neuraldb-setup   # line 1: hash of what was installed from; line 2: the extras

die() {
    echo "setup: $*" >&2
    exit 1
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

has_gpu() {
    command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q '^GPU'
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        new_enough "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.11 or newer"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python python3.14 python3.13 python3.12 python3.11; do
        if new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    die "needs Python 3.11 or newer; python3 here is: $(python3 --version 2>&1 || true)." \
        "Install one, or name it: PYTHON=/path/to/python3.11 scripts/setup.sh"
}

known=$(sed -n '/^\[project.optional-dependencies\]/,/^\[project.urls\]/s/^\([a-z-]*\) = \[.*/\1/p' pyproject.toml)

faiss= wanted=
for extra in "$@"; do
    grep -qxF -e "$extra" <<<"$known" || die "unknown extra '$extra'; known: $(paste -sd, <<<"$known" | sed 's/,/, /g')"
    case $extra in
        cpu | gpu)
            [ -z "$faiss" ] || [ "$faiss" = "$extra" ] || die "cpu and gpu exclude each other; name one"
            faiss=$extra
            ;;
        *) wanted+=$extra, ;;
    esac
done

# The root is part of the hash because an editable install holds its path.
hash=$( (echo "$root" && cat pyproject.toml constraints.txt) | sha256sum | cut -d' ' -f1)
old_hash= old_extras=
if [ -f "$stamp" ]; then
    { read -r old_hash && read -r old_extras; } <"$stamp" || true
fi
if [ -z "$faiss" ]; then
    case ,$old_extras, in
        *,gpu,*) faiss=gpu ;;
        *,cpu,*) faiss=cpu ;;
        *) if has_gpu; then faiss=gpu; else faiss=cpu; fi ;;
    esac
fi
# The kind of FAISS first, then the others by name, each once.
others=$(tr , '\n' <<<"$wanted$old_extras" | grep -vxE 'cpu|gpu|' | LC_ALL=C sort -u | paste -sd,) || true
extras=$faiss${others:+,$others}

if [ "$hash" = "$old_hash" ] && [ "$extras" = "$old_extras" ] && new_enough "$venv/bin/python"; then
    exit 0
fi

if [ -x "$venv/bin/python" ]; then
    new_enough "$venv/bin/python" ||
        die "$venv has no working Python 3.11 or newer: remove that folder and start again"
fi
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    echo "setup: making $venv with $("$python" --version 2>&1)"
    "$python" -m venv "$venv" ||
        die "$python cannot make a virtual environment (Debian and Ubuntu: apt-get install python3-venv)"
fi

# faiss-cpu and faiss-gpu own the same folder, so removing one damages the other: both go, the wanted
# one comes back below.
if [ "$faiss" = cpu ]; then other=faiss-gpu; else other=faiss-cpu; fi
if "$venv/bin/python" -m pip show --quiet "$other" >/dev/null 2>&1; then
    "$venv/bin/python" -m pip uninstall --yes faiss-cpu faiss-gpu
fi

echo "setup: installing neuraldb-faiss[$extras] into $venv (minutes the first time)"
quiet=()
[ -t 1 ] || quiet=(--quiet)
rm -f "$stamp"
"$venv/bin/python" -m pip install --disable-pip-version-check ${quiet[@]+"${quiet[@]}"} \
    -c constraints.txt -e ".[$extras]" ||
    die "pip could not install neuraldb-faiss[$extras]; its message is above. Run scripts/setup.sh again to go on"
printf '%s\n%s\n' "$hash" "$extras" >"$stamp"
