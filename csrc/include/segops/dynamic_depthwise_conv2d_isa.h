// No include guard: compiled once for each instruction set (see foreach_isa.h) by dynamic_depthwise_conv2d.h, which
// explains Plan, Piece and the padded planes.

template <class T>
constexpr int kPieceVectors = kLanes<T> / kWidth<T>;

// A plane to where its rows have zeros between them.
template <class T>
void pad_plane(const Shape& s, const T* plane, T* padded) {
  constexpr int N = kPieceVectors<T>, W = kWidth<T>, L = kLanes<T>;
  const int64_t width = s.x.size, stride = s.padded_width<T>();
  for (int64_t y = 0; y < s.y.size; ++y, plane += width, padded += stride) {
    if (width < L) {
      __builtin_memcpy(padded, plane, width * sizeof(T));
      continue;
    }
    for (int64_t at = 0; at < width; at += L) {
      const int64_t x = at < width - L ? at : width - L;
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) store(padded + x + n * W, load<Wide<T>>(plane + x + n * W));
    }
  }
}

// A piece of R rows of outputs whose taps are the same: a weight is spread once for all, and their sums do not wait for
// each other.
template <int R, class T>
SEGOPS_INLINE void convolve_piece(const Shape& s, const Piece& p, Range rows, const T* from_row, int64_t stride,
                                  const T* kernel, T* out) {
  using V = Wide<T>;
  constexpr int N = kPieceVectors<T>, W = kWidth<T>;
  const int64_t width = s.x.size, row_step = s.y.dilation * stride, taps = p.taps.end - p.taps.begin;
  const T *row = from_row + p.x + p.shift, *weights = kernel + rows.begin * s.x.count + p.taps.begin;
  V sums[R][N] = {};
  for (int64_t left = rows.end - rows.begin; left > 0; --left, row += row_step, weights += s.x.count) {
    const T* from = row;
    for (int64_t j = 0; j < taps; ++j, from += s.x.dilation) {
      const V weight = splat<V>(weights[j]);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sums[r][n] = fma(weight, load<V>(from + r * stride + n * W), sums[r][n]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r, out += width) {
    T narrow[kLanes<T>];
    T* to = width < kLanes<T> ? narrow : out + p.x;
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(to + n * W, sums[r][n]);
    if (to == narrow) __builtin_memcpy(out, narrow, width * sizeof(T));
  }
}

template <class T>
void convolve_plane(const Plan<T>& plan, const T* padded, const T* kernel, T* out) {
  constexpr int kRows = 4 / kPieceVectors<T>;  // four sums at a time, as long as a multiplication takes
  const Shape& s = plan.shape;
  const int64_t width = s.x.size, stride = s.padded_width<T>();
  const Piece *pieces = plan.begin(), *end = pieces + plan.piece_count();
  const Range* taps = plan.row_taps();
  for (int64_t y = 0, count; y < s.y.size; y += count) {
    const Range rows = taps[y];
    const int64_t last = std::min(y + kRows, s.y.size) - 1;  // both ends of taps only fall from row to row
    count = taps[last].begin == rows.begin && taps[last].end == rows.end ? last + 1 - y : 1;
    const T* row = padded + (y + s.y.shift(rows.begin)) * stride;
    for (const Piece* p = pieces; p != end; ++p)
      if (count == kRows)
        convolve_piece<kRows>(s, *p, rows, row, stride, kernel, out + y * width);
      else
        for (int64_t r = 0; r < count; ++r)
          convolve_piece<1>(s, *p, rows, row + r * stride, stride, kernel, out + (y + r) * width);
  }
}

template <class T>
T sum_of(Wide<T> v) {
  T lanes[kWidth<T>], sum = 0;
  store(lanes, v);
  for (T lane : lanes) sum += lane;
  return sum;
}

// One tap at a time, two rows together. `ones` are a vector of zeros and one of ones: what a piece shares with the one
// before counts once.
template <class T>
void differentiate_plane(const Plan<T>& plan, const T* ones, const T* grad, int64_t grad_stride, const T* padded,
                         T* out) {
  using V = Wide<T>;
  constexpr int N = kPieceVectors<T>, W = kWidth<T>;
  const Shape& s = plan.shape;
  const int64_t stride = s.padded_width<T>();
  for (int64_t i = 0; i < s.y.count; ++i) {
    const Range rows = s.y.outputs(i);
    for (int64_t j = 0; j < s.x.count; ++j) {
      V total{};
      for (const Piece *p = plan.begin(), *end = p + plan.piece_count(); p != end; ++p) {
        if (j < p->taps.begin || j >= p->taps.end) continue;
        const T* from = padded + (rows.begin + s.y.shift(i)) * stride + s.x.shift(j) + p->x;
        const T* g = grad + rows.begin * grad_stride + p->x;
        V even[N] = {}, odd[N] = {};
        int64_t left = rows.end - rows.begin;
        for (; left >= 2; left -= 2, g += 2 * grad_stride, from += 2 * stride)
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) {
            even[n] = fma(load<V>(g + n * W), load<V>(from + n * W), even[n]);
            odd[n] = fma(load<V>(g + grad_stride + n * W), load<V>(from + stride + n * W), odd[n]);
          }
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          if (left) even[n] = fma(load<V>(g + n * W), load<V>(from + n * W), even[n]);
          total = fma(load<V>(ones + kLanes<T> - p->again + n * W), even[n] + odd[n], total);
        }
      }
      out[i * s.x.count + j] += sum_of<T>(total);
    }
  }
}

// `count` channels, a pixel at a time, its taps in R registers of channels; kernels (taps, block).
template <int R, class T>
void convolve_block(const Plan<T>& plan, const T* input, const T* kernels, int64_t count, T* out) {
  using V = Wide<T>;
  constexpr int W = kWidth<T>;
  const Shape& s = plan.shape;
  const int64_t channels = s.channels, width = s.x.size;
  const int64_t step = s.x.dilation * channels, row_step = s.y.dilation * width * channels;
  for (int64_t y = 0; y < s.y.size; ++y)
    for (int64_t x = 0; x < width; ++x, out += channels) {
      const Range rows = plan.row_taps()[y], columns = plan.column_taps()[x];
      const T* corner = input + ((y + s.y.shift(rows.begin)) * width + x + s.x.shift(columns.begin)) * channels;
      const T* weights = kernels + (rows.begin * s.x.count + columns.begin) * kBlock<T>;
      for (int64_t c = 0; c < count; c += R * W) {
        V sums[R] = {};
        const T *row = corner + c, *row_weights = weights + c;
        for (int64_t i = rows.begin; i < rows.end; ++i, row += row_step, row_weights += s.x.count * kBlock<T>) {
          const T *from = row, *k = row_weights;
          for (int64_t j = columns.begin; j < columns.end; ++j, from += step, k += kBlock<T>)
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) sums[r] = fma(load<V>(k + r * W), load<V>(from + r * W), sums[r]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) store(out + c + r * W, sums[r]);
      }
    }
}

// The same of one channel.
template <class T>
void convolve_channel(const Plan<T>& plan, const T* input, const T* kernel, T* out) {
  const Shape& s = plan.shape;
  for (int64_t y = 0; y < s.y.size; ++y)
    for (int64_t x = 0; x < s.x.size; ++x, out += s.channels) {
      const Range rows = plan.row_taps()[y], columns = plan.column_taps()[x];
      T sum = 0;
      for (int64_t i = rows.begin; i < rows.end; ++i)
        for (int64_t j = columns.begin; j < columns.end; ++j)
          sum += kernel[i * s.x.count + j] * input[((y + s.y.shift(i)) * s.x.size + x + s.x.shift(j)) * s.channels];
      *out = sum;
    }
}

template <class T>
void convolve_cells(const Plan<T>& plan, const T* input, const T* kernels, int64_t count, T* work, T* out) {
  const int64_t taps = plan.shape.taps();
  for (int64_t t = 0; t < taps; ++t)
    for (int64_t c = 0; c < count; ++c) work[t * kBlock<T> + c] = kernels[c * taps + t];
  constexpr int W = kWidth<T>, R = 2 * kPieceVectors<T>;
  int64_t c = count / (R * W) * (R * W);
  if (c) convolve_block<R>(plan, input, work, c, out);
  for (; c + W <= count; c += W) convolve_block<1>(plan, input + c, work + c, W, out + c);
  for (; c < count; ++c) convolve_channel(plan, input + c, kernels + c * taps, out + c);
}

// sums (taps, block) += grad times input, `count` channels of one image, R registers of them at a time.
template <int R, class T>
void differentiate_block(const Plan<T>& plan, const T* grad, const T* input, int64_t count, T* sums) {
  using V = Wide<T>;
  constexpr int W = kWidth<T>;
  const Shape& s = plan.shape;
  const int64_t channels = s.channels, width = s.x.size;
  for (int64_t y = 0; y < s.y.size; ++y) {
    const Range rows = plan.row_taps()[y];
    for (int64_t i = rows.begin; i < rows.end; ++i)
      for (int64_t j = 0; j < s.x.count; ++j) {
        const Range columns = s.x.outputs(j);
        const int64_t there = (y + s.y.shift(i)) * width + s.x.shift(j);
        for (int64_t c = 0; c < count; c += R * W) {
          const T* g = grad + (y * width + columns.begin) * channels + c;
          const T* from = input + (there + columns.begin) * channels + c;
          T* to = sums + (i * s.x.count + j) * kBlock<T> + c;
          V row[R] = {};  // sums of one row first: less rounding
          for (int64_t x = columns.begin; x < columns.end; ++x, g += channels, from += channels)
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) row[r] = fma(load<V>(g + r * W), load<V>(from + r * W), row[r]);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) store(to + r * W, load<V>(to + r * W) + row[r]);
        }
      }
  }
}

template <class T>
void differentiate_channel(const Plan<T>& plan, const T* grad, const T* input, T* sums) {
  const Shape& s = plan.shape;
  for (int64_t y = 0; y < s.y.size; ++y)
    for (int64_t i = plan.row_taps()[y].begin; i < plan.row_taps()[y].end; ++i)
      for (int64_t j = 0; j < s.x.count; ++j) {
        const Range columns = s.x.outputs(j);
        T sum = 0;
        for (int64_t x = columns.begin; x < columns.end; ++x)
          sum += grad[(y * s.x.size + x) * s.channels] *
                 input[((y + s.y.shift(i)) * s.x.size + x + s.x.shift(j)) * s.channels];
        sums[(i * s.x.count + j) * kBlock<T>] += sum;
      }
}

// Of `images` maps, `step` apart.
template <class T>
void differentiate_cells(const Plan<T>& plan, const T* grad, const T* input, int64_t step, int64_t images,
                         int64_t count, T* work, T* out) {
  constexpr int W = kWidth<T>, R = 2 * kPieceVectors<T>;
  const int64_t taps = plan.shape.taps();
  for (int64_t t = 0; t < taps * kBlock<T>; ++t) work[t] = 0;
  for (int64_t n = 0; n < images; ++n, grad += step, input += step) {
    int64_t c = count / (R * W) * (R * W);
    if (c) differentiate_block<R>(plan, grad, input, c, work);
    for (; c + W <= count; c += W) differentiate_block<1>(plan, grad + c, input + c, W, work + c);
    for (; c < count; ++c) differentiate_channel(plan, grad + c, input + c, work + c);
  }
  for (int64_t c = 0; c < count; ++c)
    for (int64_t t = 0; t < taps; ++t) out[c * taps + t] = work[t * kBlock<T> + c];
}
