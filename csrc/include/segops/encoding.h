// The encoding layer: residuals of pixels from codewords, summed by soft assignment; see segops/reference/encoding.py.
//
// All of it is matrix products: |x - c|^2 = |x|^2 - 2 x c + |c|^2, and a sum of residuals is one of pixels less one of
// codewords. The mean codeword is taken off pixels and codewords first, so that what cancels is no larger than the
// codewords are apart, wherever they lie.
//
// Where the processor multiplies pairs of bfloat16, x of it stays what it is, codewords are rounded to it, and no mean
// is taken off: products of such numbers are exact in float. Assignments and pulls are rounded before they are
// multiplied, and are summed as that, so that what cancels are multiples of the same numbers.
//
// A tile of pixels in all channels stays in the second-level cache while distances, assignments and sums are made of
// it. Threads have pixels of their own, and their sums are added in the order of the pixels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "segops/buffer.h"
#include "segops/isa.h"
#include "segops/parallel.h"
#include "segops/tile.h"

namespace segops::encoding {

struct Sizes {
  int64_t channels, pixels, count, lanes;  // count: codewords
};

// The codewords less their mean, as (K, D) and as (D, K), and their squared lengths.
template <class E, class T = Total<E>>
struct Codes {
  const T *mean, *rows;
  const E* columns;
  const T *squares, *scale;
};

// The gradient of an image's result as (D, K), its scalar products with the codewords, and what makes the gradient of x
// of assignments and pulls: itself, and below it the codewords, negated; (2 K, D) in blocks, see pack_descent().
template <class E, class T = Total<E>>
struct Slopes {
  const E* columns;
  const T* offsets;
  const E* descent;
};

// What a thread needs: tiles, those that products sum over the rows of also by rows, and its sums over pixels.
template <class S>
struct Work {
  using T = Sum<S>;
  using E = Element<S>;
  static constexpr bool kPairs = kNumbers<E> == 2;

  Buffer<S> x;
  Buffer<E> x_rows, z_rows, columns;
  Buffer<T> y, z, total, sums, scale, assigned;
  Work(const Sizes& s, bool backward)
      : x(s.channels * kTile),
        x_rows(kPairs ? elements<E>(s.channels) * kTile : 0),
        z_rows(kPairs && backward ? s.count * kTile : 0),
        columns(elements<E>(kTile) * s.lanes),
        y(backward ? s.channels * kTile : 0),
        z(3 * s.count * kTile),
        total(s.channels * s.lanes),
        sums(s.lanes),
        scale(s.count),
        assigned(s.count) {
    std::fill_n(z.data(), z.size(), T(0));
    std::fill_n(x.data(), x.size(), S{});
    clear();
    for (Buffer<T>* b : {&scale, &assigned}) std::fill_n(b->data(), b->size(), T(0));
  }
  void clear() {
    for (Buffer<T>* b : {&total, &sums}) std::fill_n(b->data(), b->size(), T(0));
  }
};

#define SEGOPS_ISA_FILE "segops/encoding_isa.h"
#include "segops/foreach_isa.h"

template <class S>
class Encoder {
 public:
  using T = Sum<S>;
  using E = Element<S>;

  Encoder(int64_t channels, int64_t pixels, int64_t count, const T* codewords, const T* scale, bool backward,
          Parallel& parallel)
      : s_{channels, pixels, count, padded_lanes(count)},
        tiles_(pixels, parallel),
        mean_(channels),
        rows_(channels * count),
        squares_(count),
        columns_(elements<E>(channels) * count),
        codes_{mean_.data(), rows_.data(), columns_.data(), squares_.data(), scale} {
    center(codewords);
    for (int i = 0; i < tiles_.threads(); ++i) work_.emplace_back(s_, backward);
  }

  // x (D, P) to out (K, D).
  void forward(const S* x, S* out) {
    tiles_.run([&](int i, int64_t begin, int64_t end) {
      work_[i].clear();
      SEGOPS_BY_ISA(encode_tiles<S>)(s_, codes_, x, begin, end, work_[i]);
    });
    each_entry([&](int64_t k, int64_t d) { out[k * s_.channels + d] = narrow<S>(residual(k, d)); });
  }

  // grad (K, D); grad_codewords (K, D) and grad_scale (K) are complete after finish().
  void backward(const S* grad_in, const S* x, S* grad_x, T* grad_codewords) {
    Buffer<T> grad(s_.count * s_.channels), offsets(s_.count);
    Buffer<E> columns(columns_.size()), descent(s_.channels * elements<E>(2 * s_.count));
    std::fill_n(offsets.data(), s_.count, T(0));
    each_entry([&](int64_t k, int64_t d) {
      const int64_t at = k * s_.channels + d;
      grad[at] = widen(grad_in[at]);
      offsets[k] -= grad[at] * rows_[at];
    });
    pack_columns(grad.data(), columns.data());
    SEGOPS_BY_ISA(pack_descent<S>)(s_, codes_, grad.data(), descent.data());
    const Slopes<E> slopes{columns.data(), offsets.data(), descent.data()};
    tiles_.run([&](int i, int64_t begin, int64_t end) {
      std::fill_n(work_[i].assigned.data(), s_.count, T(0));
      SEGOPS_BY_ISA(differentiate_tiles<S>)(s_, codes_, slopes, x, grad_x, begin, end, work_[i]);
    });
    for (int64_t k = 0; k < s_.count; ++k) {
      const T assigned = sum([&](const Work<S>& work) { return work.assigned[k]; });
      for (int64_t d = 0; d < s_.channels; ++d)
        grad_codewords[k * s_.channels + d] -= assigned * grad[k * s_.channels + d];
    }
  }

  void finish(T* grad_codewords, T* grad_scale) {
    each_entry([&](int64_t k, int64_t d) { grad_codewords[k * s_.channels + d] -= residual(k, d); });
    for (int64_t k = 0; k < s_.count; ++k) grad_scale[k] += sum([&](const Work<S>& work) { return work.scale[k]; });
  }

 private:
  // The sum of weight (x - c), by what the tiles weighed.
  T residual(int64_t k, int64_t d) const {
    const T weight = sum([&](const Work<S>& work) { return work.sums[k]; });
    return sum([&](const Work<S>& work) { return work.total[d * s_.lanes + k]; }) - weight * rows_[k * s_.channels + d];
  }

  template <class Of>
  T sum(const Of& of) const {
    T total = 0;
    for (const Work<S>& work : work_) total += of(work);
    return total;
  }

  template <class Body>
  void each_entry(const Body& body) const {
    for (int64_t k = 0; k < s_.count; ++k)
      for (int64_t d = 0; d < s_.channels; ++d) body(k, d);
  }

  void center(const T* codewords) {
    std::fill_n(mean_.data(), s_.channels, T(0));
    std::fill_n(squares_.data(), s_.count, T(0));
    if (!Work<S>::kPairs)
      each_entry([&](int64_t k, int64_t d) { mean_[d] += codewords[k * s_.channels + d] / T(s_.count); });
    each_entry([&](int64_t k, int64_t d) {
      const T code = widen(narrow<S>(codewords[k * s_.channels + d] - mean_[d]));
      rows_[k * s_.channels + d] = code;
      squares_[k] += code * code;
    });
    pack_columns(rows_.data(), columns_.data());
  }

  // A matrix (K, D) as (D, K), as products read it that sum over channels.
  void pack_columns(const T* rows, E* to) const {
    Buffer<T> columns(s_.channels * s_.count);
    each_entry([&](int64_t k, int64_t d) { columns[d * s_.count + k] = rows[k * s_.channels + d]; });
    SEGOPS_BY_ISA(pack_rows<S>)(columns.data(), s_.channels, s_.count, to);
  }

  Sizes s_;
  Tiles tiles_;
  Buffer<T> mean_, rows_, squares_;
  Buffer<E> columns_;
  Codes<E> codes_;
  std::vector<Work<S>> work_;
};

}  // namespace segops::encoding
