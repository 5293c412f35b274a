// Point-wise spatial attention of tensors; see segops/reference/psa.py.
#include "segops/psa.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>
#include <tuple>

#include "segops/torch_bfloat16.h"
#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace {

using segops::data;
using segops::fresh;
using segops::mutable_data;
using segops::narrowed;
using segops::require;
using segops::ScalarType;
using segops::Tensor;
using segops::widened;

// Contiguous, and checked against each other as far as memory safety asks for it.
struct Inputs {
  Tensor value, attention;
  segops::psa::Window window;
  int64_t batch, channels;

  Inputs(const Tensor& value_in, const Tensor& attention_in, const std::string& mode, int64_t mask_height,
         int64_t mask_width, bool compact)
      : value(torch::stable::contiguous(value_in)), attention(torch::stable::contiguous(attention_in)) {
    require(value.dim() == 4 && attention.dim() == 4 && value.scalar_type() == attention.scalar_type() &&
                value.size(0) == attention.size(0) && value.size(2) == attention.size(2) &&
                value.size(3) == attention.size(3) && value.size(1) > 0 && value.size(2) > 0 && value.size(3) > 0,
            "psa: expected value (N, C, H, W) and attention (N, K, H, W) of one dtype, neither empty but for N");
    require(mode == "collect" || mode == "distribute", "psa: expected mode 'collect' or 'distribute'");
    require(compact || (mask_height > 0 && mask_width > 0 && mask_height % 2 == 1 && mask_width % 2 == 1),
            "psa: expected a mask of odd height and width");
    batch = value.size(0);
    channels = value.size(1);
    window = {value.size(2), value.size(3), mask_height, mask_width, mode == "collect", compact};
    require(attention.size(1) == window.planes(), "psa: expected as many channels of attention as the mask has");
  }

  int64_t map(int64_t n) const { return n * channels * window.positions(); }
  int64_t entries(int64_t n) const { return n * window.planes() * window.positions(); }
};

std::tuple<Tensor, Tensor> psa(Tensor value, Tensor attention, std::string mode, int64_t mask_height,
                               int64_t mask_width, bool compact, bool softmax) {
  const Inputs in(value, attention, mode, mask_height, mask_width, compact);
  if (segops::is_widened(value)) {
    const auto [out, stats] = psa(widened(value), widened(attention), mode, mask_height, mask_width, compact, softmax);
    return {narrowed(out, value), stats};
  }
  const int64_t positions = in.window.positions(), numbers = softmax ? positions : 0;
  Tensor out = fresh(in.value, {in.batch, in.channels, in.window.height, in.window.width});
  Tensor stats = torch::stable::new_empty(in.value, {in.batch, 2, numbers}, segops::sum_type(in.value));
  if (in.batch == 0) return {out, stats};
  segops::dispatch_pairs(in.value, "psa", [&](auto zero) {
    using S = decltype(zero);
    using T = segops::Sum<S>;
    segops::TorchParallel parallel;
    segops::psa::Attention<S> image(in.window, in.channels, softmax, false, parallel);
    for (int64_t n = 0; n < in.batch; ++n)
      image.forward(data<S>(in.value, in.map(n)), data<S>(in.attention, in.entries(n)), mutable_data<S>(out, in.map(n)),
                    mutable_data<T>(stats, 2 * n * numbers));
  });
  return {out, stats};
}

std::tuple<Tensor, Tensor> psa_backward(Tensor grad, Tensor value, Tensor attention, Tensor out, Tensor stats,
                                        std::string mode, int64_t mask_height, int64_t mask_width, bool compact,
                                        bool softmax) {
  const Inputs in(value, attention, mode, mask_height, mask_width, compact);
  const int64_t numbers = softmax ? in.window.positions() : 0;
  grad = torch::stable::contiguous(grad);
  out = torch::stable::contiguous(out);
  stats = torch::stable::contiguous(stats);
  const auto dtype = in.value.scalar_type();
  require(grad.sizes().equals(in.value.sizes()) && out.sizes().equals(in.value.sizes()) && stats.dim() == 3 &&
              stats.size(0) == in.batch && stats.size(1) == 2 && stats.size(2) == numbers,
          "psa_backward: expected grad and out like value, stats (N, 2, H W) or, without softmax, (N, 2, 0)");
  require(
      grad.scalar_type() == dtype && out.scalar_type() == dtype && stats.scalar_type() == segops::sum_type(in.value),
      "psa_backward: expected tensors of one dtype, and stats of that of sums");
  if (segops::is_widened(value)) {
    const auto [of_value, of_attention] = psa_backward(widened(grad), widened(value), widened(attention), widened(out),
                                                       stats, mode, mask_height, mask_width, compact, softmax);
    return {narrowed(of_value, value), narrowed(of_attention, attention)};
  }
  Tensor grad_value = fresh(in.value, {in.batch, in.channels, in.window.height, in.window.width});
  Tensor grad_attention = fresh(in.value, {in.batch, in.window.planes(), in.window.height, in.window.width});
  if (in.batch == 0) return {grad_value, grad_attention};
  segops::dispatch_pairs(in.value, "psa_backward", [&](auto zero) {
    using S = decltype(zero);
    using T = segops::Sum<S>;
    segops::TorchParallel parallel;
    segops::psa::Attention<S> image(in.window, in.channels, softmax, true, parallel);
    for (int64_t n = 0; n < in.batch; ++n)
      image.backward(data<S>(grad, in.map(n)), data<S>(in.value, in.map(n)), data<S>(in.attention, in.entries(n)),
                     data<S>(out, in.map(n)), data<T>(stats, 2 * n * numbers), mutable_data<S>(grad_value, in.map(n)),
                     mutable_data<S>(grad_attention, in.entries(n)));
  });
  return {grad_value, grad_attention};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("psa", SEGOPS_BOX(psa));
  m.impl("psa_backward", SEGOPS_BOX(psa_backward));
}
