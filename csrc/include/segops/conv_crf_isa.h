// No include guard: compiled once for each instruction set (see foreach_isa.h) by conv_crf.h, which explains Shape,
// Tile, Tables and Sums. All functions take a vector of pixels of a tile; `values`, `grad` and `colors` point to the
// corner of its window in the first plane.

constexpr int kChannels = 8;  // sums in registers

// likeness[d] = exp(-|c(p) - c(p + d)|^2 / 2) for each place d of the window.
template <class T>
void liken(const Shape& s, const T* colors, T* likeness) {
  using V = Wide<T>;
  const int64_t stride = s.tile_stride(), centre = s.window_height / 2 * stride + s.window_width / 2;
  for (int64_t i = 0; i < s.window_height; ++i)
    for (int64_t j = 0; j < s.window_width; ++j, likeness += kWidth<T>) {
      V squares{};
      const T* plane = colors;
      for (int64_t k = 0; k < s.depth; ++k, plane += s.tile_plane()) {
        const V difference = load<V>(plane + centre) - load<V>(plane + i * stride + j);
        squares = fma(difference, difference, squares);
      }
      store(likeness, exp(squares * T(-0.5)));
    }
}

template <class T>
SEGOPS_INLINE void store_part(T* to, Wide<T> v, int64_t count) {
  if (count >= kWidth<T>)
    store(to, v);
  else
    __builtin_memcpy(to, &v, count * sizeof(T));
}

// The sums of N channels, weighted.
template <int N, class T>
void gather(const Shape& s, const T* values, const T* weights, T* out, int64_t count) {
  using V = Wide<T>;
  const int64_t plane = s.tile_plane();
  V sums[N] = {};
  for (int64_t i = 0; i < s.window_height; ++i, values += s.tile_stride())
    for (int64_t j = 0; j < s.window_width; ++j, weights += kWidth<T>) {
      const V weight = load<V>(weights);
#pragma GCC unroll 8
      for (int c = 0; c < N; ++c) sums[c] = fma(weight, load<V>(values + c * plane + j), sums[c]);
    }
#pragma GCC unroll 8
  for (int c = 0; c < N; ++c) store_part(out + c * s.pixels(), sums[c], count);
}

// products[d] += the sum over N channels of here(p) there(p + d).
template <int N, class T>
void multiply(const Shape& s, const T* here, const T* there, T* products) {
  using V = Wide<T>;
  const int64_t plane = s.tile_plane(), stride = s.tile_stride();
  const T* centre = here + s.window_height / 2 * stride + s.window_width / 2;
  V factors[N];
#pragma GCC unroll 8
  for (int c = 0; c < N; ++c) factors[c] = load<V>(centre + c * plane);
  for (int64_t i = 0; i < s.window_height; ++i, there += stride)
    for (int64_t j = 0; j < s.window_width; ++j, products += kWidth<T>) {
      V sum = load<V>(products);
#pragma GCC unroll 8
      for (int c = 0; c < N; ++c) sum = fma(factors[c], load<V>(there + c * plane + j), sum);
      store(products, sum);
    }
}

// body<N>(first channel) for pieces of the channels of about the same size.
#define SEGOPS_EACH_CHANNELS(channels, body)                                                                  \
  for (int64_t left = (channels), pieces = (left + kChannels - 1) / kChannels, c = 0; pieces > 0; --pieces) { \
    const int64_t n = (left + pieces - 1) / pieces;                                                           \
    switch (n) {                                                                                              \
      case 1:                                                                                                 \
        body(1);                                                                                              \
        break;                                                                                                \
      case 2:                                                                                                 \
        body(2);                                                                                              \
        break;                                                                                                \
      case 3:                                                                                                 \
        body(3);                                                                                              \
        break;                                                                                                \
      case 4:                                                                                                 \
        body(4);                                                                                              \
        break;                                                                                                \
      case 5:                                                                                                 \
        body(5);                                                                                              \
        break;                                                                                                \
      case 6:                                                                                                 \
        body(6);                                                                                              \
        break;                                                                                                \
      case 7:                                                                                                 \
        body(7);                                                                                              \
        break;                                                                                                \
      default:                                                                                                \
        body(8);                                                                                              \
    }                                                                                                         \
    left -= n;                                                                                                \
    c += n;                                                                                                   \
  }

template <class T>
void message_tile(const Shape& s, const Tile& tile, const T* values, const T* colors, Tables<T> tables, T* weights,
                  T* out) {
  using V = Wide<T>;
  for (int64_t y = 0; y < tile.rows; ++y)
    for (int64_t x = 0; x < tile.columns; x += kWidth<T>) {
      const int64_t at = y * s.tile_stride() + x;
      liken(s, colors + at, weights);
      for (int64_t t = 0; t < s.window(); ++t) {
        T* weight = weights + t * kWidth<T>;
        store(weight, fma(splat<V>(tables.bilateral[t]), load<V>(weight), splat<V>(tables.spatial[t])));
      }
#define SEGOPS_BODY(N) \
  gather<N>(s, values + at + c * s.tile_plane(), weights, out + c * s.pixels() + y * s.width + x, tile.columns - x)
      SEGOPS_EACH_CHANNELS(s.channels, SEGOPS_BODY)
#undef SEGOPS_BODY
    }
}

// out[k] = the gradient of colour k; likeness and products as above, `back` with the parts of grad and values changed.
template <class T>
void descend(const Shape& s, const T* colors, const T* bilateral, const T* likeness, const T* products, const T* back,
             T* out, int64_t count) {
  using V = Wide<T>;
  const int64_t stride = s.tile_stride(), centre = s.window_height / 2 * stride + s.window_width / 2;
  for (int64_t k = 0; k < s.depth; ++k, colors += s.tile_plane(), out += s.pixels()) {
    V sum{};
    const V here = load<V>(colors + centre);
    for (int64_t t = 0; t < s.window(); ++t) {
      const T* there = colors + t / s.window_width * stride + t % s.window_width;
      const V both = fma(splat<V>(bilateral[t]), load<V>(products + t * kWidth<T>),
                         splat<V>(bilateral[s.window() - 1 - t]) * load<V>(back + t * kWidth<T>));
      sum = fma(both * load<V>(likeness + t * kWidth<T>), load<V>(there) - here, sum);
    }
    store_part(out, sum, count);
  }
}

template <class T>
void clear(T* p, int64_t count) {
  for (int64_t i = 0; i < count; i += kWidth<T>) store(p + i, Wide<T>{});
}

template <class T>
void differentiate_tile(const Shape& s, const Tile& tile, const T* grad, const T* values, const T* colors,
                        const T* bilateral, T* likeness, T* products, Sums<T>& sums, T* grad_colors) {
  using V = Wide<T>;
  const int64_t size = s.window() * kWidth<T>;
  T *back = products + size, *spatial = sums.spatial.data(), *weighted = sums.bilateral.data();
  clear(spatial, size);
  clear(weighted, size);
  for (int64_t y = 0; y < tile.rows; ++y)
    for (int64_t x = 0; x < tile.columns; x += kWidth<T>) {
      const int64_t at = y * s.tile_stride() + x;
      liken(s, colors + at, likeness);
      clear(products, 2 * size);
#define SEGOPS_BODY(N)                                                                        \
  multiply<N>(s, grad + at + c * s.tile_plane(), values + at + c * s.tile_plane(), products); \
  if (s.depth) multiply<N>(s, values + at + c * s.tile_plane(), grad + at + c * s.tile_plane(), back)
      SEGOPS_EACH_CHANNELS(s.channels, SEGOPS_BODY)
#undef SEGOPS_BODY
      for (int64_t i = 0; i < size; i += kWidth<T>) {
        const V product = load<V>(products + i);
        store(spatial + i, load<V>(spatial + i) + product);
        store(weighted + i, fma(product, load<V>(likeness + i), load<V>(weighted + i)));
      }
      descend(s, colors + at, bilateral, likeness, products, back, grad_colors + y * s.width + x, tile.columns - x);
    }
  double *total_spatial = sums.total_spatial.data(), *total_weighted = sums.total_bilateral.data();
  for (int64_t t = 0; t < s.window(); ++t) {
    for (int lane = 0; lane < kWidth<T>; ++lane) {
      total_spatial[t] += spatial[t * kWidth<T> + lane];
      total_weighted[t] += weighted[t * kWidth<T> + lane];
    }
  }
}
#undef SEGOPS_EACH_CHANNELS
