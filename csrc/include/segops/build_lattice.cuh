// How a lattice is built on a GPU; see csrc/cuda/permutohedral_filter.cu, the one file that includes this.
#pragma once

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#include <utility>

#include "segops/hash_lattice.cuh"

namespace segops::gpu {
namespace {

struct Scales {
  float of[kMaxDim];
};

// A number of features known to the compiler, so that loops unroll and arrays stay in registers; the type int is the
// one that is not. (Device code can't convert a std::integral_constant.)
template <int D>
struct Fixed {
  SEGOPS_HOST_DEVICE constexpr operator int() const { return D; }
};

// Elements of an array with one number for each of the dim + 1 coordinates.
template <class Dim>
constexpr int kCoordinates = kMaxDim + 1;
template <int D>
constexpr int kCoordinates<Fixed<D>> = D + 1;

// Which coordinate has the rank, as one unit of the key. A search, because an array in registers can't be indexed.
template <class Dim>
__device__ __forceinline__ Key unit_of_rank(Dim dim, const KeyLayout<Key>& layout, const float* rank, int wanted) {
  Key unit = 0;
#pragma unroll
  for (int i = 0; i <= dim; ++i) unit |= int(rank[i]) == wanted ? layout.unit(i) : Key(0);
  return unit;
}

// The simplex of each point: its weights, and its keys into the table. Corners get slots where later vertices stand,
// -1 where features make no sense (the host then throws, before anything uses the slots).
template <class Dim>
__global__ void __launch_bounds__(kThreads)
    insert_points(Dim dim, const float* __restrict__ features, Scales scales, int images, int points, HashTable table,
                  Corner* __restrict__ corners, int* trouble) {
  const int p = row();
  if (p >= points) return;
  const KeyLayout<Key> layout(dim);
  for (int image = blockIdx.y; image < images; image += gridDim.y) {
    float scaled[kCoordinates<Dim>], quotient[kCoordinates<Dim>], rank[kCoordinates<Dim>], weight[kCoordinates<Dim>];
    bool finite = true, inside = true;
#pragma unroll
    for (int i = 0; i < dim; ++i) {
      const float feature = features[(int64_t(image) * dim + i) * points + p];
      finite = finite && isfinite(feature);
      scaled[i] = product(feature, scales.of[i]);
    }
    find_simplex(dim, scaled, quotient, rank, weight);
#pragma unroll
    for (int i = 0; i < dim; ++i) inside = inside && fabsf(quotient[i]) <= float(layout.limit());
    const uint32_t entry = (uint32_t(image) * points + p) * (dim + 1);
    if (!finite || !inside) atomicOr(trouble, finite ? kTooManyCells : kFeaturesNotFinite);
    Key key = finite && inside ? layout.origin(quotient) : Key(0);
#pragma unroll
    for (int r = 0; r <= dim; ++r) {
      const int slot = finite && inside ? int(table.insert(image, key, entry + r)) : -1;
      corners[entry + r] = {slot, weight[r]};
      key += 1 - unit_of_rank(dim, layout, rank, dim - r);
    }
  }
}

// number[entry]: 1 for the first entry of a vertex. Its inclusive scan numbers the vertices from 1.
__global__ void mark_first(const Corner* __restrict__ corners, const uint32_t* __restrict__ first, int count,
                           uint32_t* __restrict__ number) {
  const int entry = row();
  if (entry >= count) return;
  const int slot = corners[entry].vertex;
  number[entry] = slot >= 0 && first[slot] == uint32_t(entry);
}

__global__ void find_neighbours(const Corner* __restrict__ corners, HashTable table,
                                const uint32_t* __restrict__ number, int count, int dim, int vertices,
                                int32_t* __restrict__ neighbours) {
  const int entry = row();
  if (entry >= count) return;
  const uint32_t slot = corners[entry].vertex;
  if (table.first[slot] != uint32_t(entry)) return;
  const KeyLayout<Key> layout(dim);
  const Key key = table.keys[slot], all = layout.all_units();
  int32_t* out = neighbours + (number[entry] - 1);
  for (int axis = 0; axis <= dim; ++axis, out += 2 * int64_t(vertices)) {
    const int before = table.first_entry(slot, layout.before(key, axis, all));
    const int after = table.first_entry(slot, layout.after(key, axis, all));
    out[0] = before < 0 ? -1 : int32_t(number[before] - 1);
    out[vertices] = after < 0 ? -1 : int32_t(number[after] - 1);
  }
}

// Slots to vertices, and what the sort needs.
__global__ void number_corners(Corner* __restrict__ corners, const uint32_t* __restrict__ first,
                               const uint32_t* __restrict__ number, int count, uint32_t* __restrict__ vertex,
                               uint32_t* __restrict__ order) {
  const int entry = row();
  if (entry >= count) return;
  const uint32_t v = number[first[corners[entry].vertex]] - 1;
  corners[entry].vertex = int32_t(v);
  vertex[entry] = v;
  order[entry] = entry;
}

// `vertex` and `order` sorted: the entries themselves, and where each vertex and each chunk begins.
__global__ void arrange_entries(const Corner* __restrict__ corners, const uint32_t* __restrict__ vertex,
                                const uint32_t* __restrict__ order, int count, int size, Chunks chunks,
                                Entry* __restrict__ entries, int32_t* __restrict__ begin,
                                int32_t* __restrict__ chunk_vertex) {
  const int i = row();
  if (i >= count) return;
  const uint32_t v = vertex[i], entry = order[i];
  const bool last = i + 1 == count || vertex[i + 1] != v;
  entries[i] = {int32_t(entry / uint32_t(size) | (last ? 0x80000000u : 0u)), corners[entry].weight};
  if (i == 0 || vertex[i - 1] != v) begin[v] = i;
  if (i + 1 == count) begin[v + 1] = count;
  const int chunk = chunks.of(i);
  if (i == chunks.begin(chunk)) chunk_vertex[chunk] = int32_t(v);
}

template <class Dim>
void insert(const Place& place, Dim dim, const float* features, const HashLattice& lattice, HashTable table,
            const Buffer<int>& trouble) {
  Scales scales = {};
  for (int i = 0; i < lattice.dim; ++i) scales.of[i] = float(feature_scale(lattice.dim, i));
  launch(insert_points<Dim>, shape_of(lattice.points, 1, lattice.images), place, dim, features, scales, lattice.images,
         lattice.points, table, lattice.corners.data(), trouble.data());
}

template <int... D>
void insert_any(const Place& place, std::integer_sequence<int, D...>, const float* features, const HashLattice& lattice,
                HashTable table, const Buffer<int>& trouble) {
  const bool special =
      ((lattice.dim == D + 1 && (insert(place, Fixed<D + 1>(), features, lattice, table, trouble), true)) || ...);
  if (!special) insert(place, lattice.dim, features, lattice, table, trouble);
}

uint32_t capacity_for(int64_t corners) {
  uint32_t capacity = 2;
  while (capacity < 2 * corners) capacity *= 2;
  return capacity;
}

// The number of vertices, once the device has counted them.
int wait_for_count(const Place& place, const uint32_t* last_number, const Buffer<int>& trouble) {
  uint32_t vertices = 0;
  STD_CUDA_CHECK(cudaMemcpyAsync(&vertices, last_number, sizeof vertices, cudaMemcpyDeviceToHost, place.stream));
  check(place, trouble);
  return int(vertices);
}

// Corners with their vertices, the vertices with their neighbours.
void find_vertices(const Place& place, const float* features, HashLattice& lattice, const Buffer<int>& trouble,
                   Buffer<uint32_t>& vertex, Buffer<uint32_t>& order) {
  const int count = int(lattice.entry_count()), size = lattice.dim + 1;
  const uint32_t capacity = capacity_for(int64_t(lattice.points) * size);
  const int64_t slots = int64_t(lattice.images) * capacity;
  Buffer<Key> keys(place, slots);
  Buffer<uint32_t> first(place, slots), number(place, count);
  keys.fill_bytes(0xff, place);
  first.fill_bytes(0xff, place);
  const HashTable table = {keys.data(), first.data(), capacity - 1};
  insert_any(place, std::make_integer_sequence<int, 8>(), features, lattice, table, trouble);
  launch(mark_first, shape_of(count), place, lattice.corners.data(), table.first, count, number.data());
  with_memory(place, [&](void* memory, size_t& bytes) {
    return cub::DeviceScan::InclusiveSum(memory, bytes, number.data(), number.data(), count, place.stream);
  });
  lattice.vertices = wait_for_count(place, number.data() + count - 1, trouble);
  lattice.neighbours = Buffer<int32_t>(place, 2 * int64_t(size) * lattice.vertices);
  launch(find_neighbours, shape_of(count), place, lattice.corners.data(), table, number.data(), count, lattice.dim,
         lattice.vertices, lattice.neighbours.data());
  vertex = Buffer<uint32_t>(place, count);
  order = Buffer<uint32_t>(place, count);
  launch(number_corners, shape_of(count), place, lattice.corners.data(), table.first, number.data(), count,
         vertex.data(), order.data());
}

void sort_entries(const Place& place, HashLattice& lattice, const Buffer<uint32_t>& vertex,
                  const Buffer<uint32_t>& order) {
  const int count = int(lattice.entry_count());
  int bits = 1;
  while (lattice.vertices > int64_t(1) << bits) ++bits;
  const Buffer<uint32_t> sorted_vertex(place, count), sorted_order(place, count);
  with_memory(place, [&](void* memory, size_t& bytes) {
    return cub::DeviceRadixSort::SortPairs(memory, bytes, vertex.data(), sorted_vertex.data(), order.data(),
                                           sorted_order.data(), count, 0, bits, place.stream);
  });
  lattice.entries = Buffer<Entry>(place, count);
  lattice.begin = Buffer<int32_t>(place, int64_t(lattice.vertices) + 1);
  lattice.chunk_vertex = Buffer<int32_t>(place, lattice.chunk_count());
  launch(arrange_entries, shape_of(count), place, lattice.corners.data(), sorted_vertex.data(), sorted_order.data(),
         count, lattice.dim + 1, lattice.chunks(), lattice.entries.data(), lattice.begin.data(),
         lattice.chunk_vertex.data());
}

}  // namespace

int64_t images_at_once(int64_t images, int64_t dim, int64_t points) {
  return std::clamp<int64_t>(kBatchEntries / std::max<int64_t>(points * (dim + 1), 1), 1, images);
}

void check(const Place& place, const Buffer<int>& trouble) {
  int found = 0;
  STD_CUDA_CHECK(cudaMemcpyAsync(&found, trouble.data(), sizeof found, cudaMemcpyDeviceToHost, place.stream));
  STD_CUDA_CHECK(cudaStreamSynchronize(place.stream));
  require(!(found & kLogitsNotFinite),
          "logits: expected finite values (or -inf for labels that are impossible), got NaN, +inf or a point without a "
          "possible label");
  require(!(found & kFeaturesNotFinite), "features: expected finite values, got NaN or inf");
  require(!(found & kTooManyCells), "features: values span too many lattice cells for packed keys; use larger sigmas");
}

HashLattice build_lattice(const Place& place, const float* features, int64_t images, int64_t dim, int64_t points,
                          const Buffer<int>& trouble) {
  require(dim >= 1 && dim <= kMaxDim && KeyLayout<Key>(int(dim)).limit() > 0,
          "features: expected 1 to 19 per point, the most that packed keys hold");
  require(images >= 1 && points >= 1 && points <= kMaxEntries / (dim + 1),
          "features: expected 1 to 2^29 / (D + 1) points");
  require(images == 1 || images <= images_at_once(images, dim, points), "features: too many images at once");
  HashLattice lattice = {};
  lattice.images = int(images), lattice.dim = int(dim), lattice.points = int(points);
  lattice.corners = Buffer<Corner>(place, lattice.entry_count());
  Buffer<uint32_t> vertex, order;
  find_vertices(place, features, lattice, trouble, vertex, order);
  sort_entries(place, lattice, vertex, order);
  return lattice;
}

}  // namespace segops::gpu
