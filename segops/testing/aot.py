"""Compiles every Triton kernel ahead of time, without a GPU: ``python -m segops.testing.aot [--arch 80 90 100]``.

Prints a line for each kernel, dtype and configuration; exits with 1 if one does not compile, or spills registers: in a
loop, or more of them than ptxas puts aside of its own accord.

A module of ``segops.kernels`` lists what to compile in ``AOT``: entries (kernel, types, configurations). ``types``
names the arguments that are not plain 32-bit integers, as Triton writes them ("*i32", "i64"); a ``T`` stands for
float32 and float64 in turn. A configuration holds the kernel's constexprs and options of the launch (num_warps, ...),
or is a list of such: the candidates that `tuning.run` has for one problem.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import multiprocessing
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from segops.testing.sass import spills_in_loops

FLOATS = ("fp32", "fp64")
SET_ASIDE = 16  # bytes, four registers: see segops.testing.sass
LAUNCH = {"num_warps", "num_stages", "num_ctas", "maxnreg", "enable_fp_fusion"}


@dataclass(frozen=True)
class Job:
    """One compilation."""

    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    options: dict[str, Any]
    arch: int

    def __str__(self) -> str:
        floats = {t.strip("*") for t in self.signature.values() if "fp" in t}
        sizes = " ".join(f"{k}={v}" for k, v in {**self.constexprs, **self.options}.items())
        name = f"{self.kernel.__module__.rsplit('.')[-1]}.{self.kernel.__name__}"
        return f"sm_{self.arch} {name} {'/'.join(sorted(floats))} {sizes}"


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel takes of the GPU, or why it did not compile."""

    registers: int = 0
    spilled: int = 0  # bytes of local memory for each thread
    looped: int = 0  # instructions within loops that go there
    shared: int = 0
    error: str = ""

    @property
    def good(self) -> bool:
        return not self.error and not self.looped and self.spilled <= SET_ASIDE

    def __str__(self) -> str:
        if self.error:
            return f"FAILED {self.error}"
        text = f"{self.registers} registers, {self.shared} bytes of shared memory"
        if self.spilled:
            text += f", {self.spilled} bytes of spilled registers, in loops {self.looped} times"
        return text if self.good else f"SPILLS: {text}"


def entries() -> Iterator[tuple]:
    """The AOT tables of all kernel modules."""
    import segops.kernels

    for module in sorted(pkgutil.iter_modules(segops.kernels.__path__), key=lambda m: m.name):
        yield from getattr(importlib.import_module(f"segops.kernels.{module.name}"), "AOT", ())


def jobs(entry: tuple, arch: int, quick: bool = False) -> Iterator[Job]:
    """All compilations of an entry; ``quick`` is the first configuration only, with all its candidates."""
    kernel, types, configurations = entry
    floats = FLOATS if any("T" in t for t in types.values()) else FLOATS[:1]
    for number in floats[:1] if quick else floats:
        problems = [c if isinstance(c, list) else [c] for c in configurations]
        for configuration in itertools.chain.from_iterable(problems[:1] if quick else problems):
            constexprs = {k: v for k, v in configuration.items() if k in kernel.arg_names}
            options = {k: v for k, v in configuration.items() if k not in constexprs}
            if unknown := set(options) - LAUNCH:
                raise ValueError(
                    f"{kernel.__name__}: expected arguments or options of the launch, got {sorted(unknown)}"
                )
            signature = {name: types.get(name, "i32").replace("T", number) for name in kernel.arg_names}
            signature.update(dict.fromkeys(constexprs, "constexpr"))
            yield Job(kernel, signature, constexprs, options, arch)


def compile(job: Job) -> Usage:
    """Compile as a launch would whose pointers and row strides are multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(job.signature.items())
        if kind.startswith("*") or (name.endswith("stride") and kind != "constexpr")
    }
    try:
        source = ASTSource(job.kernel, job.signature, job.constexprs, aligned)
        compiled = triton.compile(source, target=GPUTarget("cuda", job.arch, 32), options=job.options)
        return usage(compiled.asm["cubin"], compiled.metadata.shared)
    except Exception as error:  # a compiler fails in many ways, and each is a finding
        return Usage(error=f"{type(error).__name__}: {str(error).strip() or 'no message'}")


def usage(cubin: bytes, shared: int) -> Usage:
    """What cuobjdump says of a compiled kernel."""
    import triton

    def dump(what: str) -> str:
        command = [triton.knobs.nvidia.cuobjdump.path, what, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = dump("-res-usage")
        found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
        if "REG" not in found:
            return Usage(error=f"cuobjdump says nothing of registers: {text!r}")
        spilled = found["STACK"] + found["LOCAL"]
        return Usage(found["REG"], spilled, spills_in_loops(dump("-sass")) if spilled else 0, shared)


_plan: list[Job] = []


def _compile_planned(number: int) -> Usage:
    return compile(_plan[number])


def main(arguments: list[str] | None = None) -> int:
    """The command line: compile what it asks for, a line each, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m segops.testing.aot", description="Compile all Triton kernels ahead of time."
    )
    parser.add_argument(
        "--arch", type=int, nargs="+", default=[80, 90, 100], help="compute capabilities (default 80 90 100)"
    )
    parser.add_argument("--quick", action="store_true", help="each kernel once, in float32")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: as many as processors)")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 replaces the compiler: unset it")
    _plan[:] = [
        job
        for entry in entries()
        if options.only in entry[0].__name__
        for arch in options.arch
        for job in jobs(entry, arch, options.quick)
    ]
    done = bad = 0
    # Forked processes know the plan; its kernels could not be sent to others.
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("fork")) as pool:
        for job, usage in zip(_plan, pool.map(_compile_planned, range(len(_plan))), strict=True):
            print(f"{job}: {usage}", flush=True)
            done, bad = done + 1, bad + (not usage.good)
    print(f"{done} compiled, {bad} of them failed or spilled")
    return 1 if bad or not done else 0


if __name__ == "__main__":
    sys.exit(main())
