// Atrous spatial pyramid pooling of tensors; see segops/reference/aspp.py.
//
// A forward pass in float32 is left to oneDNN where it is the faster, reading channels_last, since it skips the padding
// there; the input is brought into that order once. All else runs on the kernels of atrous_conv2d: sums of
// gradients, which they add up before anything is stored, and gradients of weights.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "segops/atrous_conv2d.h"
#include "segops/torch_convolution.h"
#include "segops/torch_errors.h"
#include "segops/torch_map.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace {

using segops::Convolution;
using segops::data;
using segops::map_of;
using segops::mutable_data;
using segops::mutable_map_of;
using segops::require;
using segops::Tensor;
using segops::atrous::Map;
using segops::atrous::Taps;
using segops::atrous::Target;
using segops::atrous::Term;
using segops::atrous::WeightGradient;

Taps same_taps(int64_t height, int64_t width, int64_t rate) {
  require(height % 2 == 1 && width % 2 == 1 && rate > 0, "aspp: expected odd kernels and rates from 1");
  return {height, width, -(height / 2) * rate, -(width / 2) * rate, rate, rate};
}

struct Branch {
  Taps taps;
  int64_t first, count;  // channels of the result
};

// Branches beside each other, or on top of each other where they are summed.
struct Branches {
  std::vector<Branch> all;
  int64_t channels = 0;

  void add(int64_t count, int64_t height, int64_t width, int64_t rate, bool sum) {
    require(!sum || all.empty() || count == channels, "aspp: expected branches of one size to sum");
    all.push_back({same_taps(height, width, rate), sum ? 0 : channels, count});
    channels = sum ? count : channels + count;
  }
  Branches(const std::vector<Tensor>& weights, const std::vector<int64_t>& rates, bool sum) {
    require(!weights.empty() && weights.size() == rates.size(), "aspp: expected a rate for each weight");
    for (size_t i = 0; i < weights.size(); ++i) {
      require(weights[i].dim() == 4 && weights[i].size(1) == weights[0].size(1) &&
                  weights[i].scalar_type() == weights[0].scalar_type(),
              "aspp: expected weights (K, C, h, w) of one dtype");
      add(weights[i].size(0), weights[i].size(2), weights[i].size(3), rates[i], sum);
    }
  }
  Branches(const std::vector<int64_t>& counts, const std::vector<int64_t>& kernels, const std::vector<int64_t>& rates,
           bool sum) {
    require(!counts.empty() && counts.size() == rates.size() && kernels.size() == 2 * counts.size(),
            "aspp: expected a rate and a kernel for each branch");
    for (size_t i = 0; i < counts.size(); ++i) add(counts[i], kernels[2 * i], kernels[2 * i + 1], rates[i], sum);
  }
};

std::vector<Convolution> convolutions(const Tensor& x, const std::vector<Tensor>& weights, const Branches& branches,
                                      const std::vector<int64_t>& rates) {
  std::vector<Convolution> all;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Taps& taps = branches.all[i].taps;
    const std::vector<int64_t> padding{-taps.first_y, -taps.first_x}, dilation{rates[i], rates[i]};
    all.emplace_back(x, weights[i].sizes(), std::vector<int64_t>{1, 1}, padding, dilation, 1);
  }
  return all;
}

// Adds maps of one size, both channels_last.
void add(const Tensor& from, Tensor& to) {
  const float* const addend = data<float>(from);
  float* const sum = mutable_data<float>(to);
  segops::TorchParallel parallel;
  parallel.range(to.numel(), 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sum[i] += addend[i];
  });
}

// Each branch by oneDNN, into its channels of out; the first of those that are summed takes the others.
void convolve_dense(const Tensor& x, const std::vector<Tensor>& weights, const std::optional<Tensor>& bias,
                    const Branches& branches, const std::vector<Convolution>& convolutions, bool sum, Tensor& out,
                    bool last) {
  const Tensor source = segops::in_layout(x, true);
  const auto to = mutable_map_of<float>(out, last);
  segops::TorchParallel parallel;
  Tensor total;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Branch& b = branches.all[i];
    std::optional<Tensor> part;
    if (bias && !(sum && i > 0)) {
      Tensor all = *bias;
      part = torch::stable::narrow(all, 0, b.first, b.count);
    }
    const Tensor weight = segops::in_layout(weights[i], true);
    Tensor result = segops::in_layout(convolutions[i].forward(source, weight, part), true);
    if (sum && i > 0) add(result, total);
    if (i == 0) total = result;
    if (sum && i + 1 < weights.size()) continue;
    segops::atrous::copy_channels<float>(map_of<float>(sum ? total : result).from_channel(0), to.from_channel(b.first),
                                         to.batch, b.count, to.pixels(), parallel);
  }
}

Tensor aspp(Tensor x, std::vector<Tensor> weights, std::optional<Tensor> bias, std::vector<int64_t> rates, bool sum,
            std::string method) {
  const Branches branches(weights, rates, sum);
  require(method == "auto" || method == "skip" || method == "dense", "method: expected 'auto', 'skip' or 'dense'");
  require(x.dim() == 4 && x.size(1) == weights[0].size(1) && weights[0].scalar_type() == x.scalar_type() &&
              (!bias || (bias->scalar_type() == x.scalar_type() && bias->numel() == branches.channels)),
          "aspp: expected x (N, C, H, W), weights and a bias that go with it");
  const bool last = segops::is_channels_last(x);
  Tensor out = segops::fresh_map(x, x.size(0), branches.channels, x.size(2), x.size(3), last);
  if (out.numel() == 0) return out;
  if (bias) bias = torch::stable::contiguous(*bias);
  const std::vector<Convolution> all = convolutions(x, weights, branches, rates);
  const auto is_dense = [&](const Convolution& c) { return c.is_dense(method, Convolution::kForward, x); };
  if (x.scalar_type() == segops::ScalarType::Float && std::any_of(all.begin(), all.end(), is_dense)) {
    convolve_dense(x, weights, bias, branches, all, sum, out, last);
    return out;
  }
  x = segops::readable(x);
  for (Tensor& w : weights) w = torch::stable::contiguous(w);
  segops::dispatch(x, "aspp", [&]<class T>(T) {
    const int64_t depth = x.size(1);
    std::vector<Target<T>> targets;
    for (size_t i = 0; i < weights.size(); ++i) {
      const Branch& b = branches.all[i];
      if (!sum || i == 0) targets.push_back({b.first, b.count, {}});
      targets.back().terms.push_back({b.taps, data<T>(weights[i]), depth * b.taps.count(), b.taps.count(), 0, depth});
    }
    segops::TorchParallel parallel;
    segops::atrous::convolve<T>(map_of<T>(x), targets, bias ? data<T>(*bias) : nullptr, mutable_map_of<T>(out, last),
                                parallel);
  });
  return out;
}

Tensor aspp_backward_input(Tensor grad, std::vector<Tensor> weights, std::vector<int64_t> rates, bool sum,
                           bool channels_last, std::string) {
  const Branches branches(weights, rates, sum);
  require(grad.dim() == 4 && grad.size(1) == branches.channels && weights[0].scalar_type() == grad.scalar_type(),
          "aspp_backward_input: expected grad like the result");
  const int64_t count = weights[0].size(1);
  Tensor out = segops::fresh_map(grad, grad.size(0), count, grad.size(2), grad.size(3), channels_last);
  if (out.numel() == 0) return out;
  if (grad.numel() == 0) return torch::stable::zero_(out);
  grad = segops::readable(grad);
  for (Tensor& w : weights) w = torch::stable::contiguous(w);
  segops::dispatch(grad, "aspp_backward_input", [&]<class T>(T) {
    Target<T> target{0, count, {}};
    for (size_t i = 0; i < weights.size(); ++i) {
      const Branch& b = branches.all[i];
      target.terms.push_back(
          {b.taps.turned(), data<T>(weights[i]), b.taps.count(), count * b.taps.count(), b.first, b.count});
    }
    segops::TorchParallel parallel;
    segops::atrous::convolve<T>(map_of<T>(grad), {target}, nullptr, mutable_map_of<T>(out, channels_last), parallel);
  });
  return out;
}

Tensor aspp_backward_weight(Tensor grad, Tensor x, std::vector<int64_t> counts, std::vector<int64_t> kernels,
                            std::vector<int64_t> rates, bool sum, std::string) {
  const Branches branches(counts, kernels, rates, sum);
  require(grad.dim() == 4 && x.dim() == 4 && grad.size(1) == branches.channels && grad.size(0) == x.size(0) &&
              grad.size(2) == x.size(2) && grad.size(3) == x.size(3) && grad.scalar_type() == x.scalar_type(),
          "aspp_backward_weight: expected grad like the result");
  const int64_t depth = x.size(1);
  int64_t size = 0;
  for (const Branch& b : branches.all) size += b.count * depth * b.taps.count();
  Tensor out = segops::fresh(x, {size});
  if (size == 0) return out;
  if (grad.numel() == 0 || x.numel() == 0) return torch::stable::zero_(out);
  grad = segops::readable(grad);
  x = segops::readable(x);
  segops::dispatch(x, "aspp_backward_weight", [&]<class T>(T) {
    std::vector<WeightGradient<T>> family;
    T* to = mutable_data<T>(out);
    for (const Branch& b : branches.all) {
      family.push_back({b.taps, b.first, b.count, 0, depth, to});
      to += b.count * depth * b.taps.count();
    }
    segops::TorchParallel parallel;
    segops::atrous::weight_gradients<T>(map_of<T>(x), map_of<T>(grad), {family}, parallel);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("aspp", SEGOPS_BOX(aspp));
  m.impl("aspp_backward_input", SEGOPS_BOX(aspp_backward_input));
  m.impl("aspp_backward_weight", SEGOPS_BOX(aspp_backward_weight));
}
