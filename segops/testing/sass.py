"""Where a compiled kernel goes to local memory: only spills within a loop, which are paid for again and again, matter.

ptxas itself puts a value or two aside before a loop and reads them back behind it, with registers to spare, for the
sake of more resident warps; which kernel it does that to changes with every formulation and every version of it.
"""

from __future__ import annotations

import re

LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@\S+\s+)?([A-Z][\w.]*)([^;]*);")


def successors(text: str) -> tuple[list[str], list[set[int]]]:
    """The opcodes of a listing of one function, as ``cuobjdump -sass`` prints it, and which may follow each.

    Rather too many than too few: a return may lead behind any call, and a BSYNC to where any BSSY says.
    """
    lines = [(int(a, 16), bool(predicate), opcode, rest) for a, predicate, opcode, rest in LINE.findall(text)]
    number = {address: i for i, (address, *_) in enumerate(lines)}
    kinds = [opcode.split(".")[0] for _, _, opcode, _ in lines]
    found = [re.search(r"\b0x([0-9a-f]+)\s*$", rest) for *_, rest in lines]
    targets = [{number[int(t[1], 16)]} if t and int(t[1], 16) in number else set() for t in found]
    behind = {
        "RET": {i + 1 for i, kind in enumerate(kinds) if kind == "CALL"},
        "BSYNC": set().union(*(targets[i] for i, kind in enumerate(kinds) if kind == "BSSY")),
    }
    after = []
    for i, (_, predicated, opcode, rest) in enumerate(lines):
        jumps = kinds[i] in ("BRA", "CALL", "BSSY", "WARPSYNC")
        ends = kinds[i] in ("EXIT", "RET") or (opcode == "BRA" and "," not in rest)
        goes = behind.get(kinds[i], set()) | (targets[i] if jumps else set())
        if kinds[i] in ("BRX", "BRXU", "JMP", "JMX") or (jumps and kinds[i] != "WARPSYNC" and not targets[i]):
            goes = set(range(len(lines)))  # whoever knows where
        after.append({j for j in goes | (set() if ends and not predicated else {i + 1}) if j < len(lines)})
    return kinds, after


def spills_in_loops(text: str) -> int:
    """How many instructions that load from local memory or store to it can come to themselves again."""
    return sum(_loops(function) for function in text.split("Function :"))


def _loops(function: str) -> int:
    kinds, after = successors(function)
    return sum(i in _reached(i, after) for i, kind in enumerate(kinds) if kind in ("LDL", "STL"))


def _reached(start: int, after: list[set[int]]) -> set[int]:
    found: set[int] = set()
    ends = [start]
    while ends:
        fresh = after[ends.pop()] - found
        found |= fresh
        ends.extend(fresh)
    return found
