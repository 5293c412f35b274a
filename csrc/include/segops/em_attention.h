// Expectation-maximization attention of one image at a time; see segops/reference/em_attention.py.
//
// An iteration is one pass over x. A tile of pixels in all channels stays in the second-level cache while the E step
// multiplies it with the bases and the M step with the responsibilities, of which a thread never holds more than a
// tile. Threads have pixels of their own, and their sums are added in the order of the pixels.
//
// Where the processor multiplies pairs of bfloat16, x of it stays what it is; bases, responsibilities and gradients are
// rounded to it before they are multiplied. Bases and all sums are float.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "segops/buffer.h"
#include "segops/isa.h"
#include "segops/parallel.h"
#include "segops/tile.h"

namespace segops::em {

constexpr int64_t kResults = 96;  // channels of a result at a time

struct Sizes {
  int64_t channels, pixels, bases, lanes;
  Sizes(int64_t channels, int64_t pixels, int64_t bases)
      : channels(channels), pixels(pixels), bases(bases), lanes(padded_lanes(bases)) {}
};

// What a thread needs: a tile of x as it is and by rows, responsibilities and gradients of them and these by rows, the
// same by columns, a block of results, and its sums over pixels.
template <class S>
struct Work {
  using T = Sum<S>;
  using E = Element<S>;
  static constexpr bool kPairs = kNumbers<E> == 2;

  Buffer<S> x;
  Buffer<E> x_rows, z_rows, columns;
  Buffer<T> z, out, total, sums;
  explicit Work(const Sizes& s)
      : x(s.channels * kTile),
        x_rows(kPairs ? elements<E>(s.channels) * kTile : 0),
        z_rows(kPairs ? s.bases * kTile : 0),
        columns(elements<E>(kTile) * s.lanes),
        z(2 * s.bases * kTile),
        out(kResults * kTile),
        total(s.channels * s.lanes),
        sums(s.lanes) {
    std::fill_n(z.data(), z.size(), T(0));
  }
  void clear() {
    std::fill_n(total.data(), total.size(), T(0));
    std::fill_n(sums.data(), sums.size(), T(0));
  }
};

// Back through one iteration. With the gradients `moments` (C, K) of x z^T and `sums` (K) of the sums of z, that of z
// is u = moments^T x + sums, in the last iteration and last^T grad besides, where `grad` (C, P) is that of the output.
template <class S, class E = Element<S>, class T = Sum<S>>
struct Step {
  const S *x, *grad;             // grad is null but in the last iteration
  const E *mu, *last, *moments;  // (C, K); the bases are those before this iteration and after the last
  const T* sums;
  const E* coefficients;  // (2 K, C): moments and mu, transposed
  S* grad_x;
  bool add;
};

#define SEGOPS_ISA_FILE "segops/em_attention_isa.h"
#include "segops/foreach_isa.h"

// How a sum or a norm divides: EMANet adds 1e-6, mmsegmentation (as F.normalize) cuts off at 1e-12.
struct Divisor {
  bool added;
  double operator()(double x) const { return added ? x + 1e-6 : std::max(x, 1e-12); }
  bool flat(double x) const { return !added && x < 1e-12; }  // does it not depend on x?
};

template <class S>
class Image {
 public:
  using T = Sum<S>;
  using E = Element<S>;

  Image(int64_t channels, int64_t pixels, int64_t bases, bool added, Parallel& parallel)
      : s_(channels, pixels, bases),
        divisor_{added},
        tiles_(pixels, parallel),
        transposed_(2 * bases * channels),
        moments_(channels * bases),
        sums_(bases) {
    for (int i = 0; i < tiles_.threads(); ++i) work_.emplace_back(s_);
    if (bases > channels) spare_ = Buffer<S>(bases * pixels);
  }

  // mu (C, K); history (C, K) and norms (2, K) of iteration t begin at t * history_step and t * norms_step.
  void forward(const S* x, const T* mu, int iterations, S* out, T* history, int64_t history_step, T* norms,
               int64_t norms_step) {
    S* z = s_.bases > s_.channels ? spare_.data() : out;  // the last responsibilities wait in the result's own memory
    for (int t = 0; t < iterations; ++t, history += history_step, norms += norms_step) {
      accumulate(x, x, mu, t + 1 == iterations ? z : nullptr);
      maximise(history, norms);
      mu = history;
    }
    transpose(mu, transposed_.data());
    const Rows by_bases(transposed_.data(), s_.bases, s_.channels);
    tiles_.run([&](int i, int64_t begin, int64_t end) {
      SEGOPS_BY_ISA(reconstruct_tiles<S>)(s_, by_bases.get(), z, out, begin, end, work_[i]);
    });
  }

  // grad_history as history; grad_mu (C, K) is overwritten.
  void backward(const S* grad, const T* grad_history, const S* x, const T* mu, int iterations, const T* history,
                int64_t history_step, const T* norms, int64_t norms_step, S* grad_x, T* grad_mu) {
    const Rows last(history + (iterations - 1) * history_step, s_.channels, s_.bases);
    const auto before = [&](int t) { return t ? history + (t - 1) * history_step : mu; };
    accumulate(x, grad, before(iterations - 1), nullptr);
    for (int t = iterations - 1; t >= 0; --t) {
      take_total(grad_mu, grad_history + t * history_step);
      maximise_backward(grad_mu, history + t * history_step, norms + t * norms_step);
      transpose(moments_.data(), transposed_.data());
      transpose(before(t), transposed_.data() + s_.bases * s_.channels);
      const Rows bases(before(t), s_.channels, s_.bases), moments(moments_.data(), s_.channels, s_.bases);
      const Rows coefficients(transposed_.data(), 2 * s_.bases, s_.channels);
      const bool first = t == iterations - 1;
      Step<S> step{.x = x, .grad = first ? grad : nullptr, .mu = bases.get(), .last = last.get()};
      step.moments = moments.get();
      step.sums = sums_.data();
      step.coefficients = coefficients.get();
      step.grad_x = grad_x;
      step.add = !first;
      tiles_.run([&](int i, int64_t begin, int64_t end) {
        work_[i].clear();
        SEGOPS_BY_ISA(differentiate_tiles<S>)(s_, step, begin, end, work_[i]);
      });
      merge();
    }
    take_total(grad_mu, nullptr);
  }

 private:
  // A matrix as products read it that sum over its rows.
  class Rows {
   public:
    Rows(const T* x, int64_t rows, int64_t columns)
        : room_(Work<S>::kPairs ? elements<E>(rows) * columns : 0),
          data_(SEGOPS_BY_ISA(pack_rows<S>)(x, rows, columns, room_.data())) {}
    const E* get() const { return data_; }

   private:
    Buffer<E> room_;
    const E* data_;
  };

  void accumulate(const S* x, const S* y, const T* mu, S* keep) {
    const Rows bases(mu, s_.channels, s_.bases);
    tiles_.run([&](int i, int64_t begin, int64_t end) {
      work_[i].clear();
      SEGOPS_BY_ISA(accumulate_tiles<S>)(s_, x, y, bases.get(), begin, end, work_[i], keep);
    });
    merge();
  }

  // All threads' sums into the first one's.
  void merge() {
    for (int i = 1; i < tiles_.threads(); ++i) {
      for (int64_t j = 0; j < work_[0].total.size(); ++j) work_[0].total[j] += work_[i].total[j];
      for (int64_t j = 0; j < work_[0].sums.size(); ++j) work_[0].sums[j] += work_[i].sums[j];
    }
  }

  // body(i, k) for all entries of a (C, K).
  template <class Body>
  void each_entry(const Body& body) const {
    for (int64_t c = 0; c < s_.channels; ++c)
      for (int64_t k = 0; k < s_.bases; ++k) body(c * s_.bases + k, k);
  }

  void take_total(T* to, const T* plus) {
    for (int64_t c = 0; c < s_.channels; ++c)
      for (int64_t k = 0; k < s_.bases; ++k)
        to[c * s_.bases + k] = work_[0].total[c * s_.lanes + k] + (plus ? plus[c * s_.bases + k] : T(0));
  }

  // x z^T and the sums of z to new bases, each divided by its norm.
  void maximise(T* mu, T* norms) {
    std::vector<double> square(s_.bases), scale(s_.bases);
    for (int64_t k = 0; k < s_.bases; ++k) {
      norms[k] = work_[0].sums[k];
      scale[k] = 1 / divisor_(norms[k]);
    }
    take_total(mu, nullptr);
    each_entry([&](int64_t i, int64_t k) { square[k] += double(mu[i]) * mu[i]; });
    for (int64_t k = 0; k < s_.bases; ++k) {
      norms[s_.bases + k] = T(std::sqrt(square[k]) * scale[k]);
      scale[k] /= divisor_(norms[s_.bases + k]);
    }
    each_entry([&](int64_t i, int64_t k) { mu[i] = T(mu[i] * scale[k]); });
  }

  // The gradients of x z^T and of the sums of z from that of the bases, which both end in `mu`.
  void maximise_backward(const T* grad_mu, const T* mu, const T* norms) {
    std::vector<double> dot(s_.bases), back(s_.bases);
    each_entry([&](int64_t i, int64_t k) { dot[k] += double(grad_mu[i]) * mu[i]; });
    each_entry([&](int64_t i, int64_t k) {
      const double norm = norms[s_.bases + k], divisor = divisor_(norm);
      const double along = norm > 0 && !divisor_.flat(norm) ? dot[k] / norm : 0;
      const double grad = grad_mu[i] / divisor - mu[i] * along;
      back[k] += grad * mu[i] * divisor;
      moments_[i] = T(grad / divisor_(norms[k]));
    });
    for (int64_t k = 0; k < s_.bases; ++k) sums_[k] = divisor_.flat(norms[k]) ? T(0) : T(-back[k] / divisor_(norms[k]));
  }

  void transpose(const T* from, T* to) const {
    for (int64_t c = 0; c < s_.channels; ++c)
      for (int64_t k = 0; k < s_.bases; ++k) to[k * s_.channels + c] = from[c * s_.bases + k];
  }

  Sizes s_;
  Divisor divisor_;
  Tiles tiles_;
  std::vector<Work<S>> work_;
  Buffer<T> transposed_, moments_, sums_;
  Buffer<S> spare_;
};

}  // namespace segops::em
