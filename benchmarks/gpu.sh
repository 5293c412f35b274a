#!/usr/bin/env bash
# bash benchmarks/gpu.sh FOLDER: builds, tests and measures on a machine with an NVIDIA GPU, in under nine minutes.
#
# It takes a Python with torch, triton, pytest, typer, rich and matplotlib, nvcc, and no network. FOLDER gets log.txt,
# gpu.json and the plots. A step that fails, or takes longer than it may, does not stop the others; the exit status is
# the number of such steps. Variables: PYTHON (python3), SECONDS_IN_ALL (525), TORCH_CUDA_ARCH_LIST (the GPU at hand).
set -uo pipefail

[ $# = 1 ] || { echo "usage: bash benchmarks/gpu.sh FOLDER" >&2; exit 64; }
mkdir -p "$1" || exit 73
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 70

export PYTHON=${PYTHON:-python3} SEGOPS_BUILD=cuda SEGOPS_TEST_DEVICE=cuda PYTHONUNBUFFERED=1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
SECONDS_IN_ALL=${SECONDS_IN_ALL:-525}
failed=()

left() { echo $((SECONDS_IN_ALL - SECONDS)); }

step() { # step "name" seconds command...: no longer than this, nor than what is left
  local name=$1 most=$2 start=$SECONDS status="no time left"
  shift 2
  [ "$most" -le "$(left)" ] || most=$(left)
  printf '\n########## %s (at most %d s)\n' "$name" "$most"
  if [ "$most" -ge 1 ]; then
    timeout --kill-after=5 "$most" "$@"
    status=$?
  fi
  printf '########## %s: %s after %d s\n' "$name" "$status" $((SECONDS - start))
  [ "$status" = 0 ] || failed+=("$name: $status")
}

# Only for the GPU at hand; of 9.0 the variant 9.0a, whose instructions the sources may use.
architecture() {
  "$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())' | sed 's/^9\.0$/9.0a/'
}

everything() {
  ! command -v nvidia-smi >/dev/null || nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  if [ -z "${TORCH_CUDA_ARCH_LIST:-}" ]; then
    TORCH_CUDA_ARCH_LIST=$(architecture) || { echo "torch finds no CUDA device"; return 69; }
    export TORCH_CUDA_ARCH_LIST
  fi
  MAX_JOBS=$(nproc) step "build" 200 "$PYTHON" setup.py -q build_ext --inplace

  local workers=()
  ! "$PYTHON" -c 'import xdist' 2>/dev/null || workers=(-n 8) # most of the time Triton compiles, on the host
  # Tuned on sizes this small, with others at work on the GPU, the kernels would learn nothing and take long.
  step "tests on the GPU" 130 env SEGOPS_AUTOTUNE=0 "$PYTHON" -m pytest tests/gpu -q --maxfail=20 "${workers[@]}"

  if command -v compute-sanitizer >/dev/null; then
    step "memory checks of the CUDA library" 70 compute-sanitizer --error-exitcode 9 --print-limit 20 \
      "$PYTHON" -m pytest tests/gpu -q -k "reference and cuda-torch.float32"
  else
    echo "There is no compute-sanitizer here: the memory of the CUDA library was not checked."
  fi

  # The last workload is started half a minute before the end, so that the figures there are get written.
  step "benchmarks" "$(left)" "$PYTHON" -m segops bench --device cuda --json "$out/gpu.json" --plot "$out" \
    --minutes "$(awk "BEGIN { print ($(left) > 40 ? $(left) - 35 : 5) / 60 }")"

  printf '\n########## done in %d s; failed: %d\n' "$SECONDS" "${#failed[@]}"
  [ ${#failed[@]} = 0 ] || printf '  %s\n' "${failed[@]}"
  return ${#failed[@]}
}

everything 2>&1 | tee "$out/log.txt"
exit "${PIPESTATUS[0]}"
