// Splat, blur and slice on the tables of a lattice's vertices, and what else is cheaper there than at points. See
// csrc/cuda/permutohedral_filter.cu, the one file that includes this.
#pragma once

#include "segops/hash_lattice.cuh"

namespace segops::gpu {
namespace {

// One chunk of entries and one label per thread. A vertex that began in an earlier chunk leaves its sum in `partial`;
// any other belongs to the chunk, and its sum goes to the table (add_partial completes it where it runs on).
__global__ void __launch_bounds__(kThreads)
    splat_chunks(const Entry* __restrict__ entries, const int32_t* __restrict__ chunk_vertex, Chunks chunks, int count,
                 int points, int vertices, const float* __restrict__ values, int images, int labels,
                 float* __restrict__ table, float* __restrict__ partial) {
  constexpr int kAtOnce = 4;  // loads in flight
  const int chunk = row();
  if (chunk >= count) return;
  const int begin = chunks.begin(chunk), end = chunks.end(chunk);
  const bool runs_on = begin > 0 && !entries[begin - 1].last();
  for (int image = blockIdx.y; image < images; image += gridDim.y)
    for (int label = threadIdx.x; label < labels; label += blockDim.x) {
      const float* value = values ? values + int64_t(image) * points * labels + label : nullptr;
      float* sums = table + (int64_t(image) * vertices + chunk_vertex[chunk]) * labels + label;
      float* out = runs_on ? partial + (int64_t(image) * count + chunk) * labels + label : sums;
      float sum = 0;
      bool open = false;
      for (int i = begin; i < end; i += kAtOnce) {
        Entry entry[kAtOnce];
        float term[kAtOnce];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) entry[j] = entries[min(i + j, end - 1)];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j)
          term[j] = entry[j].weight * (value ? value[int64_t(entry[j].point()) * labels] : 1.f);
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          if (i + j >= end) break;
          sum += term[j];
          open = !entry[j].last();
          if (open) continue;
          *out = sum;
          sums += labels;
          out = sums;
          sum = 0;
        }
      }
      if (open) *out = sum;
    }
}

__global__ void add_partial(const int32_t* __restrict__ begin, int vertices, Chunks chunks, int count,
                            const float* __restrict__ partial, int images, int labels, float* __restrict__ table) {
  const int vertex = row();
  if (vertex >= vertices) return;
  const int first = chunks.of(begin[vertex]), last = chunks.of(begin[vertex + 1] - 1);
  if (first == last) return;
  for (int image = blockIdx.y; image < images; image += gridDim.y)
    for (int label = threadIdx.x; label < labels; label += blockDim.x) {
      const int64_t at = (int64_t(image) * vertices + vertex) * labels + label;
      const float* rest = partial + int64_t(image) * count * labels + label;
      float sum = table[at];
#pragma unroll 4
      for (int chunk = first + 1; chunk <= last; ++chunk) sum += rest[int64_t(chunk) * labels];
      table[at] = sum;
    }
}

// (1/2, 1, 1/2) along one axis.
__global__ void blur_axis(const int32_t* __restrict__ before, const int32_t* __restrict__ after, int vertices,
                          const float* __restrict__ in, int images, int labels, float* __restrict__ out) {
  const int vertex = row();
  if (vertex >= vertices) return;
  const int b = before[vertex], a = after[vertex];
  for (int image = blockIdx.y; image < images; image += gridDim.y)
    for (int label = threadIdx.x; label < labels; label += blockDim.x) {
      const int64_t base = int64_t(image) * vertices * labels + label;
      const float sides =
          (b < 0 ? 0.f : in[base + int64_t(b) * labels]) + (a < 0 ? 0.f : in[base + int64_t(a) * labels]);
      out[base + int64_t(vertex) * labels] = in[base + int64_t(vertex) * labels] + 0.5f * sides;
    }
}

__global__ void mix_labels(const float* __restrict__ transposed, int vertices, const float* __restrict__ in, int images,
                           int labels, float* __restrict__ out) {
  const int vertex = row();
  if (vertex >= vertices) return;
  for (int image = blockIdx.y; image < images; image += gridDim.y)
    for (int label = threadIdx.x; label < labels; label += blockDim.x) {
      const int64_t base = (int64_t(image) * vertices + vertex) * labels;
      float sum = 0;
      for (int other = 0; other < labels; ++other)
        sum += transposed[int64_t(other) * labels + label] * in[base + other];
      out[base + label] = sum;
    }
}

__global__ void slice_points(const Corner* __restrict__ corners, int points, int size, int vertices,
                             const float* __restrict__ table, int images, int labels, float factor,
                             float* __restrict__ values) {
  const int p = row();
  if (p >= points) return;
  const Corner* mine = corners + int64_t(p) * size;
  for (int image = blockIdx.y; image < images; image += gridDim.y)
    for (int label = threadIdx.x; label < labels; label += blockDim.x) {
      const float* column = table + int64_t(image) * vertices * labels + label;
      float sum = 0;
#pragma unroll 4
      for (int r = 0; r < size; ++r) {
        const Corner corner = mine[r];
        sum += corner.weight * column[int64_t(corner.vertex) * labels];
      }
      values[(int64_t(image) * points + p) * labels + label] = factor * sum;
    }
}

// A lattice of several images holds them all in its numbering; one of a single image is gone through once for each.
int passes(const HashLattice& lattice, int64_t images) {
  require(lattice.images == 1 || lattice.images == images, "features: expected one image, or as many as values");
  return lattice.images == 1 ? int(images) : 1;
}

}  // namespace

VertexTables::VertexTables(const Place& place, const HashLattice& lattice, int64_t images, int64_t labels)
    : labels_(int(labels)) {
  require(images <= kMaxRows && labels <= kMaxRows, "values: expected at most 2^30 images and 2^30 channels");
  const int64_t width = passes(lattice, images) * labels;
  front_ = Buffer<float>(place, width * lattice.vertices);
  back_ = Buffer<float>(place, width * lattice.vertices);
  partial_ = Buffer<float>(place, width * lattice.chunk_count());
}

const float* VertexTables::filter(const Place& place, const HashLattice& lattice, const float* values, int64_t images,
                                  bool reverse) {
  const int count = passes(lattice, images), chunks = int(lattice.chunk_count()), vertices = lattice.vertices;
  launch(splat_chunks, shape_of(chunks, labels_, count), place, lattice.entries.data(), lattice.chunk_vertex.data(),
         lattice.chunks(), chunks, lattice.images * lattice.points, vertices, values, count, labels_, front_.data(),
         partial_.data());
  const Shape shape = shape_of(vertices, labels_, count);
  launch(add_partial, shape, place, lattice.begin.data(), vertices, lattice.chunks(), chunks, partial_.data(), count,
         labels_, front_.data());
  for (int i = 0; i <= lattice.dim; ++i) {
    const int axis = reverse ? lattice.dim - i : i;
    const int32_t* before = lattice.neighbours.data() + 2 * int64_t(axis) * vertices;
    launch(blur_axis, shape, place, before, before + vertices, vertices, front_.data(), count, labels_, back_.data());
    std::swap(front_, back_);
  }
  return front_.data();
}

const float* VertexTables::mix(const Place& place, const HashLattice& lattice, const float* transposed,
                               int64_t images) {
  const int count = passes(lattice, images);
  launch(mix_labels, shape_of(lattice.vertices, labels_, count), place, transposed, lattice.vertices, front_.data(),
         count, labels_, back_.data());
  std::swap(front_, back_);
  return front_.data();
}

void slice(const Place& place, const HashLattice& lattice, const float* table, int64_t images, int64_t labels,
           float factor, float* values) {
  const int count = passes(lattice, images), points = lattice.images * lattice.points;
  launch(slice_points, shape_of(points, labels, count), place, lattice.corners.data(), points, lattice.dim + 1,
         lattice.vertices, table, count, int(labels), factor, values);
}

Tensor swapped(const Tensor& tensor) {
  const int64_t n = tensor.size(0), a = tensor.size(1), b = tensor.size(2);
  if ((a == 1 || b == 1) && tensor.is_contiguous()) return torch::stable::view(tensor, {n, b, a});
  return torch::stable::contiguous(torch::stable::transpose(tensor, 1, 2));
}

}  // namespace segops::gpu
