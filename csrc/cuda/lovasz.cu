// The Lovasz extension of the Jaccard loss on a GPU; see segops/reference/lovasz_grad.py.
//
// All classes and images are rows of one matrix of 32-bit keys, in which error and foreground are packed: the sort
// orders the errors and carries the labels along. Forward it moves nothing else; backward, 32-bit positions too. The
// steps need only the number of foreground elements before each: counted in each block, then along each row's blocks,
// then within a block, where the steps are used at once. Every sum has one order, and the gradient is scattered without
// atomics: the same bits every run. The host waits for nothing, so CUDA graphs work.
// Device memory: 8 bytes an element forward, 16 backward.
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>

#include <cub/block/block_load.cuh>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_segmented_radix_sort.cuh>
#include <cuda/std/limits>
#include <utility>

#include "segops/jaccard_step.h"
#include "segops/lovasz.cuh"

namespace segops::gpu {
namespace {

constexpr int kItems = 8;  // consecutive elements of a thread
constexpr int kBlock = kThreads * kItems;
constexpr int kWarp = 32;
constexpr int64_t kLong = int64_t(1) << 16;    // a row that is worth the whole device
constexpr int64_t kAtOnce = int64_t(1) << 30;  // elements of shorter rows, sorted by a block each

using LoadKeys = cub::BlockLoad<uint32_t, kThreads, kItems, cub::BLOCK_LOAD_WARP_TRANSPOSE>;
using ScanCounts = cub::BlockScan<int, kThreads>;
using SumCounts = cub::BlockReduce<int, kThreads>;
using SumLosses = cub::BlockReduce<double, kThreads>;

// A row's part that a block of threads works on.
struct Part {
  int64_t row, length;
  int block, blocks;

  __device__ Part(int64_t length, int blocks)
      : row(blockIdx.x / unsigned(blocks)), length(length), block(int(blockIdx.x % unsigned(blocks))), blocks(blocks) {}
  __device__ int64_t first() const { return int64_t(block) * kBlock; }
  __device__ int64_t offset() const { return row * length + first(); }
  __device__ int size() const { return int(min(int64_t(kBlock), length - first())); }
};

__global__ void __launch_bounds__(kThreads)
    count_foreground(const uint32_t* __restrict__ keys, int64_t length, int blocks, int* __restrict__ counts) {
  __shared__ SumCounts::TempStorage memory;
  const Part part(length, blocks);
  int count = 0;
  for (int i = threadIdx.x; i < part.size(); i += kThreads) count += int(keys[part.offset() + i] & 1);
  count = SumCounts(memory).Sum(count);
  if (threadIdx.x == 0) counts[blockIdx.x] = count;
}

// Counts of a row's blocks to what they and all before them hold; a block of threads for each row.
__global__ void __launch_bounds__(kThreads) add_up(int* counts, int blocks) {
  __shared__ ScanCounts::TempStorage memory;
  int* row = counts + int64_t(blockIdx.x) * blocks;
  int carried = 0;
  for (int first = 0; first < blocks; first += kThreads) {
    const int i = first + int(threadIdx.x);
    int count = i < blocks ? row[i] : 0, all = 0;
    ScanCounts(memory).InclusiveSum(count, count, all);
    if (i < blocks) row[i] = carried + count;
    carried += all;
    __syncthreads();
  }
}

// Calls body(i, key, step) for a thread's elements i; past the end of the row keys are 0.
template <class Body>
__device__ __forceinline__ void for_each_step(const Part& part, const uint32_t* __restrict__ keys,
                                              const int* __restrict__ ends, const Body& body) {
  __shared__ union {
    LoadKeys::TempStorage load;
    ScanCounts::TempStorage scan;
  } memory;
  uint32_t key[kItems];
  LoadKeys(memory.load).Load(keys + part.offset(), key, part.size(), 0u);
  __syncthreads();
  int before[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) before[i] = int(key[i] & 1);
  ScanCounts(memory.scan).ExclusiveSum(before, before);
  ends += part.row * part.blocks;
  const int all = ends[part.blocks - 1], carried = part.block > 0 ? ends[part.block - 1] : 0;
  const int64_t position = part.first() + int64_t(threadIdx.x) * kItems;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int64_t foreground = carried + before[i];
    body(i, key[i], jaccard_step<float>(key[i] & 1, all, foreground, position + i - foreground));
  }
}

__device__ __forceinline__ float error_of(uint32_t key) { return key ? __uint_as_float((key >> 1) - 1) : 0.f; }

__global__ void __launch_bounds__(kThreads) add_losses(const uint32_t* __restrict__ keys, const int* __restrict__ ends,
                                                       int64_t length, int blocks, double* __restrict__ losses) {
  __shared__ SumLosses::TempStorage memory;
  float loss = 0;
  for_each_step(Part(length, blocks), keys, ends, [&](int, uint32_t key, float step) { loss += error_of(key) * step; });
  const double sum = SumLosses(memory).Sum(double(loss));
  if (threadIdx.x == 0) losses[blockIdx.x] = sum;
}

// Of a row's blocks; a block of threads for each row.
__global__ void __launch_bounds__(kThreads)
    sum_blocks(const double* __restrict__ losses, int blocks, double* __restrict__ sums) {
  __shared__ SumLosses::TempStorage memory;
  double sum = 0;
  for (int i = threadIdx.x; i < blocks; i += kThreads) sum += losses[int64_t(blockIdx.x) * blocks + i];
  sum = SumLosses(memory).Sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// What each row counts in the loss of its set, times the set's gradient if there is one; a warp for each set. A row
// with a NaN, which is its first key, makes NaN of the gradient of all its set.
__global__ void class_factors(const uint32_t* __restrict__ keys, const int* __restrict__ ends, int64_t length,
                              int blocks, int classes, Average average, const float* __restrict__ grad,
                              float* __restrict__ factors) {
  constexpr uint32_t kInfinity = (0x7f800000u + 1) << 1 | 1;
  const int64_t first = int64_t(blockIdx.x) * classes;
  const auto counts = [&](int k) { return !average.present || ends[(first + k + 1) * blocks - 1] > 0; };
  int count = 0;
  bool nan = false;
  for (int k = threadIdx.x; k < classes; k += kWarp) {
    count += counts(k);
    nan = nan || keys[(first + k) * length] > kInfinity;
  }
  count = max(warp_sum(count), 1);
  nan = __any_sync(0xffffffffu, nan);
  const float above = !grad ? 1.f : nan ? cuda::std::numeric_limits<float>::quiet_NaN() : grad[blockIdx.x];
  for (int k = threadIdx.x; k < classes; k += kWarp)
    factors[first + k] = above * (counts(k) ? (average.weights ? average.weights[k] : 1.f) / float(count) : 0.f);
}

// A warp for each set.
__global__ void sum_classes(const double* __restrict__ sums, const float* __restrict__ factors, int classes,
                            float* __restrict__ losses) {
  const int64_t first = int64_t(blockIdx.x) * classes;
  double loss = 0;
  for (int k = threadIdx.x; k < classes; k += kWarp) loss += sums[first + k] * factors[first + k];
  loss = warp_sum(loss);
  if (threadIdx.x == 0) losses[blockIdx.x] = float(loss);
}

__global__ void __launch_bounds__(kThreads)
    scatter_slopes(const uint32_t* __restrict__ keys, const uint32_t* __restrict__ order, const int* __restrict__ ends,
                   int64_t length, int blocks, const float* __restrict__ factors, float* __restrict__ slopes) {
  __shared__ LoadKeys::TempStorage memory;
  const Part part(length, blocks);
  uint32_t place[kItems];
  LoadKeys(memory).Load(order + part.offset(), place, part.size(), 0u);
  const float factor = factors[part.row];
  float* row = slopes + part.row * length;
  for_each_step(part, keys, ends, [&](int i, uint32_t key, float step) {
    const float slope = error_of(key) > 0 ? (key & 1 ? -step : step) : 0.f;
    if (int(threadIdx.x) * kItems + i < part.size()) row[place[i]] = key ? slope * factor : 0.f;
  });
}

struct Times {
  int length;
  __host__ __device__ int operator()(int row) const { return row * length; }
};

// One long row with the whole device, or many short ones with a block for each.
template <class... Values>
cudaError_t sort_some(void* memory, size_t& bytes, bool long_row, int64_t rows, int64_t length, cudaStream_t stream,
                      cub::DoubleBuffer<uint32_t>& keys, Values&... values) {
  const auto begin = thrust::make_transform_iterator(thrust::make_counting_iterator(0), Times{int(length)});
  constexpr int kBits = 32;
  if constexpr (sizeof...(values) == 0) {
    if (long_row) return cub::DeviceRadixSort::SortKeysDescending(memory, bytes, keys, length, 0, kBits, stream);
    return cub::DeviceSegmentedRadixSort::SortKeysDescending(memory, bytes, keys, int(rows * length), int(rows), begin,
                                                             begin + 1, 0, kBits, stream);
  } else {
    if (long_row)
      return cub::DeviceRadixSort::SortPairsDescending(memory, bytes, keys, values..., length, 0, kBits, stream);
    return cub::DeviceSegmentedRadixSort::SortPairsDescending(memory, bytes, keys, values..., int(rows * length),
                                                              int(rows), begin, begin + 1, 0, kBits, stream);
  }
}

Shape parts_of(const ErrorRows& rows) { return {dim3(unsigned(rows.rows() * rows.blocks())), dim3(kThreads)}; }
Shape rows_of(const ErrorRows& rows) { return {dim3(unsigned(rows.rows())), dim3(kThreads)}; }
Shape sets_of(const ErrorRows& rows) { return {dim3(unsigned(rows.sets)), dim3(kWarp)}; }

Buffer<float> factors_of(const Place& place, const ErrorRows& rows, Average average, const float* grad) {
  Buffer<float> factors(place, rows.rows());
  launch(class_factors, sets_of(rows), place, rows.keys.data(), rows.ends.data(), rows.length, int(rows.blocks()),
         int(rows.classes), average, grad, factors.data());
  return factors;
}

}  // namespace

ErrorRows::ErrorRows(const Place& place, int64_t sets, int64_t classes, int64_t length, bool with_order)
    : sets(sets), classes(classes), length(length) {
  require(length > 0 && length <= INT32_MAX, "target: expected fewer than 2^31 pixels in a set");
  require(rows() * blocks() <= INT32_MAX, "input: expected at most 2^31 blocks of 2048 errors");
  const int64_t count = rows() * length;
  keys = Buffer<uint32_t>(place, count);
  other_keys = Buffer<uint32_t>(place, count);
  if (with_order) order = Buffer<uint32_t>(place, count);
  if (with_order) other_order = Buffer<uint32_t>(place, count);
  ends = Buffer<int>(place, rows() * blocks());
}

int64_t ErrorRows::blocks() const { return (length + kBlock - 1) / kBlock; }

void sort(const Place& place, ErrorRows& rows) {
  const bool long_rows = rows.length >= kLong;
  const int64_t step = long_rows ? 1 : kAtOnce / rows.length;
  int where = 0;  // in which of the two buffers the result is: the same for all, since it depends on the length alone
  for (int64_t first = 0; first < rows.rows(); first += step) {
    const int64_t offset = first * rows.length, count = std::min(step, rows.rows() - first);
    cub::DoubleBuffer<uint32_t> keys(rows.keys.data() + offset, rows.other_keys.data() + offset);
    with_memory(place, [&](void* memory, size_t& bytes) {
      if (!rows.order.data()) return sort_some(memory, bytes, long_rows, count, rows.length, place.stream, keys);
      cub::DoubleBuffer<uint32_t> order(rows.order.data() + offset, rows.other_order.data() + offset);
      return sort_some(memory, bytes, long_rows, count, rows.length, place.stream, keys, order);
    });
    where = keys.selector;
  }
  if (where == 1) {
    std::swap(rows.keys, rows.other_keys);
    std::swap(rows.order, rows.other_order);
  }
  launch(count_foreground, parts_of(rows), place, rows.keys.data(), rows.length, int(rows.blocks()), rows.ends.data());
  launch(add_up, rows_of(rows), place, rows.ends.data(), int(rows.blocks()));
}

void write_losses(const Place& place, const ErrorRows& rows, Average average, float* losses) {
  const Buffer<double> parts(place, rows.rows() * rows.blocks()), sums(place, rows.rows());
  const Buffer<float> factors = factors_of(place, rows, average, nullptr);
  launch(add_losses, parts_of(rows), place, rows.keys.data(), rows.ends.data(), rows.length, int(rows.blocks()),
         parts.data());
  launch(sum_blocks, rows_of(rows), place, parts.data(), int(rows.blocks()), sums.data());
  launch(sum_classes, sets_of(rows), place, sums.data(), factors.data(), int(rows.classes), losses);
}

void write_slopes(const Place& place, const ErrorRows& rows, Average average, const float* grad, float* slopes) {
  const Buffer<float> factors = factors_of(place, rows, average, grad);
  launch(scatter_slopes, parts_of(rows), place, rows.keys.data(), rows.order.data(), rows.ends.data(), rows.length,
         int(rows.blocks()), factors.data(), slopes);
}

}  // namespace segops::gpu
