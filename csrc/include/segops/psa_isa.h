// No include guard: compiled once for each instruction set (see foreach_isa.h) by psa.h, which explains Work and the
// order of `columns`.
#include "segops/tile_product_isa.h"

// A tile (rows, kTile) as columns of pairs of positions, [pair][kTile], with zeros behind them up to a multiple of
// eight rows.
inline void transpose_tile(Bfloat16* tile, int64_t rows, int count, Pair* columns) {
  const int64_t padded = (rows + 7) / 8 * 8;
  std::fill_n(tile + rows * kTile, (padded - rows) * kTile, Bfloat16{});
  for (int64_t r = 0; r < padded; r += 8)
    transpose_pairs(paired_pixels(tile + r * kTile), elements<Pair>(count), int64_t(kTile), columns + r);
}

// Rows of pairs of two positions, kTile each, as two rows of numbers.
inline void part_pairs(const Pair* pairs, int64_t rows, Bfloat16* numbers) {
  for (int64_t r = 0; r < rows; ++r, pairs += kTile, numbers += 2 * kTile)
    for (int i = 0; i < kTile; ++i) {
      numbers[i].bits = uint16_t(pairs[i].bits);
      numbers[kTile + i].bits = uint16_t(pairs[i].bits >> 16);
    }
}

// A map (C, P) as columns: kTile channels of all positions, [padded_positions][kTile], then the next ones. Positions
// [begin, end) of it. Of bfloat16 these are pairs of two positions, and numbers in `by_channel`, if given, where they
// may be read as pairs of two channels.
template <class S, class E = Element<S>>
void pack_columns(const S* x, int64_t channels, int64_t positions, int64_t begin, int64_t end, Work<S>& work,
                  E* columns, S* by_channel) {
  const int64_t padded = padded_positions(positions);
  for (int64_t p = begin; p < end; p += kTile) {
    const int count = int(end - p < kTile ? end - p : kTile);
    for (int64_t c = 0; c < channels; c += kTile) {
      const int64_t rows = std::min<int64_t>(kTile, channels - c);
      const int64_t at = c * padded + p * kTile;
      pack_tile(x + c * positions + p, positions, rows, count, work.own.data());
      if constexpr (Work<S>::kPairs) {
        transpose_tile(work.own.data(), rows, count, columns + at / 2);
        if (by_channel) part_pairs(columns + at / 2, elements<E>(count), by_channel + at);
      } else {
        transpose_tile(work.own.data(), rows, count, int64_t(kTile), columns + at, work.numbers.data());
      }
    }
  }
}

// out (C, kTile) += a map's columns times tile (depth, kTile), from a position of the columns on.
template <class S, class E = Element<S>, class T = Sum<S>>
void multiply_map(const Map<S>& map, int64_t at, const T* tile, int64_t depth, int count, Work<S>& work, T* out) {
  const E* rows = paired_rows(tile, depth, int64_t(kTile), work.pairs.data());
  for (int64_t c = 0; c < map.channels; c += kTile)
    multiply_columns(std::min<int64_t>(kTile, map.channels - c), count, map.over_positions + map.offset(c, at),
                     int64_t(kTile), rows, elements<E>(depth), out + c * kTile, int64_t(kTile), true);
}

// out (rows, kTile) = the scalar products of so many columns with those of a tile (C, kTile), or of pairs of its rows.
template <class S, class E = Element<S>, class T = Sum<S>>
void multiply_channels(const Map<S>& map, int64_t at, int64_t rows, const E* tile, int count, T* out) {
  for (int64_t c = 0; c < map.channels; c += kTile) {
    const int64_t depth = elements<E>(std::min<int64_t>(kTile, map.channels - c));
    const E *columns = map.over_channels + map.offset(c, at), *values = tile + elements<E>(c) * kTile;
    each_block<T, kProductRows>(rows, count, Multiply<E, true>{columns, 0, values, kTile, depth, out, kTile, c > 0});
  }
}

// The largest of each column of a block (rows, kTile), or what is there already.
template <class T>
void largest_of_columns(const T* block, int64_t rows, T* largest) {
  constexpr int W = kWidth<T>, kAtOnce = kTile / W < 12 ? kTile / W : 12;  // as the registers hold
  static_assert(kTile % (W * kAtOnce) == 0);
  for (int at = 0; at < kTile; at += W * kAtOnce) {
    Wide<T> most[kAtOnce];
#pragma GCC unroll 12
    for (int v = 0; v < kAtOnce; ++v) most[v] = load<Wide<T>>(largest + at + v * W);
    for (const T *row = block + at, *end = row + rows * kTile; row < end; row += kTile)
#pragma GCC unroll 12
      for (int v = 0; v < kAtOnce; ++v) most[v] = max(most[v], load<Wide<T>>(row + v * W));
#pragma GCC unroll 12
    for (int v = 0; v < kAtOnce; ++v) store(largest + at + v * W, most[v]);
  }
}

// Exponentials of the distances from each column's largest, in place; sums += those of the columns.
template <class T>
void exponentials_of_columns(T* block, int64_t rows, const T* largest, T* sums) {
  constexpr int W = kWidth<T>;
  for (int at = 0; at < kTile; at += W) {
    const Wide<T> most = load<Wide<T>>(largest + at);
    Wide<T> sum = {};
    for (T *row = block + at, *end = row + rows * kTile; row < end; row += kTile) {
      const Wide<T> e = exp(load<Wide<T>>(row) - most);
      store(row, e);
      sum += e;
    }
    store(sums + at, load<Wide<T>>(sums + at) + sum);
  }
}

// A row for each receiver: exponentials of the distances from its largest, times its scale.
template <class T>
void weights_of_rows(T* tile, int64_t rows, const T* largest, const T* scale) {
  constexpr int W = kWidth<T>;
  for (int64_t r = 0; r < rows; ++r, tile += kTile) {
    const Wide<T> most = splat<Wide<T>>(largest[r]), factor = splat<Wide<T>>(scale[r]);
    for (int at = 0; at < kTile; at += W) store(tile + at, exp(load<Wide<T>>(tile + at) - most) * factor);
  }
}

// The softmax's gradient from that of the weights, in place.
template <class T>
void differentiate_rows(const T* weights, int64_t rows, const T* dot, T* grad) {
  constexpr int W = kWidth<T>;
  for (int64_t r = 0; r < rows; ++r, grad += kTile, weights += kTile) {
    const Wide<T> less = splat<Wide<T>>(dot[r]);
    for (int at = 0; at < kTile; at += W)
      store(grad + at, load<Wide<T>>(weights + at) * (load<Wide<T>>(grad + at) - less));
  }
}

// out (C, P) = map (C, P) times the weights, for the receivers in `at`, at most a tile.
template <class S, class T = Sum<S>>
void collect_tile(const Map<S>& map, const S* entries, Range at, Work<S>& work, S* out, T* largest, T* sums) {
  const Window& w = map.window;
  const int count = int(at.size());
  const Range sources = reached<Element<S>>(w, at);
  const int64_t outside = w.positions() - sources.size();
  T *block = work.block.data(), *tile = work.tile.data();
  w.gather(entries, sources, kTile, at, 1, block);
  std::fill_n(tile, map.channels * kTile, T(0));
  alignas(64) T most[kTile], sum[kTile] = {};
  if (map.softmax) {
    std::fill_n(most, kTile, outside ? T(0) : -std::numeric_limits<T>::infinity());
    largest_of_columns(block, sources.size(), most);
  }
  for (int64_t first = 0; first < sources.size(); first += kDepth) {
    const int64_t depth = std::min<int64_t>(kDepth, sources.size() - first);
    if (map.softmax) exponentials_of_columns(block + first * kTile, depth, most, sum);
    multiply_map(map, sources.begin + first, block + first * kTile, depth, count, work, tile);
  }
  if (!map.softmax) return unpack_tile(tile, map.channels, count, out + at.begin, w.positions(), false);
  T* zero = work.numbers.data();  // the weight of a source outside of the window
  for (int j = 0; j < kTile; ++j) {
    zero[j] = outside ? std::exp(-most[j]) : T(0);
    sum[j] += T(outside) * zero[j];
  }
  map.outside(sources, work.channels.data());
  for (int64_t c = 0; c < map.channels; ++c)
    for (int j = 0; j < count; ++j)
      out[c * w.positions() + at.begin + j] = narrow<S>((tile[c * kTile + j] + work.channels[c] * zero[j]) / sum[j]);
  std::copy_n(most, count, largest + at.begin);
  std::copy_n(sum, count, sums + at.begin);
}

// The gradients of the sources in `at`, at most a tile, from that of the result as `map`.
template <class S, class T = Sum<S>>
void differentiate_tile(const Map<S>& map, const S* value, const S* entries, Range at, const Softmax<T>& softmax,
                        Work<S>& work, S* grad_value, S* grad_entries) {
  const Window& w = map.window;
  const int count = int(at.size());
  const Range receivers = reached<Element<S>>(w, at);
  T *total = work.tile.data(), *weights = work.square.data(), *grad = work.second.data();
  pack_tile(value + at.begin, w.positions(), map.channels, count, work.own.data());
  const auto* own = paired_rows(work.own.data(), map.channels, int64_t(kTile), work.own_pairs.data());
  map.outside(receivers, work.channels.data());
  for (int64_t c = 0; c < map.channels; ++c)
    std::fill_n(total + c * kTile, kTile, map.softmax ? work.channels[c] : T(0));
  for (int64_t t = receivers.begin; t < receivers.end; t += kTile) {
    const Range some{t, std::min<int64_t>(t + kTile, receivers.end)};
    w.gather(entries, at, 1, some, kTile, weights);
    multiply_channels(map, t, some.size(), own, count, grad);
    if (map.softmax) {
      weights_of_rows(weights, some.size(), softmax.largest + t, softmax.scale + t);
      differentiate_rows(weights, some.size(), softmax.dot + t, grad);
    }
    w.scatter(grad, at, 1, some, kTile, grad_entries);
    multiply_map(map, t, weights, some.size(), count, work, total);
  }
  unpack_tile(total, map.channels, count, grad_value + at.begin, w.positions(), false);
}
