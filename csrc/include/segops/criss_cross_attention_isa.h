// No include guard: compiled once for each instruction set (see foreach_isa.h) by criss_cross_attention.h, which
// explains Problem, Lines and the passes.
#include "segops/line_product_isa.h"

// The channels of some lines of a map, from its memory to (lines, channels, padded), the padding filled with zeros.
template <bool kColumns, class T>
void gather(const T* from, int64_t plane, const Lines& l, int64_t lines, int64_t channels, T* to) {
  const int64_t padded = l.padded(), area = channels * padded;
  const int64_t whole = kColumns ? l.length / 8 * 8 : 0, eights = kColumns ? lines / 8 * 8 : 0;
  const int64_t step = kColumns ? l.step : 1;  // known to the compiler, rows are copied in vectors
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

// And back, or added to what is there.
template <bool kColumns, bool kAdd, class T>
void scatter(const T* from, int64_t plane, const Lines& l, int64_t lines, int64_t channels, T* to) {
  const int64_t padded = l.padded(), area = channels * padded;
  const int64_t whole = kColumns ? l.length / 8 * 8 : 0, eights = kColumns ? lines / 8 * 8 : 0;
  const int64_t step = kColumns ? l.step : 1;
  for (int64_t c = 0; c < channels; ++c, to += plane, from += padded) {
    for (int64_t i = 0; i < whole; i += 8)
      for (int64_t line = 0; line < eights; line += 8)
        transpose_tile<kAdd>(from + line * area + i, area, to + i * step + line, step);
    for (int64_t line = 0; line < lines; ++line)
      for (int64_t j = line < eights ? whole : 0; j < l.length; ++j) {
        T& x = to[line * l.apart + j * step];
        x = from[line * area + j] + (kAdd ? x : 0);
      }
  }
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

// The largest energies and sums of the column that were kept, and those of the row: to the joint ones. `largest` and
// `sum` become the factors that bring the row's part and the column's part of the result to their place.
template <class T>
void join(const Lines& l, T* kept_largest, T* kept_sum, T* largest, T* sum) {
  for (int64_t i = 0; i < l.length; ++i) {
    const T top = std::max(largest[i], kept_largest[i]);
    const T row = T(__builtin_exp(double(largest[i] - top))), column = T(__builtin_exp(double(kept_largest[i] - top)));
    const T scale = 1 / (sum[i] * row + kept_sum[i] * column);
    kept_largest[i] = top;
    kept_sum[i] = scale;
    largest[i] = row * scale;
    sum[i] = column * scale;
  }
}

// The row's part of the result joins the column's, which is there.
template <class T>
void blend(const T* from, int64_t plane, const Lines& l, int64_t lines, int64_t channels, const T* row, const T* column,
           T* to) {
  const int64_t padded = l.padded();
  for (int64_t line = 0; line < lines; ++line, row += padded, column += padded)
    for (int64_t c = 0; c < channels; ++c, from += padded) {
      T* out = to + c * plane + line * l.apart;
      for (int64_t i = 0; i < l.length; ++i) out[i] = out[i] * column[i] + from[i] * row[i];
    }
}

// Lines [begin, end) of the batch: exponentials and their sums, and with kValues the result.
template <bool kColumns, bool kValues, class T>
void attend(const Problem<T>& p, int64_t begin, int64_t end) {
  const Lines l = lines_of<kColumns>(p);
  const int64_t plane = p.pixels(), padded = l.padded(), area = l.length * padded, most = l.together(sizeof(T));
  Buffer<T> query(most * p.dims * padded), key(query.size()), weights((kValues ? most : 1) * area);
  Buffer<T> value(kValues ? most * kChunk * padded : 0), part(value.size());
  Buffer<T> largest(most * padded), sum(largest.size());
  for (int64_t at = begin, lines; at < end; at += lines) {
    const int64_t n = at / l.count, first = at % l.count, offset = first * l.apart;
    lines = std::min({most, l.count - first, end - at});
    gather<kColumns>(p.query + n * p.dims * plane + offset, plane, l, lines, p.dims, query.data());
    gather<kColumns>(p.key + n * p.dims * plane + offset, plane, l, lines, p.dims, key.data());
    for (int64_t line = 0; line < lines; ++line) {
      T *w = weights.data() + (kValues ? line : 0) * area, *top = largest.data() + line * padded,
        *total = sum.data() + line * padded;
      const int64_t packed = line * p.dims * padded, pixel = n * plane + offset + line * l.apart;
      multiply<false>(Matrix<T>{key.data() + packed, 1, padded}, query.data() + packed, l.length, p.dims, padded,
                      padded, w);
      exponentiate<kColumns>(w, l, top, total);
      if constexpr (kColumns)
        for (int64_t i = 0; i < l.length; ++i) {
          p.largest[pixel + i * l.step] = top[i];
          p.sum[pixel + i * l.step] = total[i];
        }
      else
        join(l, p.largest + pixel, p.sum + pixel, top, total);
    }
    for (int64_t c = 0; kValues && c < p.channels; c += kChunk) {
      const int64_t chunk = std::min<int64_t>(kChunk, p.channels - c), place = (n * p.channels + c) * plane + offset;
      gather<kColumns>(p.value + place, plane, l, lines, chunk, value.data());
      for (int64_t line = 0; line < lines; ++line)
        multiply<false>(Matrix<T>{value.data() + line * chunk * padded, padded, 1}, weights.data() + line * area, chunk,
                        l.length, padded, padded, part.data() + line * chunk * padded);
      if constexpr (kColumns)
        scatter<true, false>(part.data(), plane, l, lines, chunk, p.out + place);
      else
        blend(part.data(), plane, l, lines, chunk, largest.data(), sum.data(), p.out + place);
    }
  }
}

// energies (queries, padded keys) to the weights of the joint softmax.
template <bool kColumns, class T>
void normalize(T* energies, const Lines& l, const T* largest, const T* scale) {
  using V = Eight<T>;
  const int64_t padded = l.padded();
  for (int64_t i = 0; i < l.length; ++i) {
    T* e = energies + i * padded;
    for (int64_t j = 0; j < padded; j += 8) store(e + j, exp(load<V>(e + j) - largest[i * l.step]) * scale[i * l.step]);
    if constexpr (kColumns) e[i] = 0;
  }
}

// The scalar products of grad and result, some channels more; both (lines, channels, padded). Summed as multiply() sums
// grad and value, so that the two cancel where the softmax has but one weight.
template <class T>
void add_products(const T* grad, const T* result, int64_t padded, int64_t lines, int64_t channels, T* delta) {
  using V = Eight<T>;
  for (int64_t line = 0; line < lines; ++line, delta += padded)
    for (int64_t c = 0; c < channels; ++c, grad += padded, result += padded)
      for (int64_t i = 0; i < padded; i += 8)
        store(delta + i, fma(load<V>(grad + i), load<V>(result + i), load<V>(delta + i)));
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
template <bool kColumns, class T>
void differentiate(const Problem<T>& p, int64_t begin, int64_t end) {
  const Lines l = lines_of<kColumns>(p);
  const int64_t plane = p.pixels(), padded = l.padded(), area = padded * padded, most = l.together(2 * sizeof(T));
  Buffer<T> query(most * p.dims * padded), key(query.size()), grad_query(query.size()), grad_key(query.size());
  Buffer<T> value(most * kChunk * padded), grad(value.size()), grad_value(value.size());
  Buffer<T> weights(most * area), grad_weights(most * area), delta(most * padded);
  std::fill_n(grad_weights.data(), grad_weights.size(), T(0));  // rows of padding are transposed too
  for (int64_t at = begin, lines; at < end; at += lines) {
    const int64_t n = at / l.count, first = at % l.count, offset = first * l.apart;
    const int64_t place = n * p.dims * plane + offset, pixel = n * plane + offset;
    lines = std::min({most, l.count - first, end - at});
    gather<kColumns>(p.query + place, plane, l, lines, p.dims, query.data());
    gather<kColumns>(p.key + place, plane, l, lines, p.dims, key.data());
    for (int64_t line = 0; line < lines; ++line) {
      const int64_t packed = line * p.dims * padded, to = pixel + line * l.apart;
      T* w = weights.data() + line * area;
      multiply<false>(Matrix<T>{query.data() + packed, 1, padded}, key.data() + packed, l.length, p.dims, padded,
                      padded, w);
      normalize<kColumns>(w, l, p.largest + to, p.sum + to);
    }
    std::fill_n(delta.data(), delta.size(), T(0));
    for (int64_t c = 0; c < p.channels; c += kChunk) {
      const int64_t chunk = std::min<int64_t>(kChunk, p.channels - c), part = (n * p.channels + c) * plane + offset;
      gather<kColumns>(p.value + part, plane, l, lines, chunk, value.data());
      gather<kColumns>(p.grad + part, plane, l, lines, chunk, grad.data());
      if constexpr (!kColumns) {
        gather<false>(p.result + part, plane, l, lines, chunk, grad_value.data());
        add_products(grad.data(), grad_value.data(), padded, lines, chunk, delta.data());
      }
      for (int64_t line = 0; line < lines; ++line) {
        const int64_t packed = line * chunk * padded;
        const Matrix<T> by_query{grad.data() + packed, 1, padded}, by_channel{grad.data() + packed, padded, 1};
        T* to = grad_weights.data() + line * area;
        c ? multiply<true>(by_query, value.data() + packed, l.length, chunk, padded, padded, to)
          : multiply<false>(by_query, value.data() + packed, l.length, chunk, padded, padded, to);
        multiply<false>(by_channel, weights.data() + line * area, chunk, l.length, padded, padded,
                        grad_value.data() + packed);
      }
      scatter<kColumns, kColumns>(grad_value.data(), plane, l, lines, chunk, p.grad_value + part);
    }
    if constexpr (!kColumns) scatter<false, false>(delta.data(), plane, l, lines, 1, p.delta + pixel);
    for (int64_t line = 0; line < lines; ++line) {
      const int64_t packed = line * p.dims * padded;
      T *w = weights.data() + line * area, *g = grad_weights.data() + line * area;
      differentiate_softmax(w, g, l, p.delta + pixel + line * l.apart);
      multiply<false>(Matrix<T>{query.data() + packed, padded, 1}, g, p.dims, l.length, padded, padded,
                      grad_key.data() + packed);
      multiply<false>(Matrix<T>{key.data() + packed, padded, 1}, w, p.dims, l.length, padded, padded,
                      grad_query.data() + packed);
    }
    scatter<kColumns, kColumns>(grad_query.data(), plane, l, lines, p.dims, p.grad_query + place);
    scatter<kColumns, kColumns>(grad_key.data(), plane, l, lines, p.dims, p.grad_key + place);
  }
}

template <class T>
void attend_columns(const Problem<T>& p, int64_t begin, int64_t end) {
  attend<true, true>(p, begin, end);
}
template <class T>
void attend_rows(const Problem<T>& p, int64_t begin, int64_t end) {
  attend<false, true>(p, begin, end);
}
template <class T>
void normalize_columns(const Problem<T>& p, int64_t begin, int64_t end) {
  attend<true, false>(p, begin, end);
}
template <class T>
void normalize_rows(const Problem<T>& p, int64_t begin, int64_t end) {
  attend<false, false>(p, begin, end);
}
template <class T>
void differentiate_rows(const Problem<T>& p, int64_t begin, int64_t end) {
  differentiate<false>(p, begin, end);
}
template <class T>
void differentiate_columns(const Problem<T>& p, int64_t begin, int64_t end) {
  differentiate<true>(p, begin, end);
}
