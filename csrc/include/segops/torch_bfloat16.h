// Operators whose products multiply pairs of bfloat16 where the processor can; other halves are computed in float32.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "segops/bfloat16.h"
#include "segops/torch_tensor.h"

namespace segops {

inline bool is_widened(const Tensor& t) {
  return t.scalar_type() == ScalarType::Half || (t.scalar_type() == ScalarType::BFloat16 && !bfloat16_pairs());
}

// That of sums: float64 stays, all else is summed in float32.
inline ScalarType sum_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor widened(const Tensor& t) { return torch::stable::to(t, ScalarType::Float); }
inline Tensor narrowed(const Tensor& t, const Tensor& like) { return torch::stable::to(t, like.scalar_type()); }

// body(S{}) with S = float, double or Bfloat16, as a tensor that is not widened has it.
template <class Body>
auto dispatch_pairs(const Tensor& t, const char* name, const Body& body) {
  if (t.scalar_type() == ScalarType::BFloat16 && bfloat16_pairs()) return body(Bfloat16{});
  return dispatch(t, name, body);
}

}  // namespace segops
