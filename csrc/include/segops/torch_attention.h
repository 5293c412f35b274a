// The tensors of attention within one map.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>

#include "segops/torch_tensor.h"

namespace segops {

// Contiguous, and checked against each other as far as memory safety asks for it.
struct QueryKeyValue {
  Tensor query, key, value;

  QueryKeyValue(const std::string& op, const Tensor& query_in, const Tensor& key_in, const Tensor& value_in)
      : query(torch::stable::contiguous(query_in)),
        key(torch::stable::contiguous(key_in)),
        value(torch::stable::contiguous(value_in)) {
    require(query.dim() == 4 && value.dim() == 4 && key.sizes().equals(query.sizes()) &&
                query.size(0) == value.size(0) && query.size(2) == value.size(2) && query.size(3) == value.size(3),
            (op + ": expected query and key (N, D, H, W) and value (N, C, H, W)").c_str());
    require(query.size(1) > 0 && value.size(1) > 0, (op + ": expected at least one channel").c_str());
    require(key.scalar_type() == query.scalar_type() && value.scalar_type() == query.scalar_type(),
            (op + ": expected one dtype").c_str());
  }

  // Where a Problem of an operator finds them.
  template <class T, class Problem>
  void point(Problem& p) const {
    p.query = data<T>(query);
    p.key = data<T>(key);
    p.value = data<T>(value);
  }
};

// Fresh gradients of the three.
struct Gradients {
  Tensor query, key, value;

  explicit Gradients(const QueryKeyValue& in) : query(like(in.query)), key(like(in.key)), value(like(in.value)) {}

  static Tensor like(const Tensor& t) { return fresh(t, {t.size(0), t.size(1), t.size(2), t.size(3)}); }

  template <class T, class Problem>
  void point(Problem& p) {
    p.grad_query = mutable_data<T>(query);
    p.grad_key = mutable_data<T>(key);
    p.grad_value = mutable_data<T>(value);
  }
};

}  // namespace segops
