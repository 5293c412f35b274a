// Expectation-maximization attention of tensors; see segops/reference/em_attention.py.
#include "segops/em_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>
#include <tuple>

#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace {

using segops::data;
using segops::fresh;
using segops::mutable_data;
using segops::require;
using segops::Tensor;

// Contiguous, and checked against each other as far as memory safety asks for it.
struct Inputs {
  Tensor x, bases;
  int64_t batch, channels, pixels, count;
  bool added;

  Inputs(const Tensor& x_in, const Tensor& bases_in, const std::string& eps_mode)
      : x(torch::stable::contiguous(x_in)), bases(torch::stable::contiguous(bases_in)), added(eps_mode == "add") {
    require(x.dim() == 3 && bases.dim() == 3 && x.scalar_type() == bases.scalar_type() && x.size(1) == bases.size(1) &&
                (bases.size(0) == 1 || bases.size(0) == x.size(0)) && x.size(1) > 0 && x.size(2) > 0 &&
                bases.size(2) > 0,
            "em_attention: expected x (N, C, P) and bases (N or 1, C, K) of one dtype, neither empty but for N");
    require(added || eps_mode == "clamp", "em_attention: expected eps_mode 'add' or 'clamp'");
    batch = x.size(0);
    channels = x.size(1);
    pixels = x.size(2);
    count = bases.size(2);
  }

  template <class T>
  segops::em::Image<T> image(segops::Parallel& parallel) const {
    return {channels, pixels, count, added, parallel};
  }
  int64_t map(int64_t n) const { return n * channels * pixels; }
  int64_t table(int64_t n) const { return n * channels * count; }
  int64_t norm(int64_t n) const { return n * 2 * count; }
  int64_t first(int64_t n) const { return bases.size(0) == 1 ? 0 : table(n); }
};

std::tuple<Tensor, Tensor, Tensor> em_attention(Tensor x, Tensor bases, int64_t iterations, std::string eps_mode) {
  const Inputs in(x, bases, eps_mode);
  require(iterations > 0, "em_attention: expected at least one iteration");
  Tensor out = fresh(in.x, {in.batch, in.channels, in.pixels});
  Tensor history = fresh(in.x, {iterations, in.batch, in.channels, in.count});
  Tensor norms = fresh(in.x, {iterations, in.batch, 2, in.count});
  if (in.batch == 0) return {out, history, norms};
  segops::dispatch(in.x, "em_attention", [&](auto zero) {
    using T = decltype(zero);
    segops::TorchParallel parallel;
    auto image = in.image<T>(parallel);
    for (int64_t n = 0; n < in.batch; ++n)
      image.forward(data<T>(in.x, in.map(n)), data<T>(in.bases, in.first(n)), int(iterations),
                    mutable_data<T>(out, in.map(n)), mutable_data<T>(history, in.table(n)), in.table(in.batch),
                    mutable_data<T>(norms, in.norm(n)), in.norm(in.batch));
  });
  return {out, history, norms};
}

std::tuple<Tensor, Tensor> em_attention_backward(Tensor grad, Tensor grad_history, Tensor x, Tensor bases,
                                                 Tensor history, Tensor norms, std::string eps_mode) {
  const Inputs in(x, bases, eps_mode);
  grad = torch::stable::contiguous(grad);
  grad_history = torch::stable::contiguous(grad_history);
  history = torch::stable::contiguous(history);
  norms = torch::stable::contiguous(norms);
  const auto dtype = in.x.scalar_type();
  require(grad.sizes().equals(in.x.sizes()) && history.dim() == 4 && norms.dim() == 4 && history.size(0) > 0 &&
              history.size(0) == norms.size(0) && history.size(1) == in.batch && history.size(2) == in.channels &&
              history.size(3) == in.count && grad_history.sizes().equals(history.sizes()) &&
              norms.size(1) == in.batch && norms.size(2) == 2 && norms.size(3) == in.count,
          "em_attention_backward: expected grad like x, grad_history and history (T, N, C, K), norms (T, N, 2, K)");
  require(grad.scalar_type() == dtype && grad_history.scalar_type() == dtype && history.scalar_type() == dtype &&
              norms.scalar_type() == dtype,
          "em_attention_backward: expected tensors of one dtype");
  Tensor grad_x = fresh(in.x, {in.batch, in.channels, in.pixels});
  Tensor grad_bases = torch::stable::new_zeros(in.bases, in.bases.sizes());
  if (in.batch == 0) return {grad_x, grad_bases};
  segops::dispatch(in.x, "em_attention_backward", [&](auto zero) {
    using T = decltype(zero);
    segops::TorchParallel parallel;
    auto image = in.image<T>(parallel);
    segops::Buffer<T> one(in.table(1));
    for (int64_t n = 0; n < in.batch; ++n) {
      image.backward(data<T>(grad, in.map(n)), data<T>(grad_history, in.table(n)), data<T>(in.x, in.map(n)),
                     data<T>(in.bases, in.first(n)), int(history.size(0)), data<T>(history, in.table(n)),
                     in.table(in.batch), data<T>(norms, in.norm(n)), in.norm(in.batch),
                     mutable_data<T>(grad_x, in.map(n)), one.data());
      T* sum = mutable_data<T>(grad_bases, in.first(n));
      for (int64_t i = 0; i < one.size(); ++i) sum[i] += one[i];
    }
  });
  return {grad_x, grad_bases};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("em_attention", SEGOPS_BOX(em_attention));
  m.impl("em_attention_backward", SEGOPS_BOX(em_attention_backward));
}
