// What the CPU operators need of a torch::stable::Tensor: typed pointers, checked dtypes, fresh results.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "segops/buffer.h"

namespace segops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
const T* data(const Tensor& t, int64_t offset = 0) {
  return static_cast<const T*>(t.const_data_ptr()) + offset;
}
template <class T>
T* mutable_data(Tensor& t, int64_t offset = 0) {
  return static_cast<T*>(t.mutable_data_ptr()) + offset;
}

// What memory safety asks for; the public functions in Python have checked everything, with better words, before.
inline void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

// body(T{}) with T = float or double, as the tensor has it.
template <class Body>
auto dispatch(const Tensor& t, const char* name, const Body& body) {
  if (t.scalar_type() == ScalarType::Double) return body(double{});
  if (t.scalar_type() != ScalarType::Float)
    throw std::invalid_argument(std::string(name) + ": expected float32 or float64");
  return body(float{});
}

// An uninitialised, contiguous result in the dtype and on the device of `like`. A large one asks for large pages, since
// the first touch of fresh memory costs a page fault a page.
inline Tensor fresh(const Tensor& like, std::initializer_list<int64_t> sizes) {
  Tensor out = torch::stable::new_empty(like, {sizes.begin(), sizes.size()});
  if (out.numel() > 0) advise_large_pages(out.mutable_data_ptr(), size_t(out.numel()) * out.element_size());
  return out;
}

// The channels of a cell together, and not also plane by plane, as in a map with one channel or cell.
inline bool is_channels_last(const Tensor& map) {
  if (map.is_contiguous()) return false;
  int64_t stride = 1;
  for (const int d : {1, 3, 2, 0}) {
    if (map.size(d) != 1 && map.stride(d) != stride) return false;
    stride *= map.size(d);
  }
  return true;
}

// A fresh map (N, C, H, W), in planes or in cells.
inline Tensor fresh_map(const Tensor& like, int64_t batch, int64_t channels, int64_t height, int64_t width,
                        bool cells) {
  if (!cells) return fresh(like, {batch, channels, height, width});
  Tensor out = fresh(like, {batch, height, width, channels});
  return torch::stable::transpose(torch::stable::transpose(out, 1, 3), 2, 3);
}

}  // namespace segops
