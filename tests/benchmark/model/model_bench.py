"""Tokens/s of SmolLM2 with attention in the server, over those of the same program on its own.

Called by run.sh.
"""

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys

import harness
import smollm2

PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a lighthouse keeper who",
    "A good way to learn to cook is",
    "def fibonacci(n):\n",
)
TARGET_RATIO = 0.70
EXAMPLES = pathlib.Path(smollm2.__file__).parent
WORK = pathlib.Path(os.environ["ATTENTION_WORK"])
BIN = pathlib.Path(os.environ["ATTENTION_BIN"])


def export():
    """The files that the program in C++ reads: weights and token ids."""
    files = ["--model", WORK / "model.safetensors", "--prompts", WORK / "prompts.json"]
    subprocess.run([sys.executable, EXAMPLES / "smollm2_export.py", *PROMPTS, *files], check=True)
    return files


def measure(command):
    """Tokens/s of decoding, and the text."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{command[0]} exited with {result.returncode}:\n{result.stderr}")
    text, _, summary = result.stdout.partition("attention: ")
    return float(re.search(r"^decode: .* ([\d.]+) tokens/s$", summary, re.MULTILINE)[1]), text


def take_turns(programs, target, options):
    """Rates [program][attention][round]. Raises where the server changes a program's text."""
    attentions = {"local": ["--attention", "local"], "remote": ["--target", target]}
    rates = {name: {attention: [] for attention in attentions} for name in programs}
    for round_number in range(options.rounds):
        for name, command in programs.items():
            texts = set()
            order = sorted(attentions, reverse=round_number % 2 == 1)
            for attention in order:
                flags = [*attentions[attention], "--max-tokens", str(options.max_tokens)]
                rate, text = measure([*command, *flags])
                rates[name][attention].append(rate)
                print(f"round {round_number + 1}: {name}, {attention}: {rate:.1f}", file=sys.stderr)
                texts.add(text)
            if len(texts) != 1:
                raise RuntimeError(f"{name}: the text with remote attention differs from the local one")
    return rates


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parser.parse_args()
    programs = {
        "C++": [BIN / "attention-smollm2", *export()],
        "Python": [sys.executable, EXAMPLES / "smollm2_generate.py", *PROMPTS],
    }
    with harness.ServerProcess() as server:
        rates = take_turns(programs, server.address, options)
    print(f"{'program':8} {'local':>9} {'remote':>9} {'remote / local':>15}   tokens/s, medians")
    for name, of_attention in rates.items():
        pairs = zip(of_attention["remote"], of_attention["local"], strict=True)
        ratio = statistics.median(remote / local for remote, local in pairs)
        local, remote = (statistics.median(of_attention[key]) for key in ("local", "remote"))
        mark = "" if ratio >= TARGET_RATIO else " MISSED"
        print(f"{name:8} {local:9.1f} {remote:9.1f} {ratio:15.2f}   >= {TARGET_RATIO:.2f}{mark}")


if __name__ == "__main__":
    main()
