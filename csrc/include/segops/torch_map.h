// Maps (N, C, H, W) of tensors in either memory layout.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "segops/atrous_conv2d.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace segops {

// The channels of a pixel together, and not also plane by plane, as in a map with one channel or one pixel.
inline bool is_channels_last(const Tensor& map) {
  if (map.is_contiguous()) return false;
  int64_t stride = 1;
  for (const int d : {1, 3, 2, 0}) {
    if (map.size(d) != 1 && map.stride(d) != stride) return false;
    stride *= map.size(d);
  }
  return true;
}

// Itself in either layout, else a copy.
inline Tensor readable(const Tensor& map) { return is_channels_last(map) ? map : torch::stable::contiguous(map); }

inline Tensor fresh_map(const Tensor& like, int64_t n, int64_t channels, int64_t height, int64_t width, bool last) {
  if (!last) return fresh(like, {n, channels, height, width});
  Tensor out = fresh(like, {n, height, width, channels});
  return torch::stable::transpose(torch::stable::transpose(out, 1, 3), 2, 3);
}

template <class T>
atrous::Map<const T> map_of(const Tensor& map) {
  return {data<T>(map), map.size(0), map.size(1), map.size(2), map.size(3), is_channels_last(map)};
}
template <class T>
atrous::Map<T> mutable_map_of(Tensor& map, bool last) {
  return {mutable_data<T>(map), map.size(0), map.size(1), map.size(2), map.size(3), last};
}

// A map in the asked layout: itself, or a copy; of single precision, in which alone a layout is chosen.
inline Tensor in_layout(const Tensor& map, bool last) {
  if (map.numel() == 0 || (last ? is_channels_last(map) : map.is_contiguous())) return map;
  if (map.scalar_type() != ScalarType::Float) return torch::stable::contiguous(map);
  const Tensor from = readable(map);
  const auto source = map_of<float>(from);
  Tensor out = fresh_map(from, source.batch, source.channels, source.height, source.width, last);
  const auto target = mutable_map_of<float>(out, last);
  TorchParallel parallel;
  for (int64_t n = 0; n < source.batch; ++n)
    atrous::copy_channels<float>({source.image(n), source.step(), source.last}, {target.image(n), target.step(), last},
                                 source.channels, source.pixels(), parallel);
  return out;
}

}  // namespace segops
