"""Shows what a trained model writes for problems it has not seen, beside a true solution."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from wmtp_jax.console import out, print_json
from wmtp_jax.errors import UserError, run_command

EPILOG = """example:
  python -m wmtp_jax.complete --model storage/checkpoints/baseline/baseline-micro --count 3"""


def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    for name, low in (("count", 1), ("seed", 0), ("max_length", 2)):
        if getattr(args, name) < low:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: it must be {low} or more")
    figures = complete(args.model, args.data, args.split, args.count, args.seed, args.max_length)
    if args.json:
        print_json({"completions": figures})
        return 0
    for item in figures:
        _show(item)
    return 0


def complete(
    model_path: str, data: Path, split_name: str, count: int, seed: int, max_length: int
) -> list[dict[str, Any]]:
    """Greedy completions of problems drawn from a split.

    Returns:
      For each problem: task_id, instruction, completion (text), finished (ended by itself), true_solution.
    """
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from wmtp_jax.data.sample import draw
    from wmtp_jax.data.store import TOKENIZER, open_split
    from wmtp_jax.data.tokenize import encode_prompts, load_tokenizer
    from wmtp_jax.inference.greedy import greedy_decode
    from wmtp_jax.load import find_model, load_model

    source = find_model(model_path)
    if not source.config.n_future_tokens:
        raise UserError(f"--model {model_path}: gives values, not tokens: it cannot complete a problem")
    tokenizer = load_tokenizer(source.tokenizer or data / TOKENIZER)
    split = open_split(data, split_name)
    correct = np.flatnonzero(split.is_correct)
    _, first_of_problem = np.unique(split.problem[correct], return_index=True)
    rows = draw(correct[first_of_problem], count, seed, f"problems in {split.path}", "--count")
    examples = split.read(rows)
    prompts = encode_prompts(tokenizer, examples)
    longest = max(len(prompt) for prompt in prompts)
    if longest >= max_length:
        raise UserError(f"a prompt has {longest} tokens; give --max-length above it")
    tokens = np.zeros((len(prompts), max_length), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    decode = nnx.jit(greedy_decode, static_argnames="eos")
    lengths = np.array([len(prompt) for prompt in prompts])
    decoded = np.asarray(
        decode(load_model(model_path), jnp.asarray(tokens), jnp.asarray(lengths), eos=tokenizer.eos_token_id)
    )
    result = []
    for example, prompt, row in zip(examples, prompts, decoded, strict=True):
        generated = row[len(prompt) :].tolist()
        finished = tokenizer.eos_token_id in generated
        if finished:
            generated = generated[: generated.index(tokenizer.eos_token_id)]
        # Decoded behind its prompt: some tokenizers drop the first space of a text of its own.
        text = tokenizer.decode(prompt + generated)[len(tokenizer.decode(prompt)) :]
        result.append(
            {
                "task_id": example.task_id,
                "instruction": example.instruction,
                "completion": text,
                "finished": finished,
                "true_solution": example.output,
            }
        )
    return result


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m wmtp_jax.complete",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="run directory (its best step), RUN@latest, or model directory")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("storage/datasets_v2/mini"),
        help="processed data set (default: mini)",
    )
    parser.add_argument("--split", default="valid", help="split the problems come from (default: valid)")
    parser.add_argument("--count", type=int, default=3, help="number of problems (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="which problems (default: 0)")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of prompt and completion (default: 512)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser.parse_args(argv)


def _show(item: dict[str, Any]) -> None:
    from rich.columns import Columns
    from rich.panel import Panel
    from rich.text import Text

    width = max((out.width - 4) // 2, 36)
    ended = "" if item["finished"] else " (cut at --max-length)"
    out.rule(item["task_id"])
    out.print(item["instruction"], markup=False, highlight=False)
    out.print(
        Columns(
            [
                Panel(Text(item["completion"]), title=f"model{ended}", width=width),
                Panel(Text(item["true_solution"]), title="a true solution", width=width),
            ]
        )
    )


if __name__ == "__main__":
    run_command(main)
