// Criss-cross attention: every pixel attends to its row and its column. No torch in here.
//
// A map falls into lines, once into columns and once into rows; the attention within a line is dense. A thread takes a
// few neighbouring lines and copies their channels into small arrays (channels, padded length), a chunk of the values
// at a time, so that vectors run along the line whichever way it lies in the map, and what is multiplied lies in cache.
// Nothing as large as a map is copied, and of the weights only those of these few lines exist at a time.
//
// Forward: columns write their part of the result with the largest energy and the sum of their exponentials; rows then
// add theirs, both parts brought to the larger of the two energies. Backward: the energies once more for the softmax,
// then the gradients of the rows, then those of the columns on top.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "segops/buffer.h"
#include "segops/isa.h"
#include "segops/parallel.h"

namespace segops::criss_cross {

constexpr int kTogether = 16;  // lines side by side at the most: of columns, what a line of cache holds
constexpr int kChunk = 32;     // channels of the values at a time
constexpr int kPad = 8;        // lines are padded to multiples of this

template <class T>
struct Problem {
  int64_t batch, dims, channels, height, width;
  const T *query = nullptr, *key = nullptr, *value = nullptr;           // (batch, dims or channels, H, W)
  T* out = nullptr;                                                     // written by the forward
  const T *grad = nullptr, *result = nullptr;                           // read by the backward: of out, and out
  T *grad_query = nullptr, *grad_key = nullptr, *grad_value = nullptr;  // written by the backward
  // Of every pixel, (batch, H, W): the largest energy, the sum of exp(energy - largest) and, in the backward, one over
  // this sum and the scalar product of grad and result.
  T *largest = nullptr, *sum = nullptr, *delta = nullptr;

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

template <bool kColumns, class T>
Lines lines_of(const Problem<T>& p) {
  return kColumns ? Lines{p.width, p.height, 1, p.width} : Lines{p.height, p.width, p.width, 1};
}

#define SEGOPS_ISA_FILE "segops/criss_cross_attention_isa.h"
#include "segops/foreach_isa.h"

// pass(problem, begin, end) over all lines of the batch.
template <bool kColumns, class T>
void each_line(const Problem<T>& p, Parallel& parallel, void (*pass)(const Problem<T>&, int64_t, int64_t)) {
  const Lines lines = lines_of<kColumns>(p);
  const int64_t work = lines.length * lines.length * (p.dims + p.channels);
  parallel.range(p.batch * lines.count, 1 + (int64_t(1) << 17) / work,
                 [&](int64_t begin, int64_t end) { pass(p, begin, end); });
}

template <class T>
void forward(Problem<T> p, Parallel& parallel) {
  Buffer<T> largest(p.batch * p.pixels()), sum(p.batch * p.pixels());
  p.largest = largest.data();
  p.sum = sum.data();
  each_line<true>(p, parallel, SEGOPS_BY_ISA(attend_columns<T>));
  each_line<false>(p, parallel, SEGOPS_BY_ISA(attend_rows<T>));
}

template <class T>
void backward(Problem<T> p, Parallel& parallel) {
  Buffer<T> largest(p.batch * p.pixels()), sum(p.batch * p.pixels()), delta(p.batch * p.pixels());
  p.largest = largest.data();
  p.sum = sum.data();
  p.delta = delta.data();
  each_line<true>(p, parallel, SEGOPS_BY_ISA(normalize_columns<T>));
  each_line<false>(p, parallel, SEGOPS_BY_ISA(normalize_rows<T>));
  each_line<false>(p, parallel, SEGOPS_BY_ISA(differentiate_rows<T>));
  each_line<true>(p, parallel, SEGOPS_BY_ISA(differentiate_columns<T>));
}

}  // namespace segops::criss_cross
