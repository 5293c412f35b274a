// No include guard: compiled once for each instruction set (see foreach_isa.h) by interlaced_attention.h, which
// explains Problem and Lot. Arrays of a lot lie as (groups, rows, padded members).
#include "segops/line_product_isa.h"

// Eight numbers from where they are copied; those of bfloat16 that stay what they are, as bits.
template <class To, class T>
SEGOPS_INLINE auto load_moved(const T* p) {
  if constexpr (std::is_same_v<T, Bfloat16> && std::is_same_v<To, Bfloat16>)
    return (F8)load_bits(p);
  else
    return load_numbers(p);
}
template <class From, class T, class V>
SEGOPS_INLINE void store_moved(T* p, V x) {
  if constexpr (std::is_same_v<T, Bfloat16> && std::is_same_v<From, Bfloat16>)
    store_bits(p, (U8)x);
  else
    store_numbers(p, x);
}

// From the map to an array of the same type, or back, where M is not const, from an array of sums.
template <class M, class A>
void move_one(M& in_map, A& in_array) {
  if constexpr (std::is_const_v<M>)
    in_array = in_map;
  else
    in_map = narrow<M>(in_array);
}

template <class M, class A>
void move_vector(M* in_map, A* in_array) {
  if constexpr (std::is_const_v<M>)
    store_moved<A>(in_array, load_moved<A>(in_map));
  else
    store_numbers(in_map, load_numbers(in_array));
}

// Eight members of eight groups lie the other way round in the map.
template <class M, class A>
void move_tile(M* map, int64_t step, A* array, const int64_t* arrays) {
  Eight<Sum<std::remove_const_t<A>>> v[8];
  for (int i = 0; i < 8; ++i)
    if constexpr (std::is_const_v<M>)
      v[i] = load_moved<A>(map + i * step);
    else
      v[i] = load_numbers(array + arrays[i]);
  transpose(v);
  for (int i = 0; i < 8; ++i) {
    if constexpr (std::is_const_v<M>)
      store_moved<A>(array + arrays[i], v[i]);
    else
      store_numbers(map + i * step, v[i]);
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

// Chunks of channels (groups, channels, members) as products read them that sum over members, and where these are
// pairs, as others read them that sum over channels.
template <class S>
struct Chunks {
  Buffer<S> members;
  Buffer<Element<S>> pairs;
};

// Weights and the like (groups, members, members): numbers, and where products that sum over their rows read pairs,
// these.
template <class E>
struct Squares {
  Buffer<Total<E>> numbers;
  Buffer<E> pairs;
};

// A thread's share, with arrays for the groups of a lot. What is behind the last member is multiplied too, but never
// moved to the map.
template <class S>
struct Thread {
  using T = Sum<S>;
  using E = Element<S>;
  static constexpr int K = kNumbers<E>;

  const Problem<S>& p;
  const int64_t padded = p.padded(), pitch = p.pitch(), area = p.area(), square = p.square(), plane = p.pixels();

  Chunks<S> chunks() const { return {zeros<S>(area), zeros<E>(K == 2 ? area / 2 : 0)}; }
  Buffer<T> sums() const { return zeros<T>(area); }
  Squares<E> squares() const { return {zeros<T>(square), zeros<E>(K == 2 ? square / 2 : 0)}; }
  template <class X>
  Buffer<X> zeros(int64_t size) const {
    Buffer<X> b(p.together() * size);
    std::fill_n(b.data(), b.size(), X{});
    return b;
  }

  void gather(const S* map, int64_t first_plane, const Lot& lot, int64_t channels, Chunks<S>& to) const {
    move(map + first_plane * plane, plane, lot, channels, to.members.data(), pitch);
    if constexpr (K == 2)
      for (int64_t g = 0; g < lot.groups(); ++g) {
        S* group = to.members.data() + g * area;
        for (int64_t c = 0; lot.members[g] % 2 && c < channels; ++c) group[c * pitch + lot.members[g]] = {};
        paired_rows(group, channels, pitch, to.pairs.data() + g * area / 2);
      }
  }
  void scatter(const Buffer<T>& from, const Lot& lot, int64_t channels, S* map, int64_t first_plane) const {
    move(map + first_plane * plane, plane, lot, channels, from.data(), pitch);
  }

  // A group as products read it.
  const E* by_channels(const Chunks<S>& x, int64_t g) const {
    if constexpr (K == 2)
      return x.pairs.data() + g * area / 2;
    else
      return x.members.data() + g * area;
  }
  const E* by_members(const Chunks<S>& x, int64_t g) const {
    return reinterpret_cast<const E*>(x.members.data() + g * area);
  }
  E* rows(Squares<E>& x, int64_t g) const {
    if constexpr (K == 2)
      return x.pairs.data() + g * square / 2;
    else
      return x.numbers.data() + g * square;
  }
  void pack(Squares<E>& x, const Lot& lot) const {
    for (int64_t g = 0; g < lot.groups(); ++g)
      paired_rows(x.numbers.data() + g * square, lot.members[g], pitch, rows(x, g));
  }

  // to (a's members, b's members) = a^T b over some channels, or added to it.
  void scalar_products(const Chunks<S>& a, const Chunks<S>& b, const Lot& lot, int64_t channels, bool add,
                       Squares<E>& to) const {
    const int64_t depth = elements<E>(channels);
    for (int64_t g = 0; g < lot.groups(); ++g) {
      const Matrix<E> by_member{by_channels(a, g), 1, pitch};
      const E* other = by_channels(b, g);
      T* product = to.numbers.data() + g * square;
      add ? multiply<true>(by_member, other, lot.members[g], depth, padded, pitch, product)
          : multiply<false>(by_member, other, lot.members[g], depth, padded, pitch, product);
    }
  }

  // to (channels, columns) = a (channels, rows) times weights (rows, columns), packed.
  void combine(const Chunks<S>& a, Squares<E>& weights, const Lot& lot, int64_t channels, Buffer<T>& to) const {
    for (int64_t g = 0; g < lot.groups(); ++g)
      multiply<false>(Matrix<E>{by_members(a, g), pitch / K, 1}, rows(weights, g), channels,
                      elements<E>(lot.members[g]), padded, pitch, to.data() + g * area);
  }

  // The weights (keys, queries) of a lot.
  void attend(int64_t image, const Lot& lot, Chunks<S>& query, Chunks<S>& key, Squares<E>& weights) const {
    each_chunk(p.dims, [&](int64_t c, int64_t channels) {
      gather(p.query, image * p.dims + c, lot, channels, query);
      gather(p.key, image * p.dims + c, lot, channels, key);
      scalar_products(key, query, lot, channels, c > 0, weights);
    });
    for (int64_t g = 0; g < lot.groups(); ++g)
      softmax(weights.numbers.data() + g * square, lot.members[g], padded, pitch, p.scale);
  }
};

// Groups [begin, end) of the batch.
template <class S>
void attend(const Problem<S>& p, int64_t begin, int64_t end) {
  const Thread<S> thread{p};
  auto query = thread.chunks(), key = thread.chunks();
  auto weights = thread.squares();
  auto part = thread.sums();
  auto& value = key;  // free once there are weights
  each_lot(p, begin, end, [&](int64_t image, const Lot& lot) {
    thread.attend(image, lot, query, key, weights);
    thread.pack(weights, lot);
    each_chunk(p.channels, [&](int64_t c, int64_t channels) {
      thread.gather(p.value, image * p.channels + c, lot, channels, value);
      thread.combine(value, weights, lot, channels, part);
      thread.scatter(part, lot, channels, p.out, image * p.channels + c);
    });
  });
}

// Gradients through groups [begin, end) of the batch.
template <class S>
void differentiate(const Problem<S>& p, int64_t begin, int64_t end) {
  const Thread<S> thread{p};
  auto query = thread.chunks(), key = thread.chunks();
  auto part = thread.sums();
  auto weights = thread.squares(), transposed = thread.squares(), steps = thread.squares();
  auto &value = key, &grad = query;
  const auto transpose_all = [&](const auto& from, const Lot& lot) {
    for (int64_t at = 0; at < lot.groups() * thread.square; at += thread.square)
      transpose_square(from.numbers.data() + at, thread.padded, thread.pitch, transposed.numbers.data() + at);
    thread.pack(transposed, lot);
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
      differentiate_softmax(weights.numbers.data() + at, steps.numbers.data() + at, lot.members[g], thread.padded,
                            thread.pitch, p.scale);
    }
    thread.pack(steps, lot);
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
