// Tensors of integer labels, read in the dtype that they have.
#pragma once

#include "segops/torch_tensor.h"

namespace segops {

// body(T{}) with the integer T that the tensor has.
template <class Body>
void dispatch_labels(const Tensor& t, const char* name, const Body& body) {
  switch (t.scalar_type()) {
    case ScalarType::Byte:
      return body(uint8_t{});
    case ScalarType::Short:
      return body(int16_t{});
    case ScalarType::Int:
      return body(int32_t{});
    case ScalarType::Long:
      return body(int64_t{});
    default:
      throw std::invalid_argument(std::string(name) + ": expected labels of uint8, int16, int32 or int64");
  }
}

// An element of a contiguous tensor.
inline int64_t label_at(const Tensor& t, int64_t i) {
  int64_t label = 0;
  dispatch_labels(t, "label_at", [&](auto zero) { label = data<decltype(zero)>(t)[i]; });
  return label;
}

}  // namespace segops
