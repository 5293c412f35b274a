// No include guard: compiled once for each instruction set (see foreach_isa.h) by point_sample.h, which explains
// stencils, planes and cells.

constexpr int kTile = 16;         // points, a cache line of results in each channel
constexpr int kTileWidth = 256;   // channels
constexpr int64_t kZeros = 4096;  // elements zeroed ahead of the points that are added to them

// Reads planes line by line a stretch ahead of the points, which come row by row: the processor fetches a sequence
// several times faster than it fetches what points ask for. Not worth it where they leave out most of the lines.
template <class T, int kCount>
struct Stream {
  static constexpr int64_t kStretch = 8192, kLine = 64 / sizeof(T);
  const T* planes;
  int64_t size, read;

  Stream(const T* planes_in, int64_t size_in, int64_t points)
      : planes(planes_in), size(size_in), read(2 * kLine * points < size_in ? size_in : 0) {}

  template <int K>
  SEGOPS_INLINE_MEMBER void reach(const Stencil<T, K>& s) {
    const int64_t last = s.cell + s.down + s.right;
    if (last < read) return;
    const int64_t begin = s.cell > read ? s.cell : read, end = last + kStretch < size ? last + kStretch : size;
    for (int64_t i = begin; i < end; i += kLine)  // all planes in turn: each is a sequence of its own
      for (int k = 0; k < kCount; ++k) (void)*static_cast<const volatile T*>(planes + k * size + i);
    read = end;
  }
};

template <class T, int kCount>
SEGOPS_INLINE void sample_side_by_side(const Stencil<T, 1>* stencils, int64_t points, const T* planes, int64_t size,
                                       T* out) {
  Stream<T, kCount> stream(planes, size, points);
  int64_t i = 0;
  for (; i < points && stencils[i].cell >= 0; ++i) {
    const Stencil<T, 1> s = stencils[i];
    stream.reach(s);
    const T *a = planes + s.cell, *b = a + s.right, *c = a + s.down, *d = c + s.right;
    T* o = out + s.point;
#pragma GCC unroll 4
    for (int k = 0; k < kCount; ++k) {
      const int64_t p = k * size;
      o[k * points] = s.weight[0][0] * a[p] + s.weight[0][1] * b[p] + s.weight[0][2] * c[p] + s.weight[0][3] * d[p];
    }
  }
  for (; i < points; ++i)
    for (int k = 0; k < kCount; ++k)
      out[k * points + stencils[i].point] = stencils[i].cell == kOutside ? T(0) : T(__builtin_nan(""));
}

// `count` planes of `size` cells, at most kPlanes, to as many rows of out.
template <class T>
void sample_planes(const Stencil<T, 1>* stencils, int64_t points, const T* planes, int64_t size, int count, T* out) {
  if (count == kPlanes) return sample_side_by_side<T, kPlanes>(stencils, points, planes, size, out);
  for (int k = 0; k < count; ++k)
    sample_side_by_side<T, 1>(stencils, points, planes + k * size, size, out + k * points);
}

// The plane is zeroed just ahead of the points, which come row by row.
template <class T>
void scatter_plane(const Stencil<T, 1>* stencils, int64_t points, const T* grad, T* plane, int64_t size) {
  int64_t zeroed = 0;
  const auto zero_to = [&](int64_t end) {
    __builtin_memset(plane + zeroed, 0, sizeof(T) * (end - zeroed));
    zeroed = end;
  };
  for (int64_t i = 0; i < points && stencils[i].cell >= 0; ++i) {
    const Stencil<T, 1>& s = stencils[i];
    const int64_t last = s.cell + s.down + s.right;
    if (last >= zeroed) zero_to(last + kZeros < size ? last + kZeros : size);
    const T g = grad[s.point];
    T *a = plane + s.cell, *c = a + s.down;
    a[0] += s.weight[0][0] * g;
    a[s.right] += s.weight[0][1] * g;
    c[0] += s.weight[0][2] * g;
    c[s.right] += s.weight[0][3] * g;
  }
  zero_to(size);
}

template <class T, int kCount>
SEGOPS_INLINE void slope_side_by_side(const Stencil<T, 2>* stencils, int64_t count, const T* grad, int64_t points,
                                      const T* planes, int64_t size, T* out) {
  Stream<T, kCount> stream(planes, size, count);
  for (int64_t i = 0; i < count && stencils[i].cell >= 0; ++i) {
    const Stencil<T, 2> s = stencils[i];
    stream.reach(s);
    const T *a = planes + s.cell, *b = a + s.right, *c = a + s.down, *d = c + s.right, *g = grad + s.point;
    T v[4] = {};
#pragma GCC unroll 4
    for (int k = 0; k < kCount; ++k) {
      const int64_t p = k * size;
      const T h = g[k * points];
      v[0] += h * a[p];
      v[1] += h * b[p];
      v[2] += h * c[p];
      v[3] += h * d[p];
    }
    for (int k = 0; k < 2; ++k)
      out[2 * s.point + k] +=
          s.weight[k][0] * v[0] + s.weight[k][1] * v[1] + s.weight[k][2] * v[2] + s.weight[k][3] * v[3];
  }
}

// Adds to out (points, 2) the derivatives of the points of these stencils, a part of all.
template <class T>
void slope_planes(const Stencil<T, 2>* stencils, int64_t count, const T* grad, int64_t points, const T* planes,
                  int64_t size, int64_t channels, T* out) {
  int64_t c = 0;
  for (; c + kPlanes <= channels; c += kPlanes)
    slope_side_by_side<T, kPlanes>(stencils, count, grad + c * points, points, planes + c * size, size, out);
  for (; c < channels; ++c)
    slope_side_by_side<T, 1>(stencils, count, grad + c * points, points, planes + c * size, size, out);
}

// body(point, rows, first channel, channels) for tiles of (count, channels first to last).
template <class Body>
SEGOPS_INLINE void tiles(int64_t count, int64_t first, int64_t last, const Body& body) {
  for (int64_t i = 0; i < count; i += kTile)
    for (int64_t c = first; c < last; c += kTileWidth)
      body(i, int(count - i < kTile ? count - i : kTile), c, int(last - c < kTileWidth ? last - c : kTileWidth));
}

// The image is (cells, channels); consecutive points of out, (channels, points).
template <class T>
void sample_cells(const Stencil<T, 1>* stencils, int64_t count, const T* image, int64_t channels, T* out,
                  int64_t points) {
  tiles(count, 0, channels, [&](int64_t first, int rows, int64_t channel, int width) {
    T tile[kTile][kTileWidth];
    for (int i = 0; i < rows; ++i) {
      const Stencil<T, 1>& s = stencils[first + i];
      if (s.cell < 0) {
        for (int j = 0; j < width; ++j) tile[i][j] = s.cell == kOutside ? T(0) : T(__builtin_nan(""));
        continue;
      }
      const T* a = image + s.cell * channels + channel;
      const T *b = a + s.right * channels, *c = a + s.down * channels, *d = c + s.right * channels;
      const T* w = s.weight[0];
      for (int j = 0; j < width; ++j) tile[i][j] = w[0] * a[j] + w[1] * b[j] + w[2] * c[j] + w[3] * d[j];
    }
    for (int j = 0; j < width; ++j)
      for (int i = 0; i < rows; ++i) out[(channel + j) * points + stencils[first].point + i] = tile[i][j];
  });
}

// The same tile of grad, (channels, points).
template <class T>
SEGOPS_INLINE void load_tile(T (*tile)[kTileWidth], const T* grad, int64_t points, int rows, int width) {
  for (int j = 0; j < width; ++j)
    for (int i = 0; i < rows; ++i) tile[i][j] = grad[j * points + i];
}

// Adds to the channels from first to last of an image of zeros.
template <class T>
void scatter_cells(const Stencil<T, 1>* stencils, int64_t points, const T* grad, T* image, int64_t channels,
                   int64_t first, int64_t last) {
  tiles(points, first, last, [&](int64_t point, int rows, int64_t channel, int width) {
    T tile[kTile][kTileWidth];
    load_tile(tile, grad + channel * points + point, points, rows, width);
    for (int i = 0; i < rows; ++i) {
      const Stencil<T, 1>& s = stencils[point + i];
      if (s.cell < 0) continue;
      const int64_t cells[4] = {s.cell, s.cell + s.right, s.cell + s.down, s.cell + s.down + s.right};
      for (int k = 0; k < 4; ++k) {
        T* to = image + cells[k] * channels + channel;
        for (int j = 0; j < width; ++j) to[j] += s.weight[0][k] * tile[i][j];
      }
    }
  });
}

template <class T>
void slope_cells(const Stencil<T, 2>* stencils, int64_t count, const T* grad, int64_t points, const T* image,
                 int64_t channels, T* out) {
  using V = Wide<T>;
  constexpr int kLanes = Lanes<V>::kCount;
  tiles(count, 0, channels, [&](int64_t first, int rows, int64_t channel, int width) {
    T tile[kTile][kTileWidth];
    load_tile(tile, grad + channel * points + stencils[first].point, points, rows, width);
    for (int i = 0; i < rows; ++i) {
      const Stencil<T, 2>& s = stencils[first + i];
      if (s.cell < 0) continue;
      const int64_t cells[4] = {s.cell, s.cell + s.right, s.cell + s.down, s.cell + s.down + s.right};
      V sums[4] = {};
      int j = 0;
      for (; j + kLanes <= width; j += kLanes) {
        const V g = load<V>(tile[i] + j);
        for (int k = 0; k < 4; ++k) sums[k] += g * load<V>(image + cells[k] * channels + channel + j);
      }
      for (int k = 0; k < 4; ++k) {
        T sum = fold(sums[k], Plus());
        for (int l = j; l < width; ++l) sum += tile[i][l] * image[cells[k] * channels + channel + l];
        for (int d = 0; d < 2; ++d) out[2 * s.point + d] += s.weight[d][k] * sum;
      }
    }
  });
}
