// Bilinear and nearest sampling of maps at points, and its gradients; see segops/reference/point_sample.py.
//
// What a point reads of a map is worked out once, as a stencil, and used for all channels. A map in planes (NCHW) is
// sampled plane by plane; its stencils are in the order of rows then, so that a plane streams through the cache. A map
// in cells (channels_last) is sampled point by point, vectorised over channels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "segops/buffer.h"
#include "segops/grid_point.h"
#include "segops/isa.h"
#include "segops/parallel.h"

namespace segops {

constexpr int64_t kOutside = -1;    // a point whose value is 0 everywhere
constexpr int64_t kUndefined = -2;  // or NaN
constexpr int64_t kFewChannels = 8;
constexpr int kPlanes = 4;  // side by side: a stencil is then loaded once for four planes

// cell, cell + right, cell + down, cell + down + right, each times its weight; K sets of weights. Where fewer cells are
// in bounds the offsets are 0 and the weight is shared out: halves and quarters are exact, and no cell is read that the
// point does not touch, which might hold an infinity.
template <class T, int K>
struct Stencil {
  int64_t point, cell, right, down;
  T weight[K][4];
};

template <class T, int K>
Stencil<T, K> stencil(int64_t point, const Taps<T>& taps) {
  Stencil<T, K> s{point, taps.defined ? kOutside : kUndefined, 0, 0, {}};
  if (taps.count == 0) return s;
  s.cell = taps.index[0];
  if (taps.count > 1) s.right = taps.index[1] - s.cell;
  if (taps.count > 2) s.down = taps.index[2] - s.cell;
  const T share = T(taps.count) / 4;
  for (int k = 0; k < 4; ++k) {
    const int tap = k % taps.count;
    if constexpr (K == 1) {
      s.weight[0][k] = share * taps.weight[tap];
    } else {
      s.weight[0][k] = share * taps.along_x[tap];
      s.weight[1][k] = share * taps.along_y[tap];
    }
  }
  return s;
}

// Sizes of one map of a batch.
struct MapShape {
  int64_t channels, height, width;
  int64_t cells() const { return height * width; }
};

#define SEGOPS_ISA_FILE "segops/point_sample_isa.h"
#include "segops/foreach_isa.h"

// The stencils of `batch` times `points` points on one map: K = 1 for the value, 2 for its derivatives.
template <class T, int K>
class Stencils {
 public:
  Stencils(const T* xy, int64_t batch, int64_t points, const MapShape& map, const Grid& grid, Parallel& parallel)
      : points_(points), all_(batch * points) {
    parallel.range(batch * points, 1024, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        all_[i] = stencil<T, K>(i % points, taps(xy[2 * i], xy[2 * i + 1], map.height, map.width, grid));
    });
  }

  // By rows of the map, those without a cell last.
  void sort(const MapShape& map, int64_t batch, Parallel& parallel) {
    Buffer<Stencil<T, K>> sorted(all_.size());
    parallel.range(batch, 1, [&](int64_t begin, int64_t end) {
      Buffer<int64_t> place(map.height + 2);
      for (int64_t n = begin; n < end; ++n) {
        const auto row = [&](const Stencil<T, K>& s) { return s.cell < 0 ? map.height : s.cell / map.width; };
        const Stencil<T, K>* from = of(n);
        std::fill_n(place.data(), place.size(), int64_t(0));
        for (int64_t i = 0; i < points_; ++i) ++place[row(from[i]) + 1];
        for (int64_t r = 0; r <= map.height; ++r) place[r + 1] += place[r];
        for (int64_t i = 0; i < points_; ++i) sorted[n * points_ + place[row(from[i])]++] = from[i];
      }
    });
    all_ = std::move(sorted);
  }

  const Stencil<T, K>* of(int64_t n) const { return all_.data() + n * points_; }

 private:
  int64_t points_;
  Buffer<Stencil<T, K>> all_;
};

// One map of a batch; `cells` says that the channels of a cell lie together.
template <class T>
struct Map {
  const T* data;
  MapShape shape;
  bool cells;
  const T* image(int64_t n) const { return data + n * shape.channels * shape.cells(); }
};

// body(n, begin, end): ranges of each image's points.
template <class Body>
void point_ranges(int64_t batch, int64_t points, int64_t work, Parallel& parallel, const Body& body) {
  constexpr int64_t kBlock = 64;
  const int64_t blocks = (points + kBlock - 1) / kBlock;
  parallel.range(batch * blocks, std::max<int64_t>(1, 8192 / (kBlock * work)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {  // as long as possible, which needs fewer passes over a plane
      const int64_t n = i / blocks, first = i % blocks, last = std::min(blocks, first + end - i);
      body(n, first * kBlock, std::min(points, last * kBlock));
      i += last - first;
    }
  });
}

// To out, the first of the map's channels in (batch, all channels, points); `stride` is between images.
template <class T>
void sample_points(const T* xy, int64_t batch, int64_t points, const Map<T>& map, const Grid& grid, T* out,
                   int64_t stride, Parallel& parallel) {
  const MapShape& shape = map.shape;
  const int64_t channels = shape.channels, cells = shape.cells();
  if (!map.cells && channels < kFewChannels)  // fewer than a table of stencils would be worth
    return point_ranges(batch, points, channels + 8, parallel, [&](int64_t n, int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        const T* point = xy + 2 * (n * points + p);
        const Taps<T> at = taps(point[0], point[1], shape.height, shape.width, grid);
        for (int64_t c = 0; c < channels; ++c) out[n * stride + c * points + p] = sample(at, map.image(n) + c * cells);
      }
    });
  Stencils<T, 1> stencils(xy, batch, points, shape, grid, parallel);
  if (map.cells)
    return point_ranges(batch, points, channels, parallel, [&](int64_t n, int64_t begin, int64_t end) {
      SEGOPS_BY_ISA(sample_cells<T>)
      (stencils.of(n) + begin, end - begin, map.image(n), channels, out + n * stride, points);
    });
  stencils.sort(shape, batch, parallel);
  const int64_t groups = (channels + kPlanes - 1) / kPlanes;
  const int64_t grain = std::max<int64_t>(1, 8192 / (kPlanes * points));
  parallel.range(batch * groups, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / groups, c = i % groups * kPlanes;
      SEGOPS_BY_ISA(sample_planes<T>)
      (stencils.of(n), points, map.image(n) + c * cells, cells, int(std::min<int64_t>(kPlanes, channels - c)),
       out + n * stride + c * points);
    }
  });
}

// The gradient of a map, zeros included: every channel is written by one thread, in a fixed order of the points.
// `stride` is between the images of grad, (batch, channels, points).
template <class T>
void scatter_points(const T* grad, int64_t stride, const T* xy, int64_t batch, int64_t points, const MapShape& shape,
                    bool in_cells, const Grid& grid, T* out, Parallel& parallel) {
  const int64_t channels = shape.channels, cells = shape.cells(), image = channels * cells;
  Stencils<T, 1> stencils(xy, batch, points, shape, grid, parallel);
  if (!in_cells) {
    stencils.sort(shape, batch, parallel);
    return parallel.range(batch * channels, 1 + 16384 / (cells + points), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / channels, c = i % channels;
        SEGOPS_BY_ISA(scatter_plane<T>)
        (stencils.of(n), points, grad + n * stride + c * points, out + n * image + c * cells, cells);
      }
    });
  }
  parallel.range(batch * image, 1 << 16, [&](int64_t begin, int64_t end) {
    std::memset(out + begin, 0, sizeof(T) * (end - begin));  // all bits 0: the number 0
  });
  const int64_t pieces = std::clamp<int64_t>((parallel.threads() + batch - 1) / batch, 1, (channels + 15) / 16);
  parallel.range(batch * pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / pieces, piece = i % pieces;
      const int64_t first = channels * piece / pieces, last = channels * (piece + 1) / pieces;
      SEGOPS_BY_ISA(scatter_cells<T>)
      (stencils.of(n), points, grad + n * stride, out + n * image, channels, first, last);
    }
  });
}

// Adds what one map contributes to the gradient of the points, out (batch, points, 2): a point is summed by one thread,
// over the channels in their order. grad begins with the map's first channel; `stride` is between its images.
template <class T>
void slope_points(const T* grad, int64_t stride, const T* xy, int64_t batch, int64_t points, const Map<T>& map,
                  const Grid& grid, T* out, Parallel& parallel) {
  const MapShape& shape = map.shape;
  Stencils<T, 2> stencils(xy, batch, points, shape, grid, parallel);
  if (!map.cells) stencils.sort(shape, batch, parallel);
  point_ranges(batch, points, shape.channels, parallel, [&](int64_t n, int64_t begin, int64_t end) {
    const auto* s = stencils.of(n) + begin;
    const T* g = grad + n * stride;
    T* to = out + 2 * n * points;
    if (map.cells)
      SEGOPS_BY_ISA(slope_cells<T>)(s, end - begin, g, points, map.image(n), shape.channels, to);
    else
      SEGOPS_BY_ISA(slope_planes<T>)(s, end - begin, g, points, map.image(n), shape.cells(), shape.channels, to);
  });
}

}  // namespace segops
