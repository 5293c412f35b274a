// Criss-cross attention: every pixel attends to its row and its column. No torch in here.
//
// A map falls into lines, once into columns and once into rows; the attention within a line is dense. A thread takes a
// few neighbouring lines and copies their channels into small arrays (channels, padded length), a chunk of the values
// at a time, so that vectors run along the line whichever way it lies in the map, and what is multiplied lies in cache.
// Nothing as large as a map is copied, and of the weights only those of these few lines exist at a time.
//
// Forward: columns write their part of the result with the largest energy and the sum of their exponentials; rows then
// add theirs, both parts brought to the larger of the two energies, and leave the log of the joint sum. Backward: from
// it the weights are made anew, for the gradients of the rows, then for those of the columns on top.
//
// Where the processor multiplies pairs of bfloat16, maps of it are copied as they are. Weights and the gradients of
// energies are rounded to it before they are multiplied, and so is what columns leave for rows to add to, or rows for
// columns; all other sums are float.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "segops/bfloat16.h"
#include "segops/buffer.h"
#include "segops/isa.h"
#include "segops/parallel.h"

namespace segops::criss_cross {

constexpr int kTogether = 16;  // lines side by side at the most: of columns, what a line of cache holds
constexpr int kChunk = 32;     // channels of the values at a time
constexpr int kPad = 8;        // lines are padded to multiples of this

template <class S, class T = Sum<S>>
struct Problem {
  int64_t batch, dims, channels, height, width;
  const S *query = nullptr, *key = nullptr, *value = nullptr;           // (batch, dims or channels, H, W)
  S* out = nullptr;                                                     // written by the forward
  const S *grad = nullptr, *result = nullptr;                           // read by the backward: of out, and out
  S *grad_query = nullptr, *grad_key = nullptr, *grad_value = nullptr;  // written by the backward
  // Of every pixel, (batch, H, W): the log of the sum of the energies' exponentials, which the forward writes and the
  // backward reads, and between their two passes the sum in a column and the scalar product of grad and result.
  T *lse = nullptr, *sum = nullptr, *delta = nullptr;

  int64_t pixels() const { return height * width; }
};

// The lines of a map: `count` of them, `apart` in memory; each has `length` elements, `step` apart.
struct Lines {
  int64_t count, length, apart, step;
  int64_t padded() const { return (length + kPad - 1) / kPad * kPad; }
  // As long as their weights stay in a cache: the last one will do, since each is used for a chunk of channels.
  int64_t together(size_t element) const {
    const int64_t bytes = padded() * padded() * int64_t(element);
    return std::clamp<int64_t>((int64_t(1) << 23) / bytes, 1, kTogether);
  }
};

template <bool kColumns, class S>
Lines lines_of(const Problem<S>& p) {
  return kColumns ? Lines{p.width, p.height, 1, p.width} : Lines{p.height, p.width, p.width, 1};
}

// Lines (lines, channels, padded), as a product reads them that sums over channels, or one that sums along a line:
// numbers lie in one way for both, pairs in those ways that are asked for.
enum Ways { kByChannels = 1, kByPositions = 2, kBothWays = 3 };

template <class S, int kWays>
class Gathered {
 public:
  using E = Element<S>;
  static constexpr bool kPairs = kNumbers<E> == 2;
  static constexpr bool kHasChannels = !kPairs || kWays & kByChannels, kHasPositions = kPairs && kWays & kByPositions;

  Gathered(int64_t lines, int64_t channels, int64_t padded)
      : padded_(padded),
        by_channels_(kHasChannels ? lines * elements<E>(channels) * padded : 0),
        by_positions_(kHasPositions ? lines * channels * padded : 0) {}

  // A line, where each has so many channels.
  E* by_channels(int64_t line, int64_t channels) {
    return by_channels_.data() + line * elements<E>(channels) * padded_;
  }
  S* by_positions(int64_t line, int64_t channels) {
    if constexpr (kPairs)
      return by_positions_.data() + line * channels * padded_;
    else
      return by_channels(line, channels);
  }

 private:
  int64_t padded_;
  Buffer<E> by_channels_;
  Buffer<S> by_positions_;
};

// Weights of some lines, each (rows, padded), and as products read them that sum over their rows.
template <class E>
class Weights {
 public:
  using T = Total<E>;
  static constexpr bool kPairs = kNumbers<E> == 2;

  // Where products read pairs, the numbers themselves of `kept` lines may do.
  Weights(int64_t lines, int64_t kept, int64_t area)
      : area_(area), kept_(kPairs ? kept : lines), numbers_(kept_ * area), pairs_(kPairs ? lines * area / 2 : 0) {}

  T* line(int64_t i) { return numbers_.data() + i % kept_ * area_; }
  E* rows(int64_t i) {
    if constexpr (kPairs)
      return pairs_.data() + i * area_ / 2;
    else
      return line(i);
  }

 private:
  int64_t area_, kept_;
  Buffer<T> numbers_;
  Buffer<E> pairs_;
};

#define SEGOPS_ISA_FILE "segops/criss_cross_attention_isa.h"
#include "segops/foreach_isa.h"

// pass(problem, begin, end) over all lines of the batch.
template <bool kColumns, class S>
void each_line(const Problem<S>& p, Parallel& parallel, void (*pass)(const Problem<S>&, int64_t, int64_t)) {
  const Lines lines = lines_of<kColumns>(p);
  const int64_t work = lines.length * lines.length * (p.dims + p.channels);
  parallel.range(p.batch * lines.count, 1 + (int64_t(1) << 17) / work,
                 [&](int64_t begin, int64_t end) { pass(p, begin, end); });
}

template <class S>
void forward(Problem<S> p, Parallel& parallel) {
  Buffer<Sum<S>> sum(p.batch * p.pixels());
  p.sum = sum.data();
  each_line<true>(p, parallel, SEGOPS_BY_ISA(attend_columns<S>));
  each_line<false>(p, parallel, SEGOPS_BY_ISA(attend_rows<S>));
}

template <class S>
void backward(Problem<S> p, Parallel& parallel) {
  Buffer<Sum<S>> delta(p.batch * p.pixels());
  p.delta = delta.data();
  each_line<false>(p, parallel, SEGOPS_BY_ISA(differentiate_rows<S>));
  each_line<true>(p, parallel, SEGOPS_BY_ISA(differentiate_columns<S>));
}

}  // namespace segops::criss_cross
