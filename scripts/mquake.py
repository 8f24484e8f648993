"""MQuAKE records as KnowEdit ones, so that `neuraldb eval --dataset knowedit` measures portability on them.

    python scripts/mquake.py mquake_cf_3k.jsonl.gz --limit 100 > mquake.jsonl
    neuraldb build mquake.jsonl --on-conflict first --model MODEL --out DB
    neuraldb eval DB --dataset knowedit --cases mquake.jsonl --out runs/mquake.jsonl

A line a rewrite. Its question is its paraphrase; the multi-hop questions of a record are the portability probes of its
first rewrite, with the new answer. All rewrites of a record must be in place for its questions.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from neuraldb_faiss.errors import NeuralDBError
from neuraldb_faiss.facts.readers import read_records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="MQuAKE-CF, JSON lines or an array, plain or gzipped")
    parser.add_argument("--limit", type=int, help="records")
    args = parser.parse_args()
    try:
        for number, (_, record) in enumerate(read_records(args.file)):
            if number == args.limit:
                break
            for line in converted(record):
                sys.stdout.buffer.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    except NeuralDBError as error:
        sys.exit(f"error: {error}")


def converted(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rewrites of one record, in KnowEdit's form."""
    hops = [{"prompt": question, "ground_truth": record["new_answer"]} for question in record["questions"]]
    for number, rewrite in enumerate(record["requested_rewrite"]):
        yield {
            "subject": rewrite["subject"],
            "prompt": rewrite["prompt"],
            "target_new": rewrite["target_new"]["str"],
            "ground_truth": rewrite["target_true"]["str"],
            "rephrase_prompt": rewrite["question"],
            "portability": {"Reasoning": hops if number == 0 else []},
        }


if __name__ == "__main__":
    main()
