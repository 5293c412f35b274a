// The encoding layer: residuals of pixels from codewords, summed by soft assignment; see segops/reference/encoding.py.
//
// A tile of pixels in all channels stays in the second-level cache while distances, assignments and sums of residuals
// are made of it. Threads have pixels of their own, and their sums are added in the order of the pixels.
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

// The codewords in the orders that the kernels read: (K, D), (D, K), and (D, lanes) with zeros behind.
template <class T>
struct Codes {
  const T *rows, *columns, *lanes, *scale;
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
    for (Buffer<T>* b : {&total, &sums, &scale, &assigned}) std::fill_n(b->data(), b->size(), T(0));
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
        columns_(channels * count),
        lanes_(channels * s_.lanes),
        codes_{codewords, columns_.data(), lanes_.data(), scale} {
    transpose(codewords, columns_.data(), count);
    std::fill_n(lanes_.data(), lanes_.size(), T(0));
    transpose(codewords, lanes_.data(), s_.lanes);
    for (int i = 0; i < tiles_.threads(); ++i) work_.emplace_back(s_, backward);
  }

  // x (D, P) to out (K, D).
  void forward(const T* x, T* out) {
    tiles_.run([&](int i, int64_t begin, int64_t end) {
      std::fill_n(work_[i].total.data(), work_[i].total.size(), T(0));
      SEGOPS_BY_ISA(encode_tiles<T>)(s_, codes_, x, begin, end, work_[i]);
    });
    each_entry([&](int64_t d, int64_t k) { out[k * s_.channels + d] = total(d, k); });
  }

  // grad (K, D); grad_codewords (K, D) and grad_scale (K) are complete after finish().
  void backward(const T* grad, const T* x, T* grad_x, T* grad_codewords) {
    Buffer<T> grad_columns(s_.channels * s_.count);
    transpose(grad, grad_columns.data(), s_.count);
    tiles_.run([&](int i, int64_t begin, int64_t end) {
      std::fill_n(work_[i].assigned.data(), s_.count, T(0));
      SEGOPS_BY_ISA(differentiate_tiles<T>)
      (s_, codes_, grad, grad_columns.data(), x, grad_x, begin, end, work_[i]);
    });
    for (int64_t k = 0; k < s_.count; ++k) {
      T assigned = 0;
      for (const Work<T>& work : work_) assigned += work.assigned[k];
      for (int64_t d = 0; d < s_.channels; ++d)
        grad_codewords[k * s_.channels + d] -= assigned * grad[k * s_.channels + d];
    }
  }

  void finish(T* grad_codewords, T* grad_scale) {
    each_entry([&](int64_t d, int64_t k) { grad_codewords[k * s_.channels + d] -= total(d, k); });
    for (const Work<T>& work : work_)
      for (int64_t k = 0; k < s_.count; ++k) grad_scale[k] += work.scale[k];
  }

 private:
  T total(int64_t d, int64_t k) const {
    T sum = 0;
    for (const Work<T>& work : work_) sum += work.total[d * s_.lanes + k];
    return sum;
  }

  template <class Body>
  void each_entry(const Body& body) const {
    for (int64_t k = 0; k < s_.count; ++k)
      for (int64_t d = 0; d < s_.channels; ++d) body(d, k);
  }

  void transpose(const T* from, T* to, int64_t stride) const {
    each_entry([&](int64_t d, int64_t k) { to[d * stride + k] = from[k * s_.channels + d]; });
  }

  Sizes s_;
  Tiles tiles_;
  Buffer<T> columns_, lanes_;
  Codes<T> codes_;
  std::vector<Work<T>> work_;
};

}  // namespace segops::encoding
