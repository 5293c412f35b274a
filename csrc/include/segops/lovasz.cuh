// What the Lovasz losses on a GPU share: errors as sorted keys, a row for each set and class. The kernels and the
// reasons are in csrc/cuda/lovasz.cu.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include "segops/cuda_support.cuh"

namespace segops::gpu {

// A label is checked where it is read. As in PyTorch's own losses the device asserts, so that the host need not wait.
struct Labels {
  int64_t count, ignore_index;
  bool ignores;

  Labels(int64_t count, std::optional<int64_t> ignore_index)
      : count(count), ignore_index(ignore_index.value_or(0)), ignores(ignore_index.has_value()) {}

  __device__ __forceinline__ bool valid(int64_t label) const {
    if (ignores && label == ignore_index) return false;
    CUDA_KERNEL_ASSERT_MSG(label >= 0 && label < count, "target: expected labels below C, or ignore_index");
    return true;
  }
};

// Keys are in the order of errors > 0, all others 0 and NaN above infinity; an ignored element's key is less than all.
// A float's bits are in its order: they grow by 1, which leaves 0 to the ignored, and foreground is the last bit.
__device__ __forceinline__ uint32_t encode(float error, bool foreground, bool valid) {
  const uint32_t bits = error <= 0 ? 0 : min(__float_as_uint(error) & 0x7fffffffu, 0x7fc00000u);
  return valid ? (bits + 1) << 1 | uint32_t(foreground) : 0;
}

struct ErrorRows {
  int64_t sets, classes, length;
  Buffer<uint32_t> keys, order;  // (sets classes, length); order, where an element was, only if asked for
  Buffer<uint32_t> other_keys, other_order;
  Buffer<int> ends;  // (sets classes, blocks): how much foreground there is up to each block's end

  ErrorRows(const Place& place, int64_t sets, int64_t classes, int64_t length, bool with_order);
  int64_t rows() const { return sets * classes; }
  int64_t blocks() const;
  float* free_memory() const { return reinterpret_cast<float*>(other_keys.data()); }  // once sorted, of the same shape
};

// Largest key first; then counts the foreground.
void sort(const Place& place, ErrorRows& rows);

// How classes are averaged: their weights (K,), or nullptr for ones, over the number of all or of those with a pixel.
struct Average {
  const float* weights;
  bool present;
};

// The loss of each set.
void write_losses(const Place& place, const ErrorRows& rows, Average average, float* losses);

// From grad (sets,) to the derivative by the score behind each error, which is minus that by the error for foreground,
// (sets classes, length), at the place that the element had before the sort.
void write_slopes(const Place& place, const ErrorRows& rows, Average average, const float* grad, float* slopes);

}  // namespace segops::gpu
