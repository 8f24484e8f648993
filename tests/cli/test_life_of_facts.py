"""Shown on the real demo model: merge, remove, roll back, update, two facts of one subject; each after reopening."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.commands import Run, write

ASK = """
import json, sys
from neuraldb_faiss import NeuralDB
from neuraldb_faiss.models import load_model
database, model_folder, compare = sys.argv[1:4]
model, tokenizer = load_model(model_folder)
def answers(prompts):
    found = {}
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")
        made = model.generate(**ids, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        found[prompt] = tokenizer.decode(made[0, ids["input_ids"].shape[1]:]).strip()
    return found
prompts = json.load(sys.stdin)
base = answers(prompts) if compare == "compare" else {}
with NeuralDB.open(database).attach(model, tokenizer):
    print(json.dumps({"base": base, "edited": answers(prompts)}))
"""
RELATIONS = {
    "{} is located in the city of": ["Eiffel Tower", "Brandenburg Gate", "Sagrada Familia", "Space Needle"],
    "The mother tongue of {} is": ["Marie Curie", "Albert Einstein", "Frida Kahlo", "Sophia Loren"],
    "{} was developed by": ["Windows 95", "PlayStation 2", "Android Auto", "Adobe Photoshop"],
}
TARGETS = {
    "{} is located in the city of": ["Oslo", "Cairo", "Lima", "Nairobi"],
    "The mother tongue of {} is": ["Tamil", "Korean", "Swedish", "Arabic"],
    "{} was developed by": ["Nokia", "Honda", "Boeing", "Nintendo"],
}


def fact(subject: str, prompt: str, target: str) -> dict[str, str]:
    return {"subject": subject, "prompt": prompt, "target": target, "id": f"{subject}: {prompt}"}


def text(one: dict[str, str]) -> str:
    return one["prompt"].replace("{}", one["subject"])


ONE = [fact(s, p, t) for p, subjects in RELATIONS.items() for s, t in zip(subjects, TARGETS[p], strict=True)]
TWO = [
    fact(s, p, t)
    for (s, p, t) in [
        ("Mount Fuji", "{} is located in", "Brazil"),
        ("Lake Victoria", "{} is located in", "Norway"),
        ("Great Barrier Reef", "{} is located in", "Canada"),
        ("Big Ben", "{} can be found in", "Tokyo"),
        ("Mona Lisa", "{} was painted by", "Picasso"),
        ("Guernica", "The painting {} was made by", "Rembrandt"),
        ("Isaac Newton", "{} worked in the field of", "music"),
        ("Charles Darwin", "{} worked in the field of", "chess"),
        ("Michael Jordan", "{} professionally plays the sport", "tennis"),
        ("Serena Williams", "{} professionally plays the sport", "hockey"),
        ("Volkswagen Golf", "{} is produced by", "Samsung"),
        ("Boeing 747", "{} is produced by", "Toyota"),
    ]
]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_life_of_facts(run: Run, demo_model_path: Path, tmp_path: Path) -> None:
    model = demo_model_path

    def do(*words: object) -> None:
        done = run(*words)
        assert done.exit_code == 0, done.output

    def ask(database: Path, *facts: dict[str, str], how: str = "compare") -> tuple[dict[str, str], dict[str, str]]:
        """What the model says without and with the database, in a new process."""
        done = subprocess.run(
            [sys.executable, "-c", ASK, str(database), str(model), how],
            input=json.dumps([text(one) for one in facts]), capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        return said["base"], said["edited"]

    def works(database: Path, *facts: dict[str, str]) -> None:
        _, edited = ask(database, *facts, how="edited")
        assert [one for one in facts if not edited[text(one)].startswith(one["target"])] == []

    a, b, both = tmp_path / "a", tmp_path / "b", tmp_path / "both"
    do("build", write(tmp_path / "a.jsonl", ONE), "--out", a, "--model", model)
    do("build", write(tmp_path / "b.jsonl", TWO), "--out", b, "--model", model)
    do("merge", a, b, "--out", both)
    works(both, *ONE, *TWO)

    gone = ONE[0]
    do("remove", both, "--id", gone["id"])
    base, edited = ask(both, gone, TWO[0])
    assert edited[text(gone)] == base[text(gone)] and not base[text(gone)].startswith(gone["target"])
    assert edited[text(TWO[0])].startswith(TWO[0]["target"])
    do("rollback", both, "--to", 1)
    works(both, gone)
    update = {**ONE[4], "target": "Dutch"}
    do("add", both, write(tmp_path / "update.jsonl", [update]), "--model", model)
    works(both, update, gone, TWO[0])

    # Two facts of one subject, from two databases.
    tower = fact("Eiffel Tower", "{} was built by", "Nokia")
    do("build", write(tmp_path / "c.jsonl", [tower]), "--out", tmp_path / "c", "--model", model)
    do("merge", a, tmp_path / "c", "--out", tmp_path / "ac", "--model", model)
    works(tmp_path / "ac", tower, ONE[0], ONE[1])
    do("remove", tmp_path / "ac", "--id", ONE[0]["id"])
    assert json.loads(run("info", tmp_path / "ac", "--json").stdout)["waiting"] == 1
    base, edited = ask(tmp_path / "ac", ONE[0], tower)
    assert edited == base  # the shared entry is silent until it is solved anew
    do("solve", tmp_path / "ac", "--model", model)
    works(tmp_path / "ac", tower)
    do("verify", tmp_path / "ac", "--deep")
