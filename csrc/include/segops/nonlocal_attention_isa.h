// No include guard: compiled once for each instruction set (see foreach_isa.h) by nonlocal_attention.h, which explains
// Problem and Gradients.
#include "segops/panel_product_isa.h"

// The keys at hand join the softmax of a panel of queries: their energies (keys, kPanel), still to be multiplied by
// `scale`, become exp(energy - top) with the largest energy so far, and what was summed before is to be multiplied by
// `factor`.
template <class T>
void exponentiate(T* energies, int64_t keys, T scale, T* top, T* sum, T* factor) {
  constexpr int W = kWidth<T>;
  constexpr int64_t N = kPanel<T>;
  for (int v = 0; v < kPanelVectors; ++v, energies += W, top += W, sum += W, factor += W) {
    const Wide<T> before = load<Wide<T>>(top);
    Wide<T> most = before, total = {};
    for (int64_t j = 0; j < keys; ++j) most = max(load<Wide<T>>(energies + j * N) * scale, most);
    for (int64_t j = 0; j < keys; ++j) {
      const Wide<T> e = exp(load<Wide<T>>(energies + j * N) * scale - most);
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

// Results of the queries [begin, end), whole tiles but for the last.
template <class E, class S, class T = Total<E>>
void attend_queries(const Problem<S>& p, const Packed<E>& key, const Packed<E>& value, int64_t begin, int64_t end) {
  constexpr int64_t N = kPanel<T>;
  Buffer<E> query(elements<E>(p.dims) * kTile), room(kNumbers<E> == 1 ? 0 : elements<E>(kKeys) * kTile);
  Buffer<T> out(p.channels * kTile), energies(kKeys * kTile);
  T top[kTile], sum[kTile], factor[kTile];
  for (int64_t at = begin; at < end; at += kTile) {
    const int64_t count = std::min<int64_t>(kTile, end - at), panels = panels_of<T>(count);
    pack_rows(p.query + at, p.queries, p.dims, count, query.data());
    std::fill_n(top, kTile, std::numeric_limits<T>::lowest());
    std::fill_n(sum, kTile, T(0));
    for (int64_t j = 0; j < p.keys; j += kKeys) {
      const int64_t keys = std::min(kKeys, p.keys - j);
      multiply_positions(key.tile(j).by_rows, keys, query.data(), panels, elements<E>(p.dims), energies.data(), kKeys);
      for (int64_t i = 0; i < panels; ++i) {
        exponentiate(energies.data() + i * kKeys * N, keys, T(p.scale), top + i * N, sum + i * N, factor + i * N);
        if (j) scale_panel(out.data() + i * p.channels * N, p.channels, factor + i * N);
      }
      const E* weights = rows_as(energies.data(), keys, kKeys, panels, room.data());
      multiply_rows_of(value.tile(j).by_positions, p.channels, weights, elements<E>(kKeys), panels, elements<E>(keys),
                       out.data(), j > 0);
    }
    for (int64_t i = 0; i < kTile; ++i) factor[i] = 1 / sum[i];
    for (int64_t i = 0; i < panels; ++i) scale_panel(out.data() + i * p.channels * N, p.channels, factor + i * N);
    unpack_panels(out.data(), p.channels, count, T(1), p.out + at, p.queries);
    for (int64_t i = 0; i < count; ++i) p.lse[at + i] = top[i] + std::log(sum[i]);
  }
}

// Energies, still to be multiplied by `scale`, to weights, and gradients of weights (both (keys, kPanel)) to those of
// energies.
template <class T>
void differentiate_softmax(T* weights, T* grad, int64_t keys, T scale, const T* lse, const T* mean) {
  constexpr int W = kWidth<T>;
  for (int v = 0; v < kPanelVectors; ++v) {
    const Wide<T> shift = load<Wide<T>>(lse + v * W), away = load<Wide<T>>(mean + v * W);
    for (int64_t at = v * W; at < keys * kPanel<T>; at += kPanel<T>) {
      const Wide<T> w = exp(load<Wide<T>>(weights + at) * scale - shift);
      store(weights + at, w);
      store(grad + at, w * (load<Wide<T>>(grad + at) - away));
    }
  }
}

// `count` positions, for products of either kind.
template <class E, class S>
void pack(const S* x, int64_t stride, int64_t count, const Packed<E>& out) {
  pack_rows(x, stride, out.rows, count, out.by_rows);
  if constexpr (kNumbers<E> == 2) pack_positions(x, stride, out.rows, count, out.by_positions);
}

// A block of keys and values, packed, and room for its weights with a tile of queries.
template <class E, class T = Total<E>>
struct Block {
  int64_t keys;
  PackedBuffer<E> key_buffer;
  Packed<E> key = key_buffer.get();
  Buffer<E> value;  // which no product sums over the keys of
  Buffer<T> weights{kKeys * kTile}, grad_energies{kKeys * kTile};
  Buffer<E> room{kKeys * kTile / kNumbers<E>};

  template <class S>
  Block(const Problem<S>& p, int64_t j)
      : keys(std::min(kKeys, p.keys - j)), key_buffer(p.dims, kKeys), value(elements<E>(p.channels) * kKeys) {
    pack(p.key + j, p.keys, keys, key);
    pack_rows(p.value + j, p.keys, p.channels, keys, value.data());
  }
};

// What a tile of queries and a block of keys give to each other's gradients, or add to them. Those of queries and keys
// are still to be multiplied by the scale.
template <class E, class T = Total<E>>
void differentiate_tile(const Gradients<E>& g, Block<E>& block, int64_t count, T scale, bool add_to_query,
                        bool add_to_keys, T* grad_key, T* grad_value) {
  constexpr int64_t N = kPanel<T>, K = kNumbers<E>;
  const int64_t dims = g.query.rows, channels = g.grad.rows, keys = block.keys;
  const int64_t key_panels = panels_of<T>(keys), panels = panels_of<T>(count);
  T *w = block.weights.data(), *e = block.grad_energies.data();
  E* t = block.room.data();
  multiply_positions(block.key.by_rows, keys, g.query.by_rows, panels, elements<E>(dims), w, kKeys);
  multiply_positions(block.value.data(), keys, g.grad.by_rows, panels, elements<E>(channels), e, kKeys);
  for (int64_t i = 0; i < panels; ++i)
    differentiate_softmax(w + i * kKeys * N, e + i * kKeys * N, keys, scale, g.lse + i * N, g.mean + i * N);
  multiply_rows_of(block.key.by_positions, dims, rows_as(e, keys, kKeys, panels, t), kKeys / K, panels,
                   elements<E>(keys), g.grad_query, add_to_query);
  const auto add_products = [&](const T* x, const Packed<E>& of_queries, T* out) {  // summed over the queries
    transpose_panels(x, keys, kKeys, panels, t);
    multiply_rows_of(of_queries.by_positions, of_queries.rows, t, panels * N / K, key_panels, elements<E>(count), out,
                     add_to_keys);
  };
  add_products(w, g.grad, grad_value);
  add_products(e, g.query, grad_key);
}

// Packs a tile of queries and the gradients of their results, with the means that the softmax takes off. These are
// summed as multiply_positions() sums gradients and values: where all weight is on one key the two cancel.
template <class E, class S, class T = Total<E>>
void prepare_tile(const Problem<S>& p, const Gradients<E>& g, int64_t at, int64_t count, E* result) {
  constexpr int64_t N = kPanel<T>;
  const int64_t rows = elements<E>(p.channels);
  pack(p.query + at, p.queries, count, g.query);
  pack(p.grad + at, p.queries, count, g.grad);
  pack_rows(p.result + at, p.queries, p.channels, count, result);
  for (int64_t i = 0; i < panels_of<T>(count) * N; i += kWidth<T>) {
    const int64_t lanes = i / N * rows * N + i % N;
    Wide<T> mean = {};
    for (int64_t r = 0; r < rows; ++r)
      mean = multiply_add(load_elements(g.grad.by_rows + lanes + r * N), load_elements(result + lanes + r * N), mean);
    store(g.mean + i, mean);
  }
  std::fill_n(g.lse, kTile, T(0));
  std::copy_n(p.lse + at, count, g.lse);
}

template <class E, class S>
void prepare_queries(const Problem<S>& p, const Gradients<E>& g, int64_t begin, int64_t end) {
  Buffer<E> result(elements<E>(p.channels) * kTile);
  for (int64_t at = begin; at < end; at += kTile)
    prepare_tile(p, g.tile(at), at, std::min<int64_t>(kTile, end - at), result.data());
}

// Of the block of keys from j on and the queries [begin, end): the gradients of the queries are added up, from key 0
// on; those of the keys and values are left in `grad_key` and `grad_value`.
template <class E, class S, class T = Total<E>>
void differentiate_block(const Problem<S>& p, const Gradients<E>& g, int64_t j, int64_t begin, int64_t end, T* grad_key,
                         T* grad_value) {
  Block<E> block(p, j);
  for (int64_t at = begin; at < end; at += kTile)
    differentiate_tile(g.tile(at), block, std::min<int64_t>(kTile, end - at), T(p.scale), j > 0, at > begin, grad_key,
                       grad_value);
}

// The same where one block has all keys: nothing of the queries has to wait for the next.
template <class E, class S, class T = Total<E>>
void differentiate_only_block(const Problem<S>& p, int64_t begin, int64_t end, T* grad_key, T* grad_value) {
  Block<E> block(p, 0);
  PackedBuffer<E> query(p.dims, kTile), grad(p.channels, kTile);
  Buffer<T> grad_query(p.dims * kTile);
  Buffer<E> result(elements<E>(p.channels) * kTile);
  T lse[kTile], mean[kTile];
  const Gradients<E> g{query.get(), grad.get(), grad_query.data(), lse, mean};
  for (int64_t at = begin; at < end; at += kTile) {
    const int64_t count = std::min<int64_t>(kTile, end - at);
    prepare_tile(p, g, at, count, result.data());
    differentiate_tile(g, block, count, T(p.scale), false, at > begin, grad_key, grad_value);
    unpack_panels(g.grad_query, p.dims, count, T(p.scale), p.grad_query + at, p.queries);
  }
}

template <class S, class T = Sum<S>>
void unpack(const T* x, int64_t rows, int64_t count, T scale, S* out, int64_t stride) {
  unpack_panels(x, rows, count, scale, out, stride);
}
