#!/usr/bin/env bash
# Builds FACTS on a Ray cluster of two nodes, each in a network namespace of its own, kills the second node midway, and
# compares the arrays with those that one process solves. Needs root, iproute2, and the extra ray.
#
#     scripts/ray_two_nodes.sh facts.jsonl models/SmolLM2-135M-Instruct runs/two-nodes [KILL_AT]
#
# KILL_AT: facts solved when the second node dies [50]. Exit code 0: facts, keys and residuals are the same.
set -euo pipefail

facts=$(realpath -- "$1") model=$(realpath -- "$2") out=$3 kill_at=${4:-50}
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
python=${PYTHON:-$root/.venv/bin/python}
mkdir -p "$out"
out=$(realpath -- "$out")
export OMP_NUM_THREADS=1 RAY_AUTH_MODE=disabled PYTHONUNBUFFERED=1
TIMEFORMAT='%0R s, the process itself %0U s of a processor'

stop() {
    for node in ndb-head ndb-second; do
        ip netns pids "$node" 2> /dev/null | xargs --no-run-if-empty kill -9 || true
        ip netns delete "$node" 2> /dev/null || true
    done
    ip link delete ndb-bridge 2> /dev/null || true
}
processor_time() { # seconds of a node's processes that live
    ip netns pids "$1" | paste -sd, | xargs ps -o cputimes= -p | awk '{ sum += $1 } END { print sum }'
}
progress() { grep -oE '[0-9,]+ of [0-9,]+ facts' "$out/ray.log" | tail -n 1 | tr -d , || true; }
solved() { progress | cut -d ' ' -f 1; }

trap stop EXIT
stop
ip link add ndb-bridge type bridge
ip link set ndb-bridge up
number=1
for node in ndb-head ndb-second; do
    ip netns add "$node"
    ip link add "ndb-$number" type veth peer name eth0 netns "$node"
    ip link set "ndb-$number" master ndb-bridge up
    ip -n "$node" address add "10.77.0.$number/24" dev eth0
    ip -n "$node" link set eth0 up
    ip -n "$node" link set lo up
    number=$((number + 1))
done

start=("$python" -m ray.scripts.scripts start --num-cpus 1 --disable-usage-stats)
ip netns exec ndb-head "${start[@]}" --head --node-ip-address 10.77.0.1 --port 6379 --temp-dir "$out/ray-head" \
    --include-dashboard false > "$out/head.log" 2>&1
ip netns exec ndb-second "${start[@]}" --address 10.77.0.1:6379 --node-ip-address 10.77.0.2 > "$out/second.log" 2>&1

rm -rf "$out/ray" "$out/ray.log"
touch "$out/ray.log"
{ time ip netns exec ndb-head "$python" -m neuraldb_faiss.cli build "$facts" --model "$model" --out "$out/ray" \
    --ray 10.77.0.1:6379 --workers 2 > "$out/ray.json" 2> "$out/ray.log" --json; } 2> "$out/ray.time" &
build=$!
until [ "$(solved)" ] && [ "$(solved)" -ge "$kill_at" ]; do
    kill -0 "$build" || { cat "$out/ray.log"; exit 1; }
    sleep 1
done
[ "$(solved)" -lt "$(progress | cut -d ' ' -f 3)" ] || { echo "nothing was left to solve: give more facts"; exit 1; }
echo "second node: $(ip netns pids ndb-second | wc -l) processes, $(processor_time ndb-second) s of a processor," \
    "killed after $(solved) facts"
ip netns pids ndb-second | xargs kill -9
first=0
while kill -0 "$build" 2> /dev/null; do # its worker ends with the build
    now=$(processor_time ndb-head)
    first=$((now > first ? now : first))
    sleep 1
done
wait "$build"
echo "on Ray: $(cat "$out/ray.time"), the first node with it ${first} s"
tail -n 2 "$out/ray.log"

rm -rf "$out/one"
{ time "$python" -m neuraldb_faiss.cli build "$facts" --model "$model" --out "$out/one" > "$out/one.json" \
    2> "$out/one.log" --json; } 2> "$out/one.time"
echo "one process: $(cat "$out/one.time")"
for name in ray one; do
    rm -f "$out/$name.safetensors"
    "$python" -m neuraldb_faiss.cli export "$out/$name" --out "$out/$name.safetensors"
done
"$python" - "$out" << 'END'
import re
import sys

import numpy as np
from safetensors.numpy import load_file


def read(name):
    arrays = load_file(f"{sys.argv[1]}/{name}.safetensors")
    return arrays | {"facts": re.sub(rb'"time":"[^"]*"', b"", arrays["facts"].tobytes())}  # solved at other times


ray, one = read("ray"), read("one")
differ = sorted(name for name in ray.keys() | one.keys() if not np.array_equal(ray.get(name), one.get(name)))
print(f"facts and {len(one) - 1} arrays:", f"not equal: {', '.join(differ)}" if differ else "equal to the bit")
sys.exit(bool(differ))
END
