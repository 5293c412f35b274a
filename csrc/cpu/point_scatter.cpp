// Values written back to the cells of a map; see segops/reference/point_scatter.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "segops/torch_errors.h"
#include "segops/torch_parallel.h"
#include "segops/torch_tensor.h"

namespace {

using segops::data;
using segops::mutable_data;
using segops::Parallel;
using segops::require;
using segops::ScalarType;
using segops::Tensor;

// body(T{}) with an integer of the size of an element: nothing is computed with it, so any floating dtype will do.
template <class Body>
void by_size(const Tensor& t, const Body& body) {
  switch (t.element_size()) {
    case 2:
      return body(uint16_t{});
    case 4:
      return body(uint32_t{});
    case 8:
      return body(uint64_t{});
    default:
      throw std::invalid_argument("input: expected elements of 2, 4 or 8 bytes");
  }
}

struct Shape {
  int64_t batch, channels, cells, points;

  // Throws if an index is no cell of the map.
  Shape(const Tensor& map, const Tensor& indices) {
    require(map.dim() == 4 && indices.dim() == 2 && indices.scalar_type() == ScalarType::Long &&
                indices.size(0) == map.size(0),
            "indices: expected (N, P), int64, to go with (N, C, H, W)");
    batch = map.size(0);
    channels = map.size(1);
    cells = map.size(2) * map.size(3);
    points = indices.size(1);
    if (indices.numel() == 0) return;
    const int64_t* first = data<int64_t>(indices);
    int64_t low = first[0], high = first[0];
    for (int64_t i = 0; i < indices.numel(); ++i) {
      low = std::min(low, first[i]);
      high = std::max(high, first[i]);
    }
    if (low < 0 || high >= cells)
      throw std::invalid_argument("indices: expected cells from 0 to " + std::to_string(cells - 1) + ", got " +
                                  std::to_string(low) + " to " + std::to_string(high));
  }
};

// Copies the planes (unless out has them already) and writes the values, in order, while a plane is in the cache.
template <class T>
void scatter(const T* input, const int64_t* indices, const T* values, T* out, const Shape& s, Parallel& parallel) {
  const int64_t planes = s.batch * s.channels;
  const int64_t pieces = std::clamp<int64_t>(parallel.threads() / planes, 1, 1 + s.cells / 4096);  // of a plane
  const int64_t grain = 1 + 32768 / (s.cells / pieces + s.points + 1);
  parallel.range(planes * pieces, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t plane = i / pieces, piece = i % pieces;
      const int64_t first = s.cells * piece / pieces, last = s.cells * (piece + 1) / pieces;
      T* to = out + plane * s.cells;
      if (input) std::memcpy(to + first, input + plane * s.cells + first, sizeof(T) * (last - first));
      const int64_t* cell = indices + plane / s.channels * s.points;
      const T* value = values + plane * s.points;
      for (int64_t p = 0; p < s.points; ++p)
        if (cell[p] >= first && cell[p] < last) to[cell[p]] = value[p];
    }
  });
}

Tensor point_scatter(Tensor input, Tensor indices, Tensor values) {
  indices = torch::stable::contiguous(indices);
  values = torch::stable::contiguous(values);
  const Shape shape(input, indices);
  require(values.dim() == 3 && values.size(0) == shape.batch && values.size(1) == shape.channels &&
              values.size(2) == shape.points && values.scalar_type() == input.scalar_type(),
          "values: expected (N, C, P) in the dtype of input");
  const bool copy = input.is_contiguous();  // else contiguous() makes the copy
  Tensor out = copy ? segops::fresh(input, {input.size(0), input.size(1), input.size(2), input.size(3)})
                    : torch::stable::contiguous(input);
  if (out.numel() == 0) return out;
  segops::TorchParallel parallel;
  by_size(input, [&]<class T>(T) {
    scatter<T>(copy ? data<T>(input) : nullptr, data<int64_t>(indices), data<T>(values), mutable_data<T>(out), shape,
               parallel);
  });
  return out;
}

// For each point, whether no later one has the same cell.
segops::Buffer<bool> winners(const int64_t* indices, const Shape& s, Parallel& parallel) {
  segops::Buffer<bool> won(s.batch * s.points);
  parallel.range(s.batch, 1 + 16384 / (s.points + s.cells / 64 + 1), [&](int64_t begin, int64_t end) {
    segops::Buffer<uint64_t> taken((s.cells + 63) / 64);
    for (int64_t n = begin; n < end; ++n) {
      std::fill_n(taken.data(), taken.size(), uint64_t(0));
      for (int64_t i = (n + 1) * s.points - 1; i >= n * s.points; --i) {
        uint64_t& word = taken[indices[i] / 64];
        const uint64_t bit = uint64_t(1) << (indices[i] % 64);
        won[i] = !(word & bit);
        word |= bit;
      }
    }
  });
  return won;
}

Tensor point_scatter_backward(Tensor grad, Tensor indices) {
  grad = torch::stable::contiguous(grad);
  indices = torch::stable::contiguous(indices);
  const Shape s(grad, indices);
  Tensor out = segops::fresh(grad, {s.batch, s.channels, s.points});
  if (out.numel() == 0) return out;
  segops::TorchParallel parallel;
  const int64_t* cells = data<int64_t>(indices);
  const auto won = winners(cells, s, parallel);
  by_size(grad, [&]<class T>(T) {
    const T* from = data<T>(grad);
    T* to = mutable_data<T>(out);
    parallel.range(s.batch * s.channels, 1 + 8192 / s.points, [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane) {
        const int64_t first = plane / s.channels * s.points;
        for (int64_t p = 0; p < s.points; ++p)  // all bits 0: the number 0
          to[plane * s.points + p] = won[first + p] ? from[plane * s.cells + cells[first + p]] : T(0);
      }
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("point_scatter", SEGOPS_BOX(point_scatter));
  m.impl("point_scatter_backward", SEGOPS_BOX(point_scatter_backward));
}
