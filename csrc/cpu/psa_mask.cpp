// The attention map of point-wise spatial attention as a matrix of sources and receivers; see
// segops/reference/psa.py. Tiles of the matrix are gathered in cache, so that entries are read and the matrix is
// written by rows.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>

#include "segops/psa_window.h"
#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace {

using segops::data;
using segops::fresh;
using segops::mutable_data;
using segops::require;
using segops::Tensor;
using segops::psa::Range;
using segops::psa::Window;

constexpr int64_t kSide = 128;  // of a tile: 64 KiB in float32

Window window_of(const std::string& mode, int64_t height, int64_t width, int64_t mask_height, int64_t mask_width) {
  require(mode == "collect" || mode == "distribute", "psa_mask: expected mode 'collect' or 'distribute'");
  require(height > 0 && width > 0 && mask_height > 0 && mask_width > 0 && mask_height % 2 == 1 && mask_width % 2 == 1,
          "psa_mask: expected a map that is not empty and a mask of odd height and width");
  return {height, width, mask_height, mask_width, mode == "collect", false};
}

// body(tile, sources, receivers) over all tiles of a matrix.
template <class T, class Body>
void each_tile(int64_t positions, const Body& body) {
  segops::TorchParallel parallel;
  parallel.range((positions + kSide - 1) / kSide, 1, [&](int64_t begin, int64_t end) {
    segops::Buffer<T> tile(kSide * kSide);
    for (int64_t s = begin * kSide; s < std::min(end * kSide, positions); s += kSide)
      for (int64_t t = 0; t < positions; t += kSide)
        body(tile.data(), Range{s, std::min(s + kSide, positions)}, Range{t, std::min(t + kSide, positions)});
  });
}

Tensor psa_mask(Tensor attention, std::string mode, int64_t mask_height, int64_t mask_width) {
  attention = torch::stable::contiguous(attention);
  require(attention.dim() == 4, "psa_mask: expected attention (N, K, H, W)");
  const int64_t batch = attention.size(0), height = attention.size(2), width = attention.size(3);
  const Window window = window_of(mode, height, width, mask_height, mask_width);
  require(attention.size(1) == window.planes(), "psa_mask: expected as many channels as the mask has");
  const int64_t positions = window.positions();
  Tensor out = fresh(attention, {batch, positions, height, width});
  segops::dispatch(attention, "psa_mask", [&](auto zero) {
    using T = decltype(zero);
    for (int64_t n = 0; n < batch; ++n) {
      const T* entries = data<T>(attention, n * window.planes() * positions);
      T* matrix = mutable_data<T>(out, n * positions * positions);
      each_tile<T>(positions, [&](T* tile, Range sources, Range receivers) {
        window.gather(entries, sources, kSide, receivers, 1, tile);
        for (int64_t s = sources.begin; s < sources.end; ++s)
          std::copy_n(tile + (s - sources.begin) * kSide, receivers.size(), matrix + s * positions + receivers.begin);
      });
    }
  });
  return out;
}

Tensor psa_mask_backward(Tensor grad, std::string mode, int64_t mask_height, int64_t mask_width) {
  grad = torch::stable::contiguous(grad);
  require(grad.dim() == 4 && grad.size(1) == grad.size(2) * grad.size(3),
          "psa_mask_backward: expected grad (N, H W, H, W)");
  const int64_t batch = grad.size(0), height = grad.size(2), width = grad.size(3);
  const Window window = window_of(mode, height, width, mask_height, mask_width);
  const int64_t positions = window.positions(), planes = window.planes();
  Tensor out = fresh(grad, {batch, planes, height, width});
  segops::dispatch(grad, "psa_mask_backward", [&](auto zero) {
    using T = decltype(zero);
    segops::TorchParallel parallel;
    for (int64_t n = 0; n < batch; ++n) {
      T* entries = mutable_data<T>(out, n * planes * positions);
      const T* matrix = data<T>(grad, n * positions * positions);
      parallel.range(planes, 64, [&](int64_t begin, int64_t end) { window.clear_outside(entries, begin, end); });
      each_tile<T>(positions, [&](T* tile, Range sources, Range receivers) {
        for (int64_t s = sources.begin; s < sources.end; ++s)
          std::copy_n(matrix + s * positions + receivers.begin, receivers.size(), tile + (s - sources.begin) * kSide);
        window.scatter(tile, sources, kSide, receivers, 1, entries);
      });
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("psa_mask", SEGOPS_BOX(psa_mask));
  m.impl("psa_mask_backward", SEGOPS_BOX(psa_mask_backward));
}
