// Non-local attention of one image at a time: a softmax over all keys, of which only tiles exist. No torch in here.
//
// Forward: a thread takes a tile of queries through all keys, a block of them at a time. The energies of a block become
// exponentials against the largest energy so far, and multiply the values; what was summed before shrinks when a larger
// energy comes. All keys in one block is the plain softmax. What is kept is the log of the sum of exponentials.
//
// Backward: block of keys by block of keys, threads share the queries. Energies and weights are made anew once, and all
// three gradients come of them while they lie in cache: a thread adds to its own queries' gradients, and has sums of
// its own for the keys, which are added in the order of the threads after each block. Few keys are one block, and then
// a tile of queries is done with before the next.
//
// Matrices lie in panels (see panel_product_isa.h): keys and values forward, queries and the result's gradient
// backward, where they stay; the others for the block or tile at hand. Halves are float from there on, or where the
// processor multiplies pairs of bfloat16 (E = Pair) they stay what they are, and weights and the gradients of energies
// are rounded to them before they are multiplied; all sums are float.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "segops/bfloat16.h"
#include "segops/buffer.h"
#include "segops/isa.h"
#include "segops/parallel.h"
#include "segops/tile.h"

namespace segops::nonlocal {

constexpr int64_t kKeys = 2 * kTile;  // in a block

template <class S>
struct Problem {
  int64_t dims, channels, queries, keys;
  double scale;
  const S *query, *key, *value;                                         // (dims or channels, positions)
  S* out = nullptr;                                                     // written by the forward, with lse
  Sum<S>* lse = nullptr;                                                // (queries), read by the backward
  const S *grad = nullptr, *result = nullptr;                           // read by the backward: of out, and out
  S *grad_query = nullptr, *grad_key = nullptr, *grad_value = nullptr;  // written by the backward
};

// A packed matrix, as a product reads it that sums over its rows and as one that sums over its positions: numbers lie
// in one way for both. A tile begins at a whole panel.
template <class E>
struct Packed {
  int64_t rows;
  E *by_rows, *by_positions;

  Packed tile(int64_t at) const {
    return {rows, by_rows + elements<E>(rows) * at, by_positions + rows * (at / kNumbers<E>)};
  }
};

template <class E>
class PackedBuffer {
 public:
  PackedBuffer(int64_t rows, int64_t positions)
      : rows_(rows),
        by_rows_(elements<E>(rows) * positions),
        by_positions_(kNumbers<E> == 1 ? 0 : rows * elements<E>(positions)) {}
  Packed<E> get() { return {rows_, by_rows_.data(), kNumbers<E> == 1 ? by_rows_.data() : by_positions_.data()}; }

 private:
  int64_t rows_;
  Buffer<E> by_rows_, by_positions_;
};

// Of queries: themselves and the gradients of their results, packed, and their own gradients as they grow.
template <class E, class T = Total<E>>
struct Gradients {
  Packed<E> query, grad;
  T *grad_query, *lse, *mean;

  Gradients tile(int64_t at) const {
    return {query.tile(at), grad.tile(at), grad_query + at * query.rows, lse + at, mean + at};
  }
};

#define SEGOPS_ISA_FILE "segops/nonlocal_attention_isa.h"
#include "segops/foreach_isa.h"

inline int64_t padded(int64_t positions) { return (positions + kTile - 1) / kTile * kTile; }

template <class E, class S>
void forward(const Problem<S>& p, Parallel& parallel) {
  PackedBuffer<E> key_buffer(p.dims, padded(p.keys)), value_buffer(p.channels, padded(p.keys));
  const Packed<E> key = key_buffer.get(), value = value_buffer.get();
  Tiles(p.keys, parallel).run([&](int, int64_t begin, int64_t end) {
    const auto pack_key = SEGOPS_BY_ISA(pack_rows<E, S>);
    const auto pack_value = SEGOPS_BY_ISA(pack_positions<E, S>);
    pack_key(p.key + begin, p.keys, p.dims, end - begin, key.tile(begin).by_rows);
    pack_value(p.value + begin, p.keys, p.channels, end - begin, value.tile(begin).by_positions);
  });
  Tiles(p.queries, parallel).run([&](int, int64_t begin, int64_t end) {
    SEGOPS_BY_ISA(attend_queries<E, S>)(p, key, value, begin, end);
  });
}

// The threads' sums for the keys from j on, each dims * kKeys and channels * kKeys long: added up, and to their place.
template <class S, class T = Sum<S>>
void collect(const Problem<S>& p, int64_t j, Buffer<T>& parts, int threads, Parallel& parallel) {
  const int64_t keys = std::min(kKeys, p.keys - j), part = parts.size() / threads;
  parallel.range(part, 1 << 14, [&](int64_t begin, int64_t end) {
    for (int i = 1; i < threads; ++i)
      for (int64_t at = begin; at < end; ++at) parts[at] += parts[i * part + at];
  });
  SEGOPS_BY_ISA(unpack<S>)(parts.data(), p.dims, keys, T(p.scale), p.grad_key + j, p.keys);
  SEGOPS_BY_ISA(unpack<S>)(parts.data() + kKeys * p.dims, p.channels, keys, T(1), p.grad_value + j, p.keys);
}

template <class E, class S>
void backward(const Problem<S>& p, Parallel& parallel) {
  using T = Total<E>;
  Tiles tiles(p.queries, parallel);
  const int threads = tiles.threads();  // a thread of torch's pool that is asked says 1
  Buffer<T> parts(threads * kKeys * (p.dims + p.channels));
  const auto part = [&](int i) { return parts.data() + i * kKeys * (p.dims + p.channels); };
  if (p.keys <= kKeys) {
    tiles.run([&](int i, int64_t begin, int64_t end) {
      SEGOPS_BY_ISA(differentiate_only_block<E, S>)(p, begin, end, part(i), part(i) + kKeys * p.dims);
    });
    return collect(p, 0, parts, threads, parallel);
  }
  const int64_t queries = padded(p.queries);
  PackedBuffer<E> query(p.dims, queries), grad(p.channels, queries);
  Buffer<T> grad_query(queries * p.dims), lse(queries), mean(queries);
  const Gradients<E> g{query.get(), grad.get(), grad_query.data(), lse.data(), mean.data()};
  tiles.run([&](int, int64_t begin, int64_t end) { SEGOPS_BY_ISA(prepare_queries<E, S>)(p, g, begin, end); });
  for (int64_t j = 0; j < p.keys; j += kKeys) {
    tiles.run([&](int i, int64_t begin, int64_t end) {
      SEGOPS_BY_ISA(differentiate_block<E, S>)(p, g, j, begin, end, part(i), part(i) + kKeys * p.dims);
    });
    collect(p, j, parts, threads, parallel);
  }
  tiles.run([&](int, int64_t begin, int64_t end) {
    SEGOPS_BY_ISA(unpack<S>)
    (g.grad_query + begin * p.dims, p.dims, end - begin, T(p.scale), p.grad_query + begin, p.queries);
  });
}

}  // namespace segops::nonlocal
