// No include guard: compiled once for each instruction set (see foreach_isa.h) by interlaced_attention.h, which
// explains Problem and Lot. Arrays of a lot lie as (groups, rows, padded members).
#include "segops/line_product_isa.h"

// From the map to an array, or back where M is not const.
template <class M, class A>
void move_one(M& in_map, A& in_array) {
  if constexpr (std::is_const_v<M>)
    in_array = in_map;
  else
    in_map = in_array;
}

template <class M, class A>
void move_vector(M* in_map, A* in_array) {
  using V = Eight<std::remove_const_t<M>>;
  if constexpr (std::is_const_v<M>)
    store(in_array, load<V>(in_map));
  else
    store(in_map, load<V>(in_array));
}

// Eight members of eight groups lie the other way round in the map.
template <class M, class A>
void move_tile(M* map, int64_t step, A* array, const int64_t* arrays) {
  using V = Eight<std::remove_const_t<M>>;
  V v[8];
  for (int i = 0; i < 8; ++i) v[i] = load<V>(std::is_const_v<M> ? map + i * step : array + arrays[i]);
  transpose(v);
  for (int i = 0; i < 8; ++i) {
    if constexpr (std::is_const_v<M>)
      store(array + arrays[i], v[i]);
    else
      store(map + i * step, v[i]);
  }
}

template <class M, class A>
void move(M* map, int64_t plane, const Lot& lot, int64_t channels, A* array, int64_t pitch) {
  for (int64_t c = 0; c < channels; ++c, map += plane, array += pitch) {
    const int64_t next = c + 1 < channels ? plane : 0;  // the processor does not foresee where it lies
    for (const Tile& tile : lot.tiles) {
      for (int64_t i = 0; i < 8 * lot.step; i += int64_t(64 / sizeof(M)))
        __builtin_prefetch(map + next + tile.map + i, !std::is_const_v<M>);
      move_tile(map + tile.map, lot.step, array, tile.arrays);
    }
    for (const Single& run : lot.runs) move_vector(map + run.map, array + run.array);
    for (const Single& one : lot.singles) move_one(map[one.map], array[one.array]);
  }
}

// body(first channel, channels) for a chunk of them at a time.
template <class Body>
void each_chunk(int64_t channels, const Body& body) {
  for (int64_t c = 0; c < channels; c += kChunk) body(c, std::min(kChunk, channels - c));
}

// energies (keys, queries) to the softmax over the keys of scale times them.
template <class T>
void softmax(T* energies, int64_t keys, int64_t padded, int64_t pitch, T scale) {
  using V = Eight<T>;
  T* const end = energies + keys * pitch;
  for (int64_t i = 0; i < padded; i += 8) {
    V top = scale * load<V>(energies + i), total{};
    for (T* e = energies + i; e < end; e += pitch) top = max(scale * load<V>(e), top);
    for (T* e = energies + i; e < end; e += pitch) {
      const V x = exp(scale * load<V>(e) - top);
      store(e, x);
      total += x;
    }
    const V factor = 1 / total;
    for (T* e = energies + i; e < end; e += pitch) store(e, load<V>(e) * factor);
  }
}

// The gradient of the weights (keys, queries) to that of the scalar products, in its place.
template <class T>
void differentiate_softmax(const T* weights, T* grad, int64_t keys, int64_t padded, int64_t pitch, T scale) {
  using V = Eight<T>;
  const int64_t area = keys * pitch;
  for (int64_t i = 0; i < padded; i += 8) {
    V mean{};
    for (int64_t at = i; at < area; at += pitch) mean = fma(load<V>(weights + at), load<V>(grad + at), mean);
    for (int64_t at = i; at < area; at += pitch)
      store(grad + at, scale * load<V>(weights + at) * (load<V>(grad + at) - mean));
  }
}

template <class T>
void transpose_square(const T* from, int64_t padded, int64_t pitch, T* to) {
  for (int64_t i = 0; i < padded; i += 8)
    for (int64_t j = 0; j < padded; j += 8) transpose_tile(from + i * pitch + j, pitch, to + j * pitch + i, pitch);
}

// A thread's share, with arrays for the groups of a lot: chunks of channels (groups, kChunk, members), and weights and
// the like (groups, members, members). What is behind the last member is multiplied too, but never moved to the map.
template <class T>
struct Thread {
  const Problem<T>& p;
  const int64_t padded = p.padded(), pitch = p.pitch(), area = p.area(), square = p.square(), plane = p.pixels();

  Buffer<T> chunks() const { return zeros(area); }
  Buffer<T> squares() const { return zeros(square); }
  Buffer<T> zeros(int64_t size) const {
    Buffer<T> b(p.together() * size);
    std::fill_n(b.data(), b.size(), T(0));
    return b;
  }

  void gather(const T* map, int64_t first_plane, const Lot& lot, int64_t channels, Buffer<T>& to) const {
    move(map + first_plane * plane, plane, lot, channels, to.data(), pitch);
  }
  void scatter(const Buffer<T>& from, const Lot& lot, int64_t channels, T* map, int64_t first_plane) const {
    move(map + first_plane * plane, plane, lot, channels, from.data(), pitch);
  }

  // to (a's members, b's members) = a^T b over some channels, or added to it.
  void scalar_products(const Buffer<T>& a, const Buffer<T>& b, const Lot& lot, int64_t channels, bool add,
                       Buffer<T>& to) const {
    for (int64_t g = 0; g < lot.groups(); ++g) {
      const Matrix<T> by_member{a.data() + g * area, 1, pitch};
      const T* other = b.data() + g * area;
      T* product = to.data() + g * square;
      add ? multiply<true>(by_member, other, lot.members[g], channels, padded, pitch, product)
          : multiply<false>(by_member, other, lot.members[g], channels, padded, pitch, product);
    }
  }

  // to (channels, columns) = a (channels, rows) times weights (rows, columns).
  void combine(const Buffer<T>& a, const Buffer<T>& weights, const Lot& lot, int64_t channels, Buffer<T>& to) const {
    for (int64_t g = 0; g < lot.groups(); ++g)
      multiply<false>(Matrix<T>{a.data() + g * area, pitch, 1}, weights.data() + g * square, channels, lot.members[g],
                      padded, pitch, to.data() + g * area);
  }

  // The weights (keys, queries) of a lot.
  void attend(int64_t image, const Lot& lot, Buffer<T>& query, Buffer<T>& key, Buffer<T>& weights) const {
    each_chunk(p.dims, [&](int64_t c, int64_t channels) {
      gather(p.query, image * p.dims + c, lot, channels, query);
      gather(p.key, image * p.dims + c, lot, channels, key);
      scalar_products(key, query, lot, channels, c > 0, weights);
    });
    for (int64_t g = 0; g < lot.groups(); ++g)
      softmax(weights.data() + g * square, lot.members[g], padded, pitch, p.scale);
  }
};

// Groups [begin, end) of the batch.
template <class T>
void attend(const Problem<T>& p, int64_t begin, int64_t end) {
  const Thread<T> thread{p};
  Buffer<T> query = thread.chunks(), key = thread.chunks(), weights = thread.squares();
  Buffer<T>&value = key, &part = query;  // free once there are weights
  each_lot(p, begin, end, [&](int64_t image, const Lot& lot) {
    thread.attend(image, lot, query, key, weights);
    each_chunk(p.channels, [&](int64_t c, int64_t channels) {
      thread.gather(p.value, image * p.channels + c, lot, channels, value);
      thread.combine(value, weights, lot, channels, part);
      thread.scatter(part, lot, channels, p.out, image * p.channels + c);
    });
  });
}

// Gradients through groups [begin, end) of the batch.
template <class T>
void differentiate(const Problem<T>& p, int64_t begin, int64_t end) {
  const Thread<T> thread{p};
  Buffer<T> query = thread.chunks(), key = thread.chunks(), part = thread.chunks();
  Buffer<T> weights = thread.squares(), transposed = thread.squares(), steps = thread.squares();
  Buffer<T>&value = key, &grad = query;
  const auto transpose_all = [&](const Buffer<T>& from, const Lot& lot) {
    for (int64_t at = 0; at < lot.groups() * thread.square; at += thread.square)
      transpose_square(from.data() + at, thread.padded, thread.pitch, transposed.data() + at);
  };
  each_lot(p, begin, end, [&](int64_t image, const Lot& lot) {
    thread.attend(image, lot, query, key, weights);
    transpose_all(weights, lot);
    each_chunk(p.channels, [&](int64_t c, int64_t channels) {
      const int64_t place = image * p.channels + c;
      thread.gather(p.value, place, lot, channels, value);
      thread.gather(p.grad, place, lot, channels, grad);
      thread.scalar_products(value, grad, lot, channels, c > 0, steps);
      thread.combine(grad, transposed, lot, channels, part);
      thread.scatter(part, lot, channels, p.grad_value, place);
    });
    for (int64_t g = 0; g < lot.groups(); ++g) {
      const int64_t at = g * thread.square;
      differentiate_softmax(weights.data() + at, steps.data() + at, lot.members[g], thread.padded, thread.pitch,
                            p.scale);
    }
    transpose_all(steps, lot);
    each_chunk(p.dims, [&](int64_t c, int64_t channels) {
      const int64_t place = image * p.dims + c;
      thread.gather(p.key, place, lot, channels, key);
      thread.combine(key, steps, lot, channels, part);
      thread.scatter(part, lot, channels, p.grad_query, place);
      thread.gather(p.query, place, lot, channels, query);
      thread.combine(query, transposed, lot, channels, part);
      thread.scatter(part, lot, channels, p.grad_key, place);
    });
  });
}
