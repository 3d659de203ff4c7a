"""What a compiled program does between devices, and which kernels it calls: read from its text (HLO)."""

import math
import re
from collections import Counter
from typing import NamedTuple

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
_BYTES |= {"f64": 8, "s64": 8, "u64": 8}

# `%name = type opcode(operands), attributes`; a computation is a header ending in `{` and lines up to `}`.
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:to_apply|calls|body|condition|branch_computations|called_computations)=(?:\{([^}]*)\}|(%?[\w.\-]+))"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_TARGET = re.compile(r'custom_call_target="([^"]+)"')


class _Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    rest: str


class Collective(NamedTuple):
    """Traffic of one kind in one run of the program, on each device.

    Attributes:
      kind: one of `COLLECTIVES`.
      calls: how often it is called, loops included.
      bytes: of the whole arrays: what gathers give, what scatters and reductions take.
      sent: bytes that each device sends at least, in a ring: (n - 1) / n of the array in a group of n devices, twice
        that for an all-reduce (Patarasuk & Yuan 2009).
    """

    kind: str
    calls: int
    bytes: int
    sent: int


def collectives(*texts: str) -> list[Collective]:
    """The traffic of programs by kind; a loop whose number of turns is not known counts once.

    Args:
      *texts: of ``compiled.as_text()``, of programs that run one after another.
    """
    found: dict[str, list[float]] = {}
    for instruction, shapes, times in (one for text in texts for one in _executed(text)):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        operands = instruction.rest.partition(")")[0]
        taken = sum(_size(shapes.get(name.strip().lstrip("%"), "")) for name in operands.split(","))
        size = taken
        if kind == "all-gather":  # the asynchronous form gives its operands too
            size = _size(instruction.shape) - (taken if instruction.opcode.endswith("-start") else 0)
        group = _group_size(instruction.rest)
        rounds = 2 if kind == "all-reduce" else 1
        total = found.setdefault(kind, [0, 0, 0])
        total[0] += times
        total[1] += times * size
        total[2] += times * size * rounds * (group - 1) / group if kind != "collective-permute" else times * size
    return [Collective(kind, *map(round, found[kind])) for kind in COLLECTIVES if kind in found]


def _group_size(attributes: str) -> int:
    """Devices that take part in one collective, as HLO writes its groups: three ways of saying the same."""
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(counted[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return listed[1].count(",") + 1
    return 1


def kernel_calls(text: str) -> Counter[str]:
    """How often each custom kernel runs (cuDNN, Triton, cuBLAS), by its target's name, loops included."""
    calls: Counter[str] = Counter()
    for instruction, _, times in _executed(text):
        if instruction.opcode == "custom-call" and (target := _TARGET.search(instruction.rest)):
            calls[target[1]] += times
    return calls


def _executed(text: str) -> list[tuple[_Instruction, dict[str, str], int]]:
    """Every instruction with the shapes by name in its computation, and how often it runs."""
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = header[2]
            computations[current] = []
            entry = current if header[1] else entry
        elif (found := _INSTRUCTION.match(line)) and current:
            computations[current].append(_Instruction(*found.groups()))
    times: Counter[str] = Counter()

    def visit(name: str, factor: int) -> None:
        times[name] += factor
        for instruction in computations[name]:
            turns = 1
            if instruction.opcode == "while" and (known := _TRIPS.search(instruction.rest)):
                turns = int(known[1])
            for called in _CALLED.finditer(instruction.rest):
                for one in re.findall(r"[\w.\-]+", called[1] or called[2]):
                    if one in computations:
                        visit(one, factor * turns)

    visit(entry, 1)
    result = []
    for name, instructions in computations.items():
        shapes = {instruction.name: instruction.shape for instruction in instructions}
        result += [(instruction, shapes, times[name]) for instruction in instructions if times[name]]
    return result


def _size(shape: str) -> int:
    """Bytes of a shape or a tuple of shapes, as HLO writes it."""
    return sum(
        _BYTES.get(kind, 0) * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in _SHAPE.findall(shape)
    )
