// No include guard: compiled once for each instruction set (see foreach_isa.h) by conv_crf_update.h, which explains
// Update, Axis, Tile and Work. Buffers of a tile are (L, stride), padded to whole vectors of numbers that nobody reads.

// out[0 ... columns) = a row of cells of one label, interpolated. `row` is room for the tile's cells and one on each
// side.
template <class T>
void interpolate(const Update<T>& u, const Tile& tile, const T* cells, T* row, T* out) {
  using V = Wide<T>;
  const int64_t width = u.columns.cells, from = u.columns.below(tile.first), to = u.columns.above(tile.last);
  row -= tile.first - 1;  // row[i] = cell i, those at the border repeated beyond it
  for (int64_t c = from; c <= to; ++c) row[c] = cells[c];
  if (tile.first == 0) row[-1] = row[0];
  if (tile.last == width) row[width] = row[width - 1];
  int64_t x = tile.begin;
  for (int64_t gap = u.columns.gap(x); x < tile.end; ++gap) {
    const int64_t end = std::min(tile.end, u.columns.gap_begin(gap + 1));
    const V left = splat<V>(row[gap - 1]), right = splat<V>(row[gap]);
    for (; x < end; x += kWidth<T>) {
      const V share = load<V>(u.share.data() + x);
      store(out + (x - tile.begin), fma(splat<V>(1) - share, left, share * right));
    }
    x = end;
  }
}

// work.below and work.above = the rows of cells on both sides of row y, interpolated between columns. From one gap to
// the next, what was above is below.
template <class T>
void read_message(const Update<T>& u, const Tile& tile, int64_t y, const T* message, Work<T>& work) {
  const int64_t width = u.columns.cells, gap = u.rows.gap(y);
  if (u.blur() == 1) {
    for (int64_t l = 0; l < u.labels; ++l)
      __builtin_memcpy(work.below.data() + l * u.stride(), message + l * u.cells() + y * width + tile.begin,
                       tile.columns() * sizeof(T));
    return;
  }
  const auto read = [&](int64_t row, T* to) {
    for (int64_t l = 0; l < u.labels; ++l)
      interpolate(u, tile, message + l * u.cells() + row * width, work.row.data(), to + l * u.stride());
  };
  if (work.gap == gap) return;
  if (work.gap == gap - 1)
    std::swap(work.below, work.above);
  else
    read(u.rows.below(gap), work.below.data());
  read(u.rows.above(gap), work.above.data());
  work.gap = gap;
}

template <class V>
SEGOPS_INLINE V logarithm(V x) {
  for (int i = 0; i < Lanes<V>::kCount; ++i) x[i] = std::log(x[i]);
  return x;
}

// A vector of pixels of all labels, `stride` apart: from a map, or where it ends before the vector does, from `room`.
template <class T>
SEGOPS_INLINE const T* whole_vectors(const T* map, int64_t labels, int64_t count, T* room, int64_t* stride) {
  if (count >= kWidth<T>) return map;
  for (int64_t l = 0; l < labels; ++l) __builtin_memcpy(room + l * kWidth<T>, map + l * *stride, count * sizeof(T));
  *stride = kWidth<T>;
  return room;
}

// What log_softmax takes off the logits; only the maximum where nobody sees the difference.
template <class T>
SEGOPS_INLINE Wide<T> shift_of(const T* logits, int64_t labels, int64_t stride, bool sums) {
  using V = Wide<T>;
  V top = load<V>(logits);
  for (int64_t l = 1; l < labels; ++l) top = max(top, load<V>(logits + l * stride));
  if (!sums) return top;
  V sum{};
  for (int64_t l = 0; l < labels; ++l) sum += exp(load<V>(logits + l * stride) - top);
  return top + logarithm(sum);
}

// z = weight (logits - shift) + message, or its softmax; where there are `sums`, added to them instead. The message is
// `below`, or where there is `above`, between both.
template <class T>
SEGOPS_INLINE void add_unary(const Update<T>& u, const T* logits, int64_t stride, Wide<T> shift, const T* below,
                             const T* above, T share, T* z, T* sums) {
  using V = Wide<T>;
  const int64_t step = u.stride();
  V top{};
  for (int64_t l = 0; l < u.labels; ++l) {
    V sum = load<V>(below + l * step);
    if (above) sum = fma(splat<V>(1 - share), sum, splat<V>(share) * load<V>(above + l * step));
    sum = fma(splat<V>(u.weight[l]), load<V>(logits + l * stride) - shift, sum);
    store(z + l * step, sum);
    top = l ? max(top, sum) : sum;
  }
  V total{}, scale = splat<V>(1);
  if (u.softmax) {
    for (int64_t l = 0; l < u.labels; ++l) {
      const V e = exp(load<V>(z + l * step) - top);
      store(z + l * step, e);
      total += e;
    }
    scale /= total;
  }
  if (sums)
    for (int64_t l = 0; l < u.labels; ++l)
      store(sums + l * step, fma(scale, load<V>(z + l * step), load<V>(sums + l * step)));
  else if (u.softmax)
    for (int64_t l = 0; l < u.labels; ++l) store(z + l * step, scale * load<V>(z + l * step));
}

// work.z = row y of a tile of the result, before means, or `sums` with it added; and what log_softmax takes off, to
// `shifts` where they are asked for.
template <class T>
void evaluate(const Update<T>& u, const Tile& tile, int64_t y, const T* logits, const T* message, Work<T>& work,
              T* sums, T* shifts) {
  read_message(u, tile, y, message, work);
  const T *below = work.below.data(), *above = u.blur() == 1 ? nullptr : work.above.data();
  const T share = T(u.rows.share(y));
  logits += y * u.columns.pixels + tile.begin;
  for (int64_t x = 0; x < tile.columns(); x += kWidth<T>) {
    int64_t stride = u.pixels();
    const T* at = whole_vectors(logits + x, u.labels, tile.columns() - x, work.vectors.data(), &stride);
    // the next row: the processor foresees only what goes on where it is
    for (int64_t l = 0; l < u.labels; ++l) __builtin_prefetch(logits + l * u.pixels() + u.columns.pixels + x);
    const Wide<T> shift = shift_of(at, u.labels, stride, u.needs_sums());
    if (shifts) store(shifts + x, shift);
    add_unary(u, at, stride, shift, below + x, above ? above + x : nullptr, share, work.z.data() + x,
              sums ? sums + x : nullptr);
  }
}

template <class T>
SEGOPS_INLINE void clear(T* p, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = 0;
}

// Row y of all labels from a tile to a map.
template <class T>
void copy_row(const Update<T>& u, const Tile& tile, int64_t y, const T* from, T* map) {
  map += y * u.columns.pixels + tile.begin;
  for (int64_t l = 0; l < u.labels; ++l)
    __builtin_memcpy(map + l * u.pixels(), from + l * u.stride(), tile.columns() * sizeof(T));
}

// A row of cells of one image: their means, or all their pixels.
template <class T>
void update_row(const Update<T>& u, int64_t i, const T* logits, const T* message, T* out, Work<T>& work) {
  const int64_t top = u.rows.begin(i), bottom = u.rows.begin(i + 1), size = u.labels * u.stride();
  T* sums = u.means ? work.sums.data() : nullptr;
  for (int64_t t = 0; t < u.tiles(); ++t) {
    const Tile tile(u, t);
    work.gap = kNone;
    if (sums) clear(sums, size);
    for (int64_t y = top; y < bottom; ++y) {
      evaluate<T>(u, tile, y, logits, message, work, sums, nullptr);
      if (!sums) copy_row(u, tile, y, work.z.data(), out);
    }
    if (!sums) continue;
    for (int64_t l = 0; l < u.labels; ++l)
      for (int64_t c = tile.first; c < tile.last; ++c) {
        const int64_t begin = u.columns.begin(c), end = u.columns.begin(c + 1);
        T sum = 0;
        for (int64_t x = begin; x < end; ++x) sum += sums[l * u.stride() + x - tile.begin];
        out[l * u.cells() + i * u.columns.cells + c] = sum / T((bottom - top) * (end - begin));
      }
  }
}

// work.grad = row y of a tile of the gradient of z or of its softmax; of means, all rows of a cell have the same.
template <class T>
void read_gradient(const Update<T>& u, const Tile& tile, int64_t y, const T* grad, GradientWork<T>& work) {
  T* to = work.grad.data();
  if (!u.means) {
    for (int64_t l = 0; l < u.labels; ++l)
      __builtin_memcpy(to + l * u.stride(), grad + l * u.pixels() + y * u.columns.pixels + tile.begin,
                       tile.columns() * sizeof(T));
    return;
  }
  const int64_t i = u.rows.cell(y), rows = u.rows.begin(i + 1) - u.rows.begin(i);
  if (work.cell == i) return;
  work.cell = i;
  for (int64_t l = 0; l < u.labels; ++l)
    for (int64_t c = tile.first; c < tile.last; ++c) {
      const int64_t begin = u.columns.begin(c), end = u.columns.begin(c + 1);
      const T part = grad[l * u.cells() + i * u.columns.cells + c] / T(rows * (end - begin));
      for (int64_t x = begin; x < end; ++x) to[l * u.stride() + x - tile.begin] = part;
    }
}

// work.z becomes the gradient of the logits. That of z is added up for the rows of cells on both sides, or with one
// pixel a cell stands in work.sums; and that of the weights is added up.
template <class T>
void differentiate(const Update<T>& u, const Tile& tile, int64_t y, const T* logits, GradientWork<T>& work) {
  using V = Wide<T>;
  const int64_t step = u.stride();
  const V share = splat<V>(T(u.rows.share(y)));
  logits += y * u.columns.pixels + tile.begin;
  for (int64_t x = 0; x < tile.columns(); x += kWidth<T>) {
    T *z = work.z.data() + x, *below = work.sums.data() + x, *above = work.sums_above.data() + x;
    const T* grad = work.grad.data() + x;
    const V shift = load<V>(work.shift.data() + x);
    int64_t stride = u.pixels();
    const T* at = whole_vectors(logits + x, u.labels, tile.columns() - x, work.vectors.data(), &stride);
    V inside{};  // 1 in the columns of the tile, 0 beyond
    for (int64_t i = 0; i < std::min<int64_t>(kWidth<T>, tile.columns() - x); ++i) inside[i] = 1;
    V mean{}, total{};
    if (u.softmax)
      for (int64_t l = 0; l < u.labels; ++l) mean = fma(load<V>(z + l * step), load<V>(grad + l * step), mean);
    for (int64_t l = 0; l < u.labels; ++l) {
      V slope = load<V>(grad + l * step);
      if (u.softmax) slope = load<V>(z + l * step) * (slope - mean);
      if (u.blur() == 1) {
        store(below + l * step, slope);
      } else {
        store(below + l * step, fma(splat<V>(1) - share, slope, load<V>(below + l * step)));
        store(above + l * step, fma(share, slope, load<V>(above + l * step)));
      }
      const V scaled = splat<V>(u.weight[l]) * slope, unary = load<V>(at + l * stride) - shift;
      store(z + l * step, scaled);
      total += scaled;
      T* weight = work.weights.data() + l * kWidth<T>;
      store(weight, load<V>(weight) + (inside == 1 ? slope * unary : V{}));
    }
    if (u.needs_sums())
      for (int64_t l = 0; l < u.labels; ++l) {
        const V probability = exp(load<V>(at + l * stride) - shift);
        store(z + l * step, load<V>(z + l * step) - probability * total);
      }
  }
}

// Two rows of a tile's columns to the cells beside each gap.
template <class T>
void gather_columns(const Update<T>& u, const Tile& tile, const T* sums, T* row) {
  int64_t x = tile.begin;
  for (int64_t gap = u.columns.gap(x); x < tile.end; ++gap) {
    const int64_t end = std::min(tile.end, u.columns.gap_begin(gap + 1));
    T left = 0, right = 0;
    for (; x < end; ++x) {
      left += (1 - u.share[x]) * sums[x - tile.begin];
      right += u.share[x] * sums[x - tile.begin];
    }
    row[u.columns.below(gap)] += left;
    row[u.columns.above(gap)] += right;
  }
}

// The rows between the middles of two rows of cells: gradients of their logits, and what they add to those of the
// message in both rows of cells and to those of the weights.
template <class T>
void differentiate_gap(const Update<T>& u, int64_t gap, const T* grad, const T* logits, const T* message,
                       T* grad_logits, T* grad_message, double* grad_weight, GradientWork<T>& work) {
  const int64_t top = u.rows.gap_begin(gap), bottom = u.rows.gap_begin(gap + 1), size = u.labels * u.stride();
  T *below = work.sums.data(), *above = work.sums_above.data();
  clear(work.weights.data(), work.weights.size());
  for (int64_t t = 0; t < u.tiles(); ++t) {
    const Tile tile(u, t);
    work.gap = work.cell = kNone;
    clear(below, size);
    clear(above, size);
    for (int64_t y = top; y < bottom; ++y) {
      evaluate<T>(u, tile, y, logits, message, work, nullptr, work.shift.data());
      read_gradient(u, tile, y, grad, work);
      differentiate(u, tile, y, logits, work);
      copy_row(u, tile, y, work.z.data(), grad_logits);
      if (u.blur() == 1) copy_row(u, tile, y, below, grad_message);
    }
    if (u.blur() == 1) continue;
    for (int64_t l = 0; l < u.labels; ++l) {
      T* cells = grad_message + l * u.cells();
      gather_columns(u, tile, below + l * u.stride(), cells + u.rows.below(gap) * u.columns.cells);
      gather_columns(u, tile, above + l * u.stride(), cells + u.rows.above(gap) * u.columns.cells);
    }
  }
  for (int64_t l = 0; l < u.labels; ++l) {
    grad_weight[l] = 0;
    for (int i = 0; i < kWidth<T>; ++i) grad_weight[l] += work.weights[l * kWidth<T> + i];
  }
}
