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
// backward, where they stay; the others for the block or tile at hand. Halves are float from there on.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "segops/buffer.h"
#include "segops/isa.h"
#include "segops/parallel.h"
#include "segops/tile.h"

namespace segops::nonlocal {

constexpr int64_t kKeys = 2 * kTile;  // in a block

template <class S>
using Sum = std::conditional_t<std::is_same_v<S, double>, double, float>;

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

// Of queries, packed: themselves (scaled), the results' gradients, and their own gradients as they grow.
template <class T>
struct Gradients {
  T *query, *grad, *grad_query, *lse, *mean;

  template <class S>
  Gradients tile(int64_t at, const Problem<S>& p) const {
    return {query + at * p.dims, grad + at * p.channels, grad_query + at * p.dims, lse + at, mean + at};
  }
};

#define SEGOPS_ISA_FILE "segops/nonlocal_attention_isa.h"
#include "segops/foreach_isa.h"

inline int64_t padded(int64_t positions) { return (positions + kTile - 1) / kTile * kTile; }

template <class S>
void forward(const Problem<S>& p, Parallel& parallel) {
  using T = Sum<S>;
  Buffer<T> key(padded(p.keys) * p.dims), value(padded(p.keys) * p.channels);
  Tiles(p.keys, parallel).run([&](int, int64_t begin, int64_t end) {
    SEGOPS_BY_ISA(pack<S>)(p.key + begin, p.keys, p.dims, end - begin, T(1), key.data() + begin * p.dims);
    SEGOPS_BY_ISA(pack<S>)
    (p.value + begin, p.keys, p.channels, end - begin, T(1), value.data() + begin * p.channels);
  });
  Tiles(p.queries, parallel).run([&](int, int64_t begin, int64_t end) {
    SEGOPS_BY_ISA(attend_queries<S>)(p, key.data(), value.data(), begin, end);
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
  SEGOPS_BY_ISA(unpack<S>)(parts.data(), p.dims, keys, T(1), p.grad_key + j, p.keys);
  SEGOPS_BY_ISA(unpack<S>)(parts.data() + kKeys * p.dims, p.channels, keys, T(1), p.grad_value + j, p.keys);
}

template <class S>
void backward(const Problem<S>& p, Parallel& parallel) {
  using T = Sum<S>;
  Tiles tiles(p.queries, parallel);
  const int threads = tiles.threads();  // a thread of torch's pool that is asked says 1
  Buffer<T> parts(threads * kKeys * (p.dims + p.channels));
  const auto part = [&](int i) { return parts.data() + i * kKeys * (p.dims + p.channels); };
  if (p.keys <= kKeys) {
    tiles.run([&](int i, int64_t begin, int64_t end) {
      SEGOPS_BY_ISA(differentiate_only_block<S>)(p, begin, end, part(i), part(i) + kKeys * p.dims);
    });
    return collect(p, 0, parts, threads, parallel);
  }
  const int64_t queries = padded(p.queries);
  Buffer<T> query(queries * p.dims), grad(queries * p.channels), grad_query(query.size()), lse(queries), mean(queries);
  const Gradients<T> g{query.data(), grad.data(), grad_query.data(), lse.data(), mean.data()};
  tiles.run([&](int, int64_t begin, int64_t end) { SEGOPS_BY_ISA(prepare_queries<S>)(p, g, begin, end); });
  for (int64_t j = 0; j < p.keys; j += kKeys) {
    tiles.run([&](int i, int64_t begin, int64_t end) {
      SEGOPS_BY_ISA(differentiate_block<S>)(p, g, j, begin, end, part(i), part(i) + kKeys * p.dims);
    });
    collect(p, j, parts, threads, parallel);
  }
  tiles.run([&](int, int64_t begin, int64_t end) {
    SEGOPS_BY_ISA(unpack<S>)
    (g.grad_query + begin * p.dims, p.dims, end - begin, T(p.scale), p.grad_query + begin, p.queries);
  });
}

}  // namespace segops::nonlocal
