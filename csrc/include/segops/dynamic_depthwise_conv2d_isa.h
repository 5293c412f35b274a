// No include guard: compiled once for each instruction set (see foreach_isa.h) by dynamic_depthwise_conv2d.h, which
// explains Plan, Piece and the padded planes.

// A vector of outputs at a time, all its taps in a register.
template <class T>
void convolve_plane(const Plan<T>& plan, const T* padded, const T* kernel, T* out) {
  using V = Widest<T>;
  const Shape& s = plan.shape;
  const int64_t width = s.x.size, stride = s.padded_width<T>();
  const Piece *pieces = plan.begin(), *end = pieces + plan.piece_count();
  for (int64_t y = 0; y < s.y.size; ++y, out += width) {
    const Range rows = plan.row_taps()[y];
    for (const Piece* p = pieces; p != end; ++p) {
      V sum{};
      for (int64_t i = rows.begin; i < rows.end; ++i) {
        const T* from = padded + (y + s.y.shift(i)) * stride + p->x;
        const T* k = kernel + i * s.x.count;
        for (int64_t j = p->taps.begin; j < p->taps.end; ++j) sum = fma(splat<V>(k[j]), load<V>(from + s.x.shift(j)), sum);
      }
      if (width >= kLanes<T>)
        store(out + p->x, sum);
      else
        __builtin_memcpy(out, &sum, width * sizeof(T));
    }
  }
}

// The lanes of a gradient that no piece before had.
template <class T>
SEGOPS_INLINE Widest<T> piece_of(const T* row, int64_t width, const Piece& p) {
  using V = Widest<T>;
  V v{};
  if (width < kLanes<T>) {
    __builtin_memcpy(&v, row, width * sizeof(T));
    return v;
  }
  v = load<V>(row + p.x);
  for (int lane = 0; lane < p.again; ++lane) v[lane] = 0;
  return v;
}

// One tap at a time, in four sums, of rows of their own.
template <class T>
void differentiate_plane(const Plan<T>& plan, const T* grad, const T* padded, T* out) {
  using V = Widest<T>;
  constexpr int kSums = 4;
  const Shape& s = plan.shape;
  const int64_t width = s.x.size, stride = s.padded_width<T>();
  for (int64_t i = 0; i < s.y.count; ++i) {
    const Range rows = s.y.outputs(i);
    for (int64_t j = 0; j < s.x.count; ++j) {
      V sums[kSums] = {};
      for (const Piece *p = plan.begin(), *end = p + plan.piece_count(); p != end; ++p) {
        if (j < p->taps.begin || j >= p->taps.end) continue;
        const T* from = padded + s.y.shift(i) * stride + s.x.shift(j) + p->x;
        int64_t y = rows.begin;
        for (; y + kSums <= rows.end; y += kSums)
#pragma GCC unroll 4
          for (int q = 0; q < kSums; ++q)
            sums[q] = fma(piece_of(grad + (y + q) * width, width, *p), load<V>(from + (y + q) * stride), sums[q]);
        for (; y < rows.end; ++y) sums[0] = fma(piece_of(grad + y * width, width, *p), load<V>(from + y * stride), sums[0]);
      }
      out[i * s.x.count + j] += fold((sums[0] + sums[1]) + (sums[2] + sums[3]), Plus{});
    }
  }
}

// A pixel at a time, its taps in R registers of channels; kernels (taps, block).
template <int R, class T>
void convolve_block(const Plan<T>& plan, const T* input, const T* kernels, T* out) {
  using V = Widest<T>;
  constexpr int64_t kBlock = kBlockVectors * kLanes<T>;
  const Shape& s = plan.shape;
  const int64_t channels = s.channels, width = s.x.size;
  for (int64_t y = 0; y < s.y.size; ++y)
    for (int64_t x = 0; x < width; ++x, out += channels) {
      const Range rows = plan.row_taps()[y], columns = plan.column_taps()[x];
      V sums[R] = {};
      for (int64_t i = rows.begin; i < rows.end; ++i) {
        const T* from = input + ((y + s.y.shift(i)) * width + x) * channels;
        const T* k = kernels + i * s.x.count * kBlock;
        for (int64_t j = columns.begin; j < columns.end; ++j)
#pragma GCC unroll 2
          for (int r = 0; r < R; ++r)
            sums[r] = fma(load<V>(k + j * kBlock + r * kLanes<T>),
                          load<V>(from + s.x.shift(j) * channels + r * kLanes<T>), sums[r]);
      }
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) store(out + r * kLanes<T>, sums[r]);
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
          sum += kernel[i * s.x.count + j] *
                 input[((y + s.y.shift(i)) * s.x.size + x + s.x.shift(j)) * s.channels];
      *out = sum;
    }
}

template <class T>
void convolve_cells(const Plan<T>& plan, const T* input, const T* kernels, int64_t count, T* work, T* out) {
  constexpr int64_t kBlock = kBlockVectors * kLanes<T>;
  const int64_t taps = plan.shape.taps();
  for (int64_t t = 0; t < taps; ++t)
    for (int64_t c = 0; c < count; ++c) work[t * kBlock + c] = kernels[c * taps + t];
  int64_t c = 0;
  if (count == kBlock) {
    convolve_block<kBlockVectors>(plan, input, work, out);
    return;
  }
  for (; c + kLanes<T> <= count; c += kLanes<T>) convolve_block<1>(plan, input + c, work + c, out + c);
  for (; c < count; ++c) convolve_channel(plan, input + c, kernels + c * taps, out + c);
}

// sums (taps, block) += grad times input, R registers of channels of one image.
template <int R, class T>
void differentiate_block(const Plan<T>& plan, const T* grad, const T* input, T* sums) {
  using V = Widest<T>;
  constexpr int64_t kBlock = kBlockVectors * kLanes<T>;
  const Shape& s = plan.shape;
  const int64_t channels = s.channels, width = s.x.size;
  for (int64_t y = 0; y < s.y.size; ++y) {
    const Range rows = plan.row_taps()[y];
    for (int64_t i = rows.begin; i < rows.end; ++i)
      for (int64_t j = 0; j < s.x.count; ++j) {
        const Range columns = s.x.outputs(j);
        const T* g = grad + (y * width + columns.begin) * channels;
        const T* from = input + ((y + s.y.shift(i)) * width + columns.begin + s.x.shift(j)) * channels;
        V even[R] = {}, odd[R] = {};
        int64_t x = columns.end - columns.begin;
        for (; x >= 2; x -= 2, g += 2 * channels, from += 2 * channels)
#pragma GCC unroll 2
          for (int r = 0; r < R; ++r) {
            even[r] = fma(load<V>(g + r * kLanes<T>), load<V>(from + r * kLanes<T>), even[r]);
            odd[r] = fma(load<V>(g + channels + r * kLanes<T>), load<V>(from + channels + r * kLanes<T>), odd[r]);
          }
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) {
          if (x) even[r] = fma(load<V>(g + r * kLanes<T>), load<V>(from + r * kLanes<T>), even[r]);
          T* to = sums + (i * s.x.count + j) * kBlock + r * kLanes<T>;
          store(to, load<V>(to) + (even[r] + odd[r]));
        }
      }
  }
}

template <class T>
void differentiate_channel(const Plan<T>& plan, const T* grad, const T* input, T* sums) {
  constexpr int64_t kBlock = kBlockVectors * kLanes<T>;
  const Shape& s = plan.shape;
  for (int64_t y = 0; y < s.y.size; ++y)
    for (int64_t i = plan.row_taps()[y].begin; i < plan.row_taps()[y].end; ++i)
      for (int64_t j = 0; j < s.x.count; ++j) {
        const Range columns = s.x.outputs(j);
        T sum = 0;
        for (int64_t x = columns.begin; x < columns.end; ++x)
          sum += grad[(y * s.x.size + x) * s.channels] *
                 input[((y + s.y.shift(i)) * s.x.size + x + s.x.shift(j)) * s.channels];
        sums[(i * s.x.count + j) * kBlock] += sum;
      }
}

// Of `images` maps, `step` apart.
template <class T>
void differentiate_cells(const Plan<T>& plan, const T* grad, const T* input, int64_t step, int64_t images,
                         int64_t count, T* work, T* out) {
  constexpr int64_t kBlock = kBlockVectors * kLanes<T>;
  const int64_t taps = plan.shape.taps();
  for (int64_t t = 0; t < taps * kBlock; ++t) work[t] = 0;
  for (int64_t n = 0; n < images; ++n, grad += step, input += step) {
    int64_t c = 0;
    if (count == kBlock) {
      differentiate_block<kBlockVectors>(plan, grad, input, work);
      continue;
    }
    for (; c + kLanes<T> <= count; c += kLanes<T>) differentiate_block<1>(plan, grad + c, input + c, work + c);
    for (; c < count; ++c) differentiate_channel(plan, grad + c, input + c, work + c);
  }
  for (int64_t c = 0; c < count; ++c)
    for (int64_t t = 0; t < taps; ++t) out[c * taps + t] = work[t * kBlock + c];
}
