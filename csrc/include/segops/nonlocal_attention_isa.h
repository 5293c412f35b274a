// No include guard: compiled once for each instruction set (see foreach_isa.h) by nonlocal_attention.h, which explains
// Problem and Gradients.
#include "segops/panel_product_isa.h"

// The keys at hand join the softmax of a panel of queries: their energies (keys, kPanel) become exp(energy - top) with
// the largest energy so far, and what was summed before is to be multiplied by `factor`.
template <class T>
void exponentiate(T* energies, int64_t keys, T* top, T* sum, T* factor) {
  constexpr int W = kWidth<T>;
  constexpr int64_t N = kPanel<T>;
  for (int v = 0; v < kPanelVectors; ++v, energies += W, top += W, sum += W, factor += W) {
    const Wide<T> before = load<Wide<T>>(top);
    Wide<T> most = before, total = {};
    for (int64_t j = 0; j < keys; ++j) most = max(load<Wide<T>>(energies + j * N), most);
    for (int64_t j = 0; j < keys; ++j) {
      const Wide<T> e = exp(load<Wide<T>>(energies + j * N) - most);
      store(energies + j * N, e);
      total += e;
    }
    const Wide<T> shrink = exp(before - most);
    store(factor, shrink);
    store(sum, fma(load<Wide<T>>(sum), shrink, total));
    store(top, most);
  }
}

// x (rows, kPanel) times a factor of each position.
template <class T>
void scale_panel(T* x, int64_t rows, const T* factor) {
  bool ones = true;
  for (int64_t i = 0; i < kPanel<T>; ++i) ones &= factor[i] == 1;
  if (ones) return;  // the largest energy seldom changes after the first keys
  for (int v = 0; v < kPanelVectors; ++v) {
    const Wide<T> f = load<Wide<T>>(factor + v * kWidth<T>);
    for (int64_t r = 0; r < rows; ++r) {
      T* place = x + r * kPanel<T> + v * kWidth<T>;
      store(place, load<Wide<T>>(place) * f);
    }
  }
}

// Results of the queries [begin, end), whole tiles but for the last; key and value are packed.
template <class S, class T = Sum<S>>
void attend_queries(const Problem<S>& p, const T* key, const T* value, int64_t begin, int64_t end) {
  constexpr int64_t N = kPanel<T>;
  Buffer<T> query(p.dims * kTile), out(p.channels * kTile), energies(kKeys * kTile);
  T top[kTile], sum[kTile], factor[kTile];
  for (int64_t at = begin; at < end; at += kTile) {
    const int64_t count = std::min<int64_t>(kTile, end - at), panels = panels_of<T>(count);
    pack_panels(p.query + at, p.queries, p.dims, count, T(p.scale), query.data());
    std::fill_n(top, kTile, std::numeric_limits<T>::lowest());
    std::fill_n(sum, kTile, T(0));
    for (int64_t j = 0; j < p.keys; j += kKeys) {
      const int64_t keys = std::min(kKeys, p.keys - j);
      multiply_positions(key + j * p.dims, keys, query.data(), panels, p.dims, energies.data(), kKeys);
      for (int64_t i = 0; i < panels; ++i) {
        exponentiate(energies.data() + i * kKeys * N, keys, top + i * N, sum + i * N, factor + i * N);
        if (j) scale_panel(out.data() + i * p.channels * N, p.channels, factor + i * N);
      }
      multiply_rows_of(value + j * p.channels, p.channels, energies.data(), kKeys, panels, keys, out.data(), j > 0);
    }
    for (int64_t i = 0; i < kTile; ++i) factor[i] = 1 / sum[i];
    for (int64_t i = 0; i < panels; ++i) scale_panel(out.data() + i * p.channels * N, p.channels, factor + i * N);
    unpack_panels(out.data(), p.channels, count, T(1), p.out + at, p.queries);
    for (int64_t i = 0; i < count; ++i) p.lse[at + i] = top[i] + std::log(sum[i]);
  }
}

// Energies to weights, and gradients of weights (both (keys, kPanel)) to those of energies.
template <class T>
void differentiate_softmax(T* weights, T* grad, int64_t keys, const T* lse, const T* mean) {
  constexpr int W = kWidth<T>;
  for (int v = 0; v < kPanelVectors; ++v) {
    const Wide<T> shift = load<Wide<T>>(lse + v * W), away = load<Wide<T>>(mean + v * W);
    for (int64_t at = v * W; at < keys * kPanel<T>; at += kPanel<T>) {
      const Wide<T> w = exp(load<Wide<T>>(weights + at) - shift);
      store(weights + at, w);
      store(grad + at, w * (load<Wide<T>>(grad + at) - away));
    }
  }
}

// A block of keys and values, packed, and room for its weights with a tile of queries.
template <class S, class T = Sum<S>>
struct Block {
  int64_t keys;
  Buffer<T> key, value, weights, grad_energies, transposed;

  Block(const Problem<S>& p, int64_t j)
      : keys(std::min(kKeys, p.keys - j)),
        key(p.dims * kKeys),
        value(p.channels * kKeys),
        weights(kKeys * kTile),
        grad_energies(weights.size()),
        transposed(weights.size()) {
    pack_panels(p.key + j, p.keys, p.dims, keys, T(1), key.data());
    pack_panels(p.value + j, p.keys, p.channels, keys, T(1), value.data());
  }
};

// What a tile of queries and a block of keys give to each other's gradients, or add to them.
template <class S, class T = Sum<S>>
void differentiate_tile(const Problem<S>& p, const Gradients<T>& g, Block<S>& block, int64_t count, bool add_to_query,
                        bool add_to_keys, T* grad_key, T* grad_value) {
  constexpr int64_t N = kPanel<T>;
  const int64_t keys = block.keys, key_panels = panels_of<T>(keys), panels = panels_of<T>(count);
  T *w = block.weights.data(), *e = block.grad_energies.data(), *t = block.transposed.data();
  multiply_positions(block.key.data(), keys, g.query, panels, p.dims, w, kKeys);
  multiply_positions(block.value.data(), keys, g.grad, panels, p.channels, e, kKeys);
  for (int64_t i = 0; i < panels; ++i)
    differentiate_softmax(w + i * kKeys * N, e + i * kKeys * N, keys, g.lse + i * N, g.mean + i * N);
  multiply_rows_of(block.key.data(), p.dims, e, kKeys, panels, keys, g.grad_query, add_to_query);
  transpose_panels(w, keys, kKeys, panels, t);
  multiply_rows_of(g.grad, p.channels, t, panels * N, key_panels, count, grad_value, add_to_keys);
  transpose_panels(e, keys, kKeys, panels, t);
  multiply_rows_of(g.query, p.dims, t, panels * N, key_panels, count, grad_key, add_to_keys);
}

// Packs a tile of queries and the gradients of their results, with the means that the softmax takes off. These are
// summed as multiply_positions() sums gradients and values: where all weight is on one key the two cancel.
template <class S, class T = Sum<S>>
void prepare_tile(const Problem<S>& p, const Gradients<T>& g, int64_t at, int64_t count, T* result) {
  constexpr int64_t N = kPanel<T>;
  pack_panels(p.query + at, p.queries, p.dims, count, T(p.scale), g.query);
  pack_panels(p.grad + at, p.queries, p.channels, count, T(1), g.grad);
  pack_panels(p.result + at, p.queries, p.channels, count, T(1), result);
  for (int64_t i = 0; i < panels_of<T>(count) * N; i += kWidth<T>) {
    const int64_t lanes = i / N * p.channels * N + i % N;
    Wide<T> mean = {};
    for (int64_t c = 0; c < p.channels; ++c)
      mean = fma(load<Wide<T>>(g.grad + lanes + c * N), load<Wide<T>>(result + lanes + c * N), mean);
    store(g.mean + i, mean);
  }
  std::fill_n(g.lse, kTile, T(0));
  std::copy_n(p.lse + at, count, g.lse);
}

template <class S, class T = Sum<S>>
void prepare_queries(const Problem<S>& p, const Gradients<T>& g, int64_t begin, int64_t end) {
  Buffer<T> result(p.channels * kTile);
  for (int64_t at = begin; at < end; at += kTile)
    prepare_tile(p, g.tile(at, p), at, std::min<int64_t>(kTile, end - at), result.data());
}

// Of the block of keys from j on and the queries [begin, end): the gradients of the queries are added up, from key 0
// on; those of the keys and values are left in `grad_key` and `grad_value`.
template <class S, class T = Sum<S>>
void differentiate_block(const Problem<S>& p, const Gradients<T>& g, int64_t j, int64_t begin, int64_t end, T* grad_key,
                         T* grad_value) {
  Block<S> block(p, j);
  for (int64_t at = begin; at < end; at += kTile)
    differentiate_tile(p, g.tile(at, p), block, std::min<int64_t>(kTile, end - at), j > 0, at > begin, grad_key,
                       grad_value);
}

// The same where one block has all keys: nothing of the queries has to wait for the next.
template <class S, class T = Sum<S>>
void differentiate_only_block(const Problem<S>& p, int64_t begin, int64_t end, T* grad_key, T* grad_value) {
  Block<S> block(p, 0);
  Buffer<T> query(p.dims * kTile), grad(p.channels * kTile), grad_query(query.size()), result(grad.size());
  T lse[kTile], mean[kTile];
  const Gradients<T> g{query.data(), grad.data(), grad_query.data(), lse, mean};
  for (int64_t at = begin; at < end; at += kTile) {
    const int64_t count = std::min<int64_t>(kTile, end - at);
    prepare_tile(p, g, at, count, result.data());
    differentiate_tile(p, g, block, count, false, at > begin, grad_key, grad_value);
    unpack_panels(g.grad_query, p.dims, count, T(p.scale), p.grad_query + at, p.queries);
  }
}

template <class S, class T = Sum<S>>
void pack(const S* x, int64_t stride, int64_t rows, int64_t count, T scale, T* out) {
  pack_panels(x, stride, rows, count, scale, out);
}
template <class S, class T = Sum<S>>
void unpack(const T* x, int64_t rows, int64_t count, T scale, S* out, int64_t stride) {
  unpack_panels(x, rows, count, scale, out, stride);
}
