// What every CUDA operator needs: PyTorch's memory, PyTorch's stream, and checked launches over rows and columns.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>

namespace segops::gpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

// Makes the device of a tensor the current one; work goes to the stream that PyTorch has current there.
struct Place {
  torch::stable::Device device;
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;

  explicit Place(const Tensor& tensor) : device(tensor.device()), guard(device.index()), stream(nullptr) {
    void* current = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device.index(), &current));
    stream = static_cast<cudaStream_t>(current);
  }

  Tensor floats(torch::headeronly::IntHeaderOnlyArrayRef sizes) const {
    return torch::stable::empty(sizes, ScalarType::Float, std::nullopt, device);
  }
};

// Device memory from PyTorch's caching allocator (aligned to 512 bytes). Giving it back while kernels that use it are
// still queued is safe: the allocator hands it out again in the order of the same stream.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Place& place, int64_t count)
      : bytes_(count * int64_t(sizeof(T))),
        tensor_(torch::stable::empty({bytes_}, ScalarType::Byte, std::nullopt, place.device)),
        data_(static_cast<T*>(tensor_->mutable_data_ptr())) {}

  T* data() const { return data_; }
  void fill_bytes(int value, const Place& place) {
    if (bytes_ > 0) STD_CUDA_CHECK(cudaMemsetAsync(data_, value, bytes_, place.stream));
  }

 private:
  int64_t bytes_ = 0;
  std::optional<Tensor> tensor_;
  T* data_ = nullptr;
};

// CUB's algorithms are called twice: first for how much memory they need.
template <class Algorithm>
void with_memory(const Place& place, const Algorithm& algorithm) {
  size_t bytes = 0;
  STD_CUDA_CHECK(algorithm(nullptr, bytes));
  const Buffer<char> memory(place, int64_t(std::max<size_t>(bytes, 1)));
  STD_CUDA_CHECK(algorithm(memory.data(), bytes));
}

// Every kernel is a row per threadIdx.y and a column per threadIdx.x, with blockIdx.y going over images. A block is as
// wide as the row (up to kThreads, beyond that a thread takes several columns), so its threads are neighbours in
// memory, none idles and nothing is divided.
constexpr int kThreads = 256;
constexpr int64_t kMaxRows = int64_t(1) << 30;  // keeps row() in an int

struct Shape {
  dim3 grid, block;
};

inline Shape shape_of(int64_t rows, int64_t columns = 1, int64_t images = 1) {
  const int64_t x = std::clamp<int64_t>(columns, 1, kThreads), y = kThreads / x;
  return {dim3(unsigned((rows + y - 1) / y), unsigned(std::min<int64_t>(images, 65535))),
          dim3(unsigned(x), unsigned(y))};
}

__device__ __forceinline__ int row() { return int(blockIdx.x * blockDim.y + threadIdx.y); }

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), Shape shape, const Place& place, Arguments... arguments) {
  if (shape.grid.x == 0 || shape.grid.y == 0) return;
  kernel<<<shape.grid, shape.block, 0, place.stream>>>(arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace segops::gpu
