// Point-wise spatial attention of one image at a time; see segops/reference/psa.py.
//
// out = value m, with m (sources, receivers) gathered from the attention map. A thread has tiles of receivers. It
// gathers their columns of m, all sources that the window reaches, makes the softmax over them and multiplies it with
// the value's map, packed once. Backward it has tiles of sources, and goes through their rows of m, a tile at a time:
// both gradients of a source, and the entries that belong to it, are then its own, and no sums have to be merged. Of m
// there is never more than a tile's columns.
//
// Rows of the map that the window does not reach have logit 0, all the same weight at a receiver. They enter through
// the sums over rows: of the value forward, of the gradient times that weight backward.
//
// Where the processor multiplies pairs of bfloat16, a map of it is packed as it is, for products that sum over
// positions and over channels. Logits, their softmax and all sums are float; weights are rounded to bfloat16 before
// they are multiplied.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "segops/bfloat16.h"
#include "segops/buffer.h"
#include "segops/isa.h"
#include "segops/parallel.h"
#include "segops/psa_window.h"
#include "segops/tile.h"

namespace segops::psa {

constexpr int64_t kDepth = 192;  // sources multiplied at once

// Eight positions, or eight pairs of them, are transposed at once.
inline int64_t padded_positions(int64_t count) { return (count + 15) / 16 * 16; }

// The rows of the map that a tile is multiplied with: all that the window reaches. Pairs of positions begin at an even
// one, so it is a row more where the first pair would be cut, or the last one before the end of the map.
template <class E>
Range reached(const Window& window, Range at) {
  Range rows = window.reached(at);
  if (kNumbers<E> == 2 && rows.begin % 2) rows.begin -= window.width;
  if (kNumbers<E> == 2 && rows.end % 2) rows.end = std::min(rows.end + window.width, window.positions());
  return rows;
}

// A map (C, P) packed as columns (see pack_columns), for products that sum over positions and for those that sum over
// channels, with its sums over rows (height, C) where they are needed.
template <class S, class E = Element<S>, class T = Sum<S>>
struct Map {
  Window window;
  int64_t channels;
  bool softmax;
  const E *over_positions, *over_channels;
  const T* rows;

  // In the columns of either kind, of a channel that is a multiple of kTile and a position, an even one with pairs.
  int64_t offset(int64_t channel, int64_t position) const {
    return (channel * padded_positions(window.positions()) + position * kTile) / kNumbers<E>;
  }

  // The sum over all positions but those in `reached`, whole rows.
  void outside(Range reached, T* sums) const {
    std::fill_n(sums, channels, T(0));
    if (!rows || !softmax) return;
    for (int64_t y = 0; y < window.height; ++y)
      if (y * window.width < reached.begin || y * window.width >= reached.end)
        for (int64_t c = 0; c < channels; ++c) sums[c] += rows[y * channels + c];
  }
};

// Of each receiver: its largest logit, one over the sum of exponentials, and the product of result and gradient.
template <class T>
struct Softmax {
  const T *largest, *scale, *dot;
};

// What a thread needs.
template <class S>
struct Work {
  using T = Sum<S>;
  using E = Element<S>;
  static constexpr bool kPairs = kNumbers<E> == 2;

  Buffer<S> own;               // a tile of a map
  Buffer<E> own_pairs, pairs;  // of two rows: of this tile, and of weights
  Buffer<T> block, tile, square, second, numbers, channels;
  Work(int64_t block_rows, int64_t own_rows, int64_t channels)
      : own(std::max<int64_t>(own_rows, kTile) * kTile),
        own_pairs(kPairs ? elements<E>(own_rows) * kTile : 0),
        pairs(kPairs ? elements<E>(kDepth) * kTile : 0),
        block(block_rows * kTile),
        tile(channels * kTile),
        square(kTile * kTile),
        second(kTile * kTile),
        numbers(kTile),
        channels(channels) {
    for (Buffer<T>* b : {&block, &square, &second, &numbers}) std::fill_n(b->data(), b->size(), T(0));
    std::fill_n(own.data(), own.size(), S{});
  }
};

#define SEGOPS_ISA_FILE "segops/psa_isa.h"
#include "segops/foreach_isa.h"

template <class S>
class Attention {
 public:
  using T = Sum<S>;
  using E = Element<S>;

  Attention(const Window& window, int64_t channels, bool softmax, bool backward, Parallel& parallel)
      : window_(window),
        channels_(channels),
        softmax_(softmax),
        tiles_(window.positions(), parallel),
        columns_(packed_size() / kNumbers<E>),
        by_channel_(Work<S>::kPairs && backward ? packed_size() : 0) {
    int64_t rows = 0;
    for (int64_t p = 0; p < window.positions() && !backward; p += kTile)
      rows = std::max(rows, reached<E>(window, {p, std::min(p + kTile, window.positions())}).size());
    for (int i = 0; i < tiles_.threads(); ++i) work_.emplace_back(rows, backward ? channels : 0, channels);
  }

  // stats, with softmax, (2, P): the largest logit, and the sum of exponentials.
  void forward(const S* value, const S* entries, S* out, T* stats) {
    const Map<S> map = pack(value, nullptr);
    T* sums = softmax_ ? stats + window_.positions() : nullptr;
    each_tile(
        [&](Work<S>& work, Range at) { SEGOPS_BY_ISA(collect_tile<S>)(map, entries, at, work, out, stats, sums); });
  }

  void backward(const S* grad, const S* value, const S* entries, const S* out, const T* stats, S* grad_value,
                S* grad_entries) {
    const int64_t positions = window_.positions();
    Softmax<T> softmax{};
    if (softmax_) {
      numbers_ = Buffer<T>(3 * positions);
      T *scale = numbers_.data(), *dot = scale + positions, *zero = dot + positions;
      for (int64_t p = 0; p < positions; ++p) {
        scale[p] = 1 / stats[positions + p];
        zero[p] = std::exp(-stats[p]) * scale[p];
      }
      tiles_.run([&](int, int64_t begin, int64_t end) {
        std::fill(dot + begin, dot + end, T(0));
        for (int64_t c = 0; c < channels_; ++c)
          for (int64_t p = begin; p < end; ++p)
            dot[p] += widen(out[c * positions + p]) * widen(grad[c * positions + p]);
      });
      softmax = {stats, scale, dot};
    }
    const Map<S> map = pack(grad, softmax_ ? numbers_.data() + 2 * positions : nullptr);
    const int64_t planes = window_.planes();
    tiles_.parallel().range(planes, 64,
                            [&](int64_t begin, int64_t end) { window_.clear_outside(grad_entries, begin, end); });
    each_tile([&](Work<S>& work, Range at) {
      SEGOPS_BY_ISA(differentiate_tile<S>)(map, value, entries, at, softmax, work, grad_value, grad_entries);
    });
  }

 private:
  int64_t packed_size() const {
    return (channels_ + kTile - 1) / kTile * kTile * padded_positions(window_.positions());
  }

  template <class Body>
  void each_tile(const Body& body) {
    tiles_.run([&](int i, int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; p += kTile) body(work_[i], Range{p, std::min<int64_t>(p + kTile, end)});
    });
  }

  // `weights` (P), if given, multiply the positions in the sums over rows.
  Map<S> pack(const S* x, const T* weights) {
    const int64_t positions = window_.positions();
    tiles_.run([&](int i, int64_t begin, int64_t end) {
      SEGOPS_BY_ISA(pack_columns<S>)(x, channels_, positions, begin, end, work_[i], columns_.data(),
                                     by_channel_.size() ? by_channel_.data() : nullptr);
    });
    const bool sums = softmax_ && !window_.compact && window_.mask_height < 2 * window_.height - 1;
    if (sums) {
      rows_ = Buffer<T>(window_.height * channels_);
      tiles_.parallel().range(channels_, 16, [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c)
          for (int64_t y = 0; y < window_.height; ++y) {
            T sum = 0;
            for (int64_t p = y * window_.width; p < (y + 1) * window_.width; ++p)
              sum += weights ? weights[p] * widen(x[c * positions + p]) : widen(x[c * positions + p]);
            rows_[y * channels_ + c] = sum;
          }
      });
    }
    const E* over_channels = Work<S>::kPairs ? reinterpret_cast<const E*>(by_channel_.data()) : columns_.data();
    return {window_, channels_, softmax_, columns_.data(), over_channels, sums ? rows_.data() : nullptr};
  }

  Window window_;
  int64_t channels_;
  bool softmax_;
  Tiles tiles_;
  Buffer<E> columns_;
  Buffer<S> by_channel_;
  Buffer<T> rows_, numbers_;
  std::vector<Work<S>> work_;
};

}  // namespace segops::psa
