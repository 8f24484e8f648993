# Sourced by the scripts beside it: models, data, and how an experiment is started.
#
#     scripts/experiments/table1.sh [demo|gpt2-xl|gpt-j-6b|llama-3-8b] [options of `neuraldb experiment`]
#
# DATA names the folder with counterfact_full_subset.jsonl.gz, counterfact.jsonl.gz, trex_evidence.jsonl.gz,
# wikipedia_articles.jsonl.gz and the general-ability files (default: NEURALDB_TEST_DATA). Results go to
# RUNS (default: runs)/NAME-MODEL; started again, an experiment goes on where it stopped.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
cd "$root"
model=${1:-demo}
[ $# -eq 0 ] || shift
data=${DATA:-${NEURALDB_TEST_DATA:-}}
[ -d "$data" ] || { echo "set DATA to the folder with the data sets" >&2; exit 2; }
neuraldb=${NEURALDB:-.venv/bin/python -m neuraldb_faiss.cli}

# Numbers of facts: what two CPU cores do with the demo model, and the paper's grids elsewhere.
case $model in
    demo) name=models/SmolLM2-135M-Instruct facts=200 counts='[50, 100, 200]' layers='[1, 2, 3]' ;;
    gpt2-xl) name=openai-community/gpt2-xl facts=2000 layers='[15, 16, 17]' ;;
    gpt-j-6b) name=EleutherAI/gpt-j-6b facts=2000 layers='[6, 7, 8]' ;;
    llama-3-8b) name=meta-llama/Meta-Llama-3-8B-Instruct facts=2000 layers='[5, 6, 7]' ;;
    *) echo "unknown model $model: demo, gpt2-xl, gpt-j-6b or llama-3-8b" >&2; exit 2 ;;
esac
counts=${counts:-'[1000, 2000, 4000, 6000, 8000, 10000]'}
cases=$data/counterfact_full_subset.jsonl.gz   # complete records; 2,074 of them
many=$cases
[ "$model" = demo ] || many=$data/counterfact.jsonl.gz   # 16,919 flat records, for more facts than that

statistics() {   # what the weight editors need to know of preserved text; made once a model
    $neuraldb statistics "$data/wikipedia_articles.jsonl.gz" --model "$name" --out statistics
}

experiment() {   # NAME, then its options
    local what=$1
    shift
    # shellcheck disable=SC2086
    $neuraldb experiment "$what" --model "$name" --out "${RUNS:-runs}/$what-$model" "$@"
}
