// The encoding layer: residuals of pixels from codewords, summed by soft assignment; see segops/reference/encoding.py.
//
// All of it is matrix products: |x - c|^2 = |x|^2 - 2 x c + |c|^2, and a sum of residuals is one of pixels less one of
// codewords. The mean codeword is taken off pixels and codewords first, so that what cancels is no larger than the
// codewords are apart, wherever they lie.
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
template <class T>
struct Codes {
  const T *mean, *rows, *columns, *squares, *scale;
};

// The gradient of an image's result as (D, K), its scalar products with the codewords, and what makes the gradient of x
// of assignments and pulls: itself, and below it the codewords, negated; (2 K, D) in blocks, see pack_descent().
template <class T>
struct Slopes {
  const T *columns, *offsets, *descent;
};

// What a thread needs: tiles, and its sums over pixels.
template <class T>
struct Work {
  Buffer<T> x, y, z, columns, total, sums, scale, assigned;
  Work(const Sizes& s, bool backward)
      : x(s.channels * kTile),
        y(backward ? s.channels * kTile : 0),
        z(3 * s.count * kTile),
        columns(kTile * s.lanes),
        total(s.channels * s.lanes),
        sums(s.lanes),
        scale(s.count),
        assigned(s.count) {
    std::fill_n(z.data(), z.size(), T(0));
    std::fill_n(x.data(), x.size(), T(0));
    clear();
    for (Buffer<T>* b : {&scale, &assigned}) std::fill_n(b->data(), b->size(), T(0));
  }
  void clear() {
    for (Buffer<T>* b : {&total, &sums}) std::fill_n(b->data(), b->size(), T(0));
  }
};

#define SEGOPS_ISA_FILE "segops/encoding_isa.h"
#include "segops/foreach_isa.h"

template <class T>
class Encoder {
 public:
  Encoder(int64_t channels, int64_t pixels, int64_t count, const T* codewords, const T* scale, bool backward,
          Parallel& parallel)
      : s_{channels, pixels, count, padded_lanes(count)},
        tiles_(pixels, parallel),
        mean_(channels),
        rows_(channels * count),
        columns_(channels * count),
        squares_(count),
        codes_{mean_.data(), rows_.data(), columns_.data(), squares_.data(), scale} {
    center(codewords);
    for (int i = 0; i < tiles_.threads(); ++i) work_.emplace_back(s_, backward);
  }

  // x (D, P) to out (K, D).
  void forward(const T* x, T* out) {
    tiles_.run([&](int i, int64_t begin, int64_t end) {
      work_[i].clear();
      SEGOPS_BY_ISA(encode_tiles<T>)(s_, codes_, x, begin, end, work_[i]);
    });
    each_entry([&](int64_t k, int64_t d) { out[k * s_.channels + d] = residual(k, d); });
  }

  // grad (K, D); grad_codewords (K, D) and grad_scale (K) are complete after finish().
  void backward(const T* grad, const T* x, T* grad_x, T* grad_codewords) {
    Buffer<T> columns(s_.channels * s_.count), offsets(s_.count), descent(2 * s_.count * s_.channels);
    std::fill_n(offsets.data(), s_.count, T(0));
    each_entry([&](int64_t k, int64_t d) {
      columns[d * s_.count + k] = grad[k * s_.channels + d];
      offsets[k] -= grad[k * s_.channels + d] * rows_[k * s_.channels + d];
    });
    SEGOPS_BY_ISA(pack_descent<T>)(s_, codes_, grad, descent.data());
    const Slopes<T> slopes{columns.data(), offsets.data(), descent.data()};
    tiles_.run([&](int i, int64_t begin, int64_t end) {
      std::fill_n(work_[i].assigned.data(), s_.count, T(0));
      SEGOPS_BY_ISA(differentiate_tiles<T>)(s_, codes_, slopes, x, grad_x, begin, end, work_[i]);
    });
    for (int64_t k = 0; k < s_.count; ++k) {
      const T assigned = sum([&](const Work<T>& work) { return work.assigned[k]; });
      for (int64_t d = 0; d < s_.channels; ++d)
        grad_codewords[k * s_.channels + d] -= assigned * grad[k * s_.channels + d];
    }
  }

  void finish(T* grad_codewords, T* grad_scale) {
    each_entry([&](int64_t k, int64_t d) { grad_codewords[k * s_.channels + d] -= residual(k, d); });
    for (int64_t k = 0; k < s_.count; ++k) grad_scale[k] += sum([&](const Work<T>& work) { return work.scale[k]; });
  }

 private:
  // The sum of weight (x - c), by what the tiles weighed.
  T residual(int64_t k, int64_t d) const {
    const T weight = sum([&](const Work<T>& work) { return work.sums[k]; });
    return sum([&](const Work<T>& work) { return work.total[d * s_.lanes + k]; }) - weight * rows_[k * s_.channels + d];
  }

  template <class Of>
  T sum(const Of& of) const {
    T total = 0;
    for (const Work<T>& work : work_) total += of(work);
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
    each_entry([&](int64_t k, int64_t d) { mean_[d] += codewords[k * s_.channels + d] / T(s_.count); });
    each_entry([&](int64_t k, int64_t d) {
      const T code = codewords[k * s_.channels + d] - mean_[d];
      rows_[k * s_.channels + d] = columns_[d * s_.count + k] = code;
      squares_[k] += code * code;
    });
  }

  Sizes s_;
  Tiles tiles_;
  Buffer<T> mean_, rows_, columns_, squares_;
  Codes<T> codes_;
  std::vector<Work<T>> work_;
};

}  // namespace segops::encoding
