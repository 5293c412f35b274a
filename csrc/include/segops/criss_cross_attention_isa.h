// No include guard: compiled once for each instruction set (see foreach_isa.h) by criss_cross_attention.h, which
// explains Problem, Lines and the passes.
#include "segops/line_product_isa.h"

// The channels of some lines of a map, from its memory to (lines, channels, padded), the padding filled with zeros.
template <bool kColumns, class T, int kWays>
void gather(const T* from, int64_t plane, const Lines& l, int64_t lines, int64_t channels, Gathered<T, kWays>& out) {
  const int64_t padded = l.padded(), area = channels * padded;
  const int64_t whole = kColumns ? l.length / 8 * 8 : 0, eights = kColumns ? lines / 8 * 8 : 0;
  const int64_t step = kColumns ? l.step : 1;  // known to the compiler, rows are copied in vectors
  T* to = out.by_channels(0, channels);
  for (int64_t c = 0; c < channels; ++c, from += plane, to += padded) {
    for (int64_t i = 0; i < whole; i += 8) {
      if (c + 1 < channels)  // the processor does not foresee where the next channel lies
        for (int64_t j = i; j < i + 8; ++j)
          for (int64_t line = 0; line < lines; line += 8) __builtin_prefetch(from + plane + j * step + line);
      for (int64_t line = 0; line < eights; line += 8)
        transpose_tile(from + i * step + line, step, to + line * area + i, area);
    }
    for (int64_t line = 0; line < lines; ++line) {
      for (int64_t j = line < eights ? whole : 0; j < l.length; ++j)
        to[line * area + j] = from[line * l.apart + j * step];
      for (int64_t j = l.length; j < padded; ++j) to[line * area + j] = 0;
    }
  }
}

// Two channels of bfloat16, or the last one alone, whose partners are then 0.
struct Channels {
  const Bfloat16 *first, *second;
  bool two;

  uint32_t mask() const { return two ? ~uint32_t(0) : 0; }
  uint32_t bits(int64_t at) const { return first[at].bits | (uint32_t(second[at].bits) << 16 & mask()); }
};

// They are transposed as pairs: eight positions, `step` apart, of eight lines side by side.
SEGOPS_INLINE void load_pairs(const Channels& x, int64_t at, int64_t step, F8* v) {
  for (int64_t k = 0; k < 8; ++k, at += step)
    v[k] = (F8)(load_bits(x.first + at) | (load_bits(x.second + at) << 16 & x.mask()));
  transpose(v);
}

// The positions of a line from `begin` on, and its padding, as pairs of channels and as the numbers of each.
template <bool kPairs, bool kNumbers>
void gather_line(const Channels& x, int64_t at, int64_t step, int64_t begin, const Lines& l, Pair* pairs,
                 Bfloat16* numbers) {
  const int64_t padded = l.padded();
  if constexpr (kPairs) {
    for (int64_t j = begin; j < l.length; ++j) pairs[j].bits = x.bits(at + j * step);
    for (int64_t j = l.length; j < padded; ++j) pairs[j].bits = 0;
  }
  for (int i = 0; kNumbers && i < 1 + x.two; ++i, numbers += padded) {
    const Bfloat16* from = (i ? x.second : x.first) + at;
    for (int64_t j = begin; j < l.length; ++j) numbers[j] = from[j * step];
    for (int64_t j = l.length; j < padded; ++j) numbers[j].bits = 0;
  }
}

template <bool kColumns, int kWays>
void gather(const Bfloat16* from, int64_t plane, const Lines& l, int64_t lines, int64_t channels,
            Gathered<Bfloat16, kWays>& out) {
  using Out = Gathered<Bfloat16, kWays>;
  const int64_t padded = l.padded(), step = kColumns ? l.step : 1;
  const int64_t whole = kColumns ? l.length / 8 * 8 : 0, eights = kColumns ? lines / 8 * 8 : 0;
  for (int64_t c = 0; c < channels; c += 2, from += 2 * plane) {
    const bool two = c + 1 < channels;
    const Channels x{from, two ? from + plane : from, two};
    const auto pairs = [&](int64_t line) { return out.by_channels(line, channels) + c / 2 * padded; };
    const auto numbers = [&](int64_t line) { return out.by_positions(line, channels) + c * padded; };
    for (int64_t i = 0; i < whole; i += 8) {
      if (c + 3 < channels)  // the processor does not foresee where the next channels lie
        for (int64_t j = i; j < i + 8; ++j)
          for (int64_t p = 2; p < 4; ++p) __builtin_prefetch(from + p * plane + j * step);
      for (int64_t line = 0; line < eights; line += 8) {
        F8 v[8];
        load_pairs(x, i * step + line, step, v);
        for (int64_t k = 0; k < 8; ++k) {
          if constexpr (Out::kHasChannels) __builtin_memcpy(pairs(line + k) + i, &v[k], sizeof(F8));
          if constexpr (!Out::kHasPositions) continue;
          store_bits(numbers(line + k) + i, (U8)v[k]);
          if (two) store_bits(numbers(line + k) + padded + i, (U8)v[k] >> 16);
        }
      }
    }
    for (int64_t line = 0; line < lines; ++line)
      gather_line<Out::kHasChannels, Out::kHasPositions>(x, line * l.apart, step, line < eights ? whole : 0, l,
                                                         pairs(line), numbers(line));
  }
}

// Lines of sums (lines, channels, padded) back to a map, or added to what is there.
template <bool kColumns, bool kAdd, class T, class S>
void scatter(const T* from, int64_t plane, const Lines& l, int64_t lines, int64_t channels, S* to) {
  const int64_t padded = l.padded(), area = channels * padded;
  const int64_t whole = kColumns ? l.length / 8 * 8 : 0, eights = kColumns ? lines / 8 * 8 : 0;
  const int64_t step = kColumns ? l.step : 1;
  for (int64_t c = 0; c < channels; ++c, to += plane, from += padded) {
    for (int64_t i = 0; i < whole; i += 8)
      for (int64_t line = 0; line < eights; line += 8)
        transpose_tile<kAdd>(from + line * area + i, area, to + i * step + line, step);
    for (int64_t line = 0; line < lines; ++line)
      for (int64_t j = line < eights ? whole : 0; j < l.length; ++j) {
        S& x = to[line * l.apart + j * step];
        x = narrow<S>(from[line * area + j] + (kAdd ? widen(x) : 0));
      }
  }
}

// A product that sums over the channels of two lines, and one that sums along a line; c (rows, padded).
template <bool kAdd, class E, class T>
void multiply_channels(const E* a, const E* b, int64_t rows, int64_t channels, int64_t padded, T* c) {
  multiply<kAdd>(Matrix<E>{a, 1, padded}, b, rows, elements<E>(channels), padded, padded, c);
}
template <class T>
void multiply_positions(const T* a, const T* b, int64_t rows, int64_t length, int64_t padded, T* c) {
  multiply<false>(Matrix<T>{a, padded, 1}, b, rows, length, padded, padded, c);
}
inline void multiply_positions(const Bfloat16* a, const Pair* b, int64_t rows, int64_t length, int64_t padded,
                               float* c) {
  multiply<false>(Matrix<Pair>{reinterpret_cast<const Pair*>(a), padded / 2, 1}, b, rows, elements<Pair>(length),
                  padded, padded, c);
}

// energies (keys, padded queries) to exp(energy - largest); a column leaves its own pixel to the row. Without any key
// the largest is the lowest number there is, and the sum 0.
template <bool kColumns, class T>
void exponentiate(T* energies, const Lines& l, T* largest, T* sum) {
  using V = Eight<T>;
  const int64_t padded = l.padded(), area = l.length * padded;
  if constexpr (kColumns)
    for (int64_t i = 0; i < l.length; ++i) energies[i * padded + i] = -std::numeric_limits<T>::infinity();
  for (int64_t i = 0; i < padded; i += 8) {
    V top = splat<V>(std::numeric_limits<T>::lowest()), total{};
    for (T* e = energies + i; e < energies + area; e += padded) top = max(load<V>(e), top);
    for (T* e = energies + i; e < energies + area; e += padded) {
      const V x = exp(load<V>(e) - top);
      store(e, x);
      total += x;
    }
    store(largest + i, top);
    store(sum + i, total);
  }
}

// The column's largest energies, kept in lse, and its sums, with those of the row: to the log of the joint sum.
// `largest` and `sum` become the factors that bring the row's part and the column's part of the result to their place.
template <class T>
void join(const Lines& l, T* lse, const T* column_sum, T* largest, T* sum) {
  for (int64_t i = 0; i < l.length; ++i) {
    const T top = std::max(largest[i], lse[i]);
    const T row = T(__builtin_exp(double(largest[i] - top))), column = T(__builtin_exp(double(lse[i] - top)));
    const T total = sum[i] * row + column_sum[i] * column;
    lse[i] = T(top + __builtin_log(double(total)));
    largest[i] = row / total;
    sum[i] = column / total;
  }
}

// The row's part of the result joins the column's, which is there.
template <class T, class S>
void blend(const T* from, int64_t plane, const Lines& l, int64_t lines, int64_t channels, const T* row, const T* column,
           S* to) {
  const int64_t padded = l.padded();
  for (int64_t line = 0; line < lines; ++line, row += padded, column += padded)
    for (int64_t c = 0; c < channels; ++c, from += padded) {
      S* out = to + c * plane + line * l.apart;
      for (int64_t i = 0; i < l.length; ++i) out[i] = narrow<S>(widen(out[i]) * column[i] + from[i] * row[i]);
    }
}

// Lines [begin, end) of the batch: exponentials, their sums, and the result.
template <bool kColumns, class S, class T = Sum<S>>
void attend(const Problem<S>& p, int64_t begin, int64_t end) {
  const Lines l = lines_of<kColumns>(p);
  const int64_t plane = p.pixels(), padded = l.padded(), most = l.together(sizeof(T));
  Gathered<S, kByChannels> query(most, p.dims, padded), key(most, p.dims, padded);
  Gathered<S, kByPositions> value(most, kChunk, padded);
  Weights<Element<S>> weights(most, 1, padded * padded);
  Buffer<T> part(most * kChunk * padded), largest(most * padded), sum(largest.size());
  for (int64_t at = begin, lines; at < end; at += lines) {
    const int64_t n = at / l.count, first = at % l.count, offset = first * l.apart;
    lines = std::min({most, l.count - first, end - at});
    gather<kColumns>(p.query + n * p.dims * plane + offset, plane, l, lines, p.dims, query);
    gather<kColumns>(p.key + n * p.dims * plane + offset, plane, l, lines, p.dims, key);
    for (int64_t line = 0; line < lines; ++line) {
      const int64_t pixel = n * plane + offset + line * l.apart;
      T *w = weights.line(line), *top = largest.data() + line * padded, *total = sum.data() + line * padded;
      multiply_channels<false>(key.by_channels(line, p.dims), query.by_channels(line, p.dims), l.length, p.dims, padded,
                               w);
      exponentiate<kColumns>(w, l, top, total);
      paired_rows(w, l.length, padded, weights.rows(line));
      if constexpr (kColumns)
        for (int64_t i = 0; i < l.length; ++i) {
          p.lse[pixel + i * l.step] = top[i];
          p.sum[pixel + i * l.step] = total[i];
        }
      else
        join(l, p.lse + pixel, p.sum + pixel, top, total);
    }
    for (int64_t c = 0; c < p.channels; c += kChunk) {
      const int64_t chunk = std::min<int64_t>(kChunk, p.channels - c), place = (n * p.channels + c) * plane + offset;
      gather<kColumns>(p.value + place, plane, l, lines, chunk, value);
      for (int64_t line = 0; line < lines; ++line)
        multiply_positions(value.by_positions(line, chunk), weights.rows(line), chunk, l.length, padded,
                           part.data() + line * chunk * padded);
      if constexpr (kColumns)
        scatter<true, false>(part.data(), plane, l, lines, chunk, p.out + place);
      else
        blend(part.data(), plane, l, lines, chunk, largest.data(), sum.data(), p.out + place);
    }
  }
}

// energies (queries, padded keys) to the weights of the joint softmax.
template <bool kColumns, class T>
void normalize(T* energies, const Lines& l, const T* lse) {
  using V = Eight<T>;
  const int64_t padded = l.padded();
  for (int64_t i = 0; i < l.length; ++i) {
    T* e = energies + i * padded;
    for (int64_t j = 0; j < padded; j += 8) store(e + j, exp(load<V>(e + j) - lse[i * l.step]));
    if constexpr (kColumns) e[i] = 0;
  }
}

// The scalar products of grad and result, some channels more; both (lines, channels, padded). Summed as multiply() sums
// grad and value, so that the two cancel where the softmax has but one weight.
template <class E, class T = Total<E>>
void add_products(const E* grad, const E* result, int64_t padded, int64_t lines, int64_t channels, T* delta) {
  using V = Eight<T>;
  for (int64_t line = 0; line < lines; ++line, delta += padded)
    for (int64_t c = 0; c < elements<E>(channels); ++c, grad += padded, result += padded)
      for (int64_t i = 0; i < padded; i += 8)
        store(delta + i,
              multiply_add(load_elements<E, V>(grad + i), load_elements<E, V>(result + i), load<V>(delta + i)));
}

// Gradients of the weights (queries, padded keys) to those of the energies, and these transposed.
template <class T>
void differentiate_softmax(T* weights, T* grad, const Lines& l, const T* delta) {
  using V = Eight<T>;
  const int64_t padded = l.padded();
  for (int64_t i = 0; i < l.length; ++i)
    for (int64_t at = i * padded; at < (i + 1) * padded; at += 8)
      store(grad + at, load<V>(weights + at) * (load<V>(grad + at) - delta[i * l.step]));
  for (int64_t i = 0; i < padded; i += 8)
    for (int64_t j = 0; j < padded; j += 8)
      transpose_tile(grad + i * padded + j, padded, weights + j * padded + i, padded);
}

// Gradients through lines [begin, end) of the batch: rows write them, columns add theirs.
template <bool kColumns, class S, class T = Sum<S>>
void differentiate(const Problem<S>& p, int64_t begin, int64_t end) {
  const Lines l = lines_of<kColumns>(p);
  const int64_t plane = p.pixels(), padded = l.padded(), area = padded * padded, most = l.together(2 * sizeof(T));
  Gathered<S, kBothWays> query(most, p.dims, padded), key(most, p.dims, padded), grad(most, kChunk, padded);
  Gathered<S, kByChannels> value(most, kChunk, padded), result(kColumns ? 0 : most, kChunk, padded);
  Weights<Element<S>> weights(most, most, area);
  Buffer<T> grad_weights(most * area), delta(most * padded), grad_value(most * kChunk * padded);
  Buffer<T> grad_query(most * p.dims * padded), grad_key(grad_query.size());
  std::fill_n(grad_weights.data(), grad_weights.size(), T(0));  // rows of padding are transposed too
  for (int64_t at = begin, lines; at < end; at += lines) {
    const int64_t n = at / l.count, first = at % l.count, offset = first * l.apart;
    const int64_t place = n * p.dims * plane + offset, pixel = n * plane + offset;
    lines = std::min({most, l.count - first, end - at});
    gather<kColumns>(p.query + place, plane, l, lines, p.dims, query);
    gather<kColumns>(p.key + place, plane, l, lines, p.dims, key);
    for (int64_t line = 0; line < lines; ++line) {
      const int64_t to = pixel + line * l.apart;
      T* w = weights.line(line);
      multiply_channels<false>(query.by_channels(line, p.dims), key.by_channels(line, p.dims), l.length, p.dims, padded,
                               w);
      normalize<kColumns>(w, l, p.lse + to);
      paired_rows(w, l.length, padded, weights.rows(line));
    }
    std::fill_n(delta.data(), delta.size(), T(0));
    for (int64_t c = 0; c < p.channels; c += kChunk) {
      const int64_t chunk = std::min<int64_t>(kChunk, p.channels - c), part = (n * p.channels + c) * plane + offset;
      gather<kColumns>(p.value + part, plane, l, lines, chunk, value);
      gather<kColumns>(p.grad + part, plane, l, lines, chunk, grad);
      if constexpr (!kColumns) {
        gather<false>(p.result + part, plane, l, lines, chunk, result);
        add_products(grad.by_channels(0, chunk), result.by_channels(0, chunk), padded, lines, chunk, delta.data());
      }
      for (int64_t line = 0; line < lines; ++line) {
        const auto *a = grad.by_channels(line, chunk), *b = value.by_channels(line, chunk);
        T* to = grad_weights.data() + line * area;
        c ? multiply_channels<true>(a, b, l.length, chunk, padded, to)
          : multiply_channels<false>(a, b, l.length, chunk, padded, to);
        multiply_positions(grad.by_positions(line, chunk), weights.rows(line), chunk, l.length, padded,
                           grad_value.data() + line * chunk * padded);
      }
      scatter<kColumns, kColumns>(grad_value.data(), plane, l, lines, chunk, p.grad_value + part);
    }
    if constexpr (!kColumns) scatter<false, false>(delta.data(), plane, l, lines, 1, p.delta + pixel);
    for (int64_t line = 0; line < lines; ++line) {
      const int64_t packed = line * p.dims * padded;
      T *w = weights.line(line), *g = grad_weights.data() + line * area;
      differentiate_softmax(w, g, l, p.delta + pixel + line * l.apart);
      Element<S>* room = weights.rows(line);
      multiply_positions(query.by_positions(line, p.dims), paired_rows(g, l.length, padded, room), p.dims, l.length,
                         padded, grad_key.data() + packed);
      multiply_positions(key.by_positions(line, p.dims), paired_rows(w, l.length, padded, room), p.dims, l.length,
                         padded, grad_query.data() + packed);
    }
    scatter<kColumns, kColumns>(grad_query.data(), plane, l, lines, p.dims, p.grad_query + place);
    scatter<kColumns, kColumns>(grad_key.data(), plane, l, lines, p.dims, p.grad_key + place);
  }
}

template <class S>
void attend_columns(const Problem<S>& p, int64_t begin, int64_t end) {
  attend<true>(p, begin, end);
}
template <class S>
void attend_rows(const Problem<S>& p, int64_t begin, int64_t end) {
  attend<false>(p, begin, end);
}
template <class S>
void differentiate_rows(const Problem<S>& p, int64_t begin, int64_t end) {
  differentiate<false>(p, begin, end);
}
template <class S>
void differentiate_columns(const Problem<S>& p, int64_t begin, int64_t end) {
  differentiate<true>(p, begin, end);
}
