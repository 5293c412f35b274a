// Maps (N, C, H, W) of tensors in either memory layout.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "segops/atrous_conv2d.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace segops {

// Itself in either layout, else a copy.
inline Tensor readable(const Tensor& map) { return is_channels_last(map) ? map : torch::stable::contiguous(map); }

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
  TorchParallel parallel;
  atrous::copy_channels<float>(source.from_channel(0), mutable_map_of<float>(out, last).from_channel(0), source.batch,
                               source.channels, source.pixels(), parallel);
  return out;
}

}  // namespace segops
