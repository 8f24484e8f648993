#!/usr/bin/env bash
# docs/gate.md: what fires, in which contexts, with which keys; what an edit does to ordinary text and to its subject.
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
out=${RUNS:-runs}
texts="texts=\"$data/wikitext2_raw_test.jsonl.gz\""
kept='["{} was born in", "{} works as a", "{} is located in the country of", "{} is known for"]'
related=$out/related.jsonl   # the cases with a question about another relation of the subject
mkdir -p "$out"
zcat "$cases" | grep '"unrelated_relation"' > "$related"
experiment contexts --cases "$cases" --facts "$facts" --set "$texts" "$@"
experiment perplexity --cases "$cases" --facts "$facts" --set "$texts" "$@"
experiment gate-variants --cases "$data/counterfact.jsonl.gz" --set "$texts" "$@"
experiment ablation-residual --cases "$related" --facts "$facts" --set generations=0 \
    --set 'metrics=["efficacy", "efficacy_acc", "generalization_acc", "specificity", "relation_specificity"]' \
    --set "variants={default={}, kept={kl_prompts=$kept}, kept-more={kl_factor=0.5, kl_prompts=$kept}}" "$@"
