// The permutohedral lattice on a GPU: a hash table finds the vertices, and everything after it is a gather. The kernels
// and the reasons are in csrc/cuda/permutohedral_filter.cu; csrc/cuda/mean_field.cu uses what is declared here.
#pragma once

#include "segops/cuda_support.cuh"
#include "segops/simplex.h"

namespace segops::gpu {

using Key = unsigned long long;
constexpr Key kEmpty = ~Key(0);  // no key: keys leave their top bit 0

// One of the dim + 1 vertices around a point, with the point's barycentric weight there.
struct alignas(8) Corner {
  int32_t vertex;
  float weight;
};

// The same seen from the vertex: a point of its neighbourhood. Entries lie sorted by vertex; the sign bit marks the
// last one of each.
struct alignas(8) Entry {
  int32_t marked_point;
  float weight;

  SEGOPS_HOST_DEVICE int point() const { return marked_point & 0x7fffffff; }
  SEGOPS_HOST_DEVICE bool last() const { return marked_point < 0; }
};

// Maps keys to slots, with a region of mask + 1 slots for every image. Which slot a key gets depends on who comes
// first; `first`, the smallest entry that asked for the key, does not, and so vertices are told apart and numbered by
// it.
struct HashTable {
  Key* keys;
  uint32_t* first;
  uint32_t mask;

  static __device__ __forceinline__ uint32_t hash(Key key) {
    key = (key ^ (key >> 33)) * 0xff51afd7ed558ccdull;
    key = (key ^ (key >> 33)) * 0xc4ceb9fe1a85ec53ull;
    return uint32_t(key ^ (key >> 33));
  }

  // A slot's key goes from empty to its final value once, and `first` only falls: a look that comes too early costs an
  // atomic operation, never a wrong answer. At most half of a region fills, so the search ends.
  __device__ __forceinline__ uint32_t insert(uint32_t image, Key key, uint32_t entry) const {
    const uint32_t region = image * (mask + 1);
    for (uint32_t i = hash(key);; ++i) {
      const uint32_t slot = region + (i & mask);
      Key there = *const_cast<const volatile Key*>(keys + slot);
      if (there == kEmpty) {
        there = atomicCAS(keys + slot, kEmpty, key);
        if (there == kEmpty) there = key;
      }
      if (there != key) continue;
      if (*const_cast<const volatile uint32_t*>(first + slot) > entry) atomicMin(first + slot, entry);
      return slot;
    }
  }

  // The first entry of a key in the region of `near`, or -1 if the table, now complete, does not have it.
  __device__ __forceinline__ int first_entry(uint32_t near, Key key) const {
    const uint32_t region = near & ~mask;
    for (uint32_t i = hash(key);; ++i) {
      const uint32_t slot = region + (i & mask);
      const Key there = keys[slot];
      if (there == key) return int(first[slot]);
      if (there == kEmpty) return -1;
    }
  }
};

// What kernels report, into one int, when the values they meet make no sense. check() waits for the device, then throws
// what there is to throw.
enum Trouble : int { kFeaturesNotFinite = 1, kTooManyCells = 2, kLogitsNotFinite = 4 };
void check(const Place& place, const Buffer<int>& trouble);

// How the entries of a splat are shared out: chunks of up to kSize, the first of each image at its first entry, so that
// an image's sums do not depend on the batch it is in.
struct Chunks {
  static constexpr int kSize = 64;
  int entries, count;  // of one image

  SEGOPS_HOST_DEVICE int of(int entry) const { return entry / entries * count + entry % entries / kSize; }
  SEGOPS_HOST_DEVICE int begin(int chunk) const { return chunk / count * entries + chunk % count * kSize; }
  SEGOPS_HOST_DEVICE int end(int chunk) const {
    const int full = begin(chunk) + kSize, image = (chunk / count + 1) * entries;
    return full < image ? full : image;
  }
};

// The lattices of a batch of point sets, vertices numbered through, those of an image next to each other.
struct HashLattice {
  int images, dim, points, vertices;
  Buffer<Corner> corners;        // (images, points, dim + 1)
  Buffer<Entry> entries;         // as many, sorted by vertex, then by point
  Buffer<int32_t> begin;         // (vertices + 1): where the entries of a vertex begin
  Buffer<int32_t> chunk_vertex;  // the vertex that each chunk begins with
  Buffer<int32_t> neighbours;    // (dim + 1, 2, vertices): before and after along each axis, -1 where there is none

  int64_t entry_count() const { return int64_t(images) * points * (dim + 1); }
  Chunks chunks() const {
    const int entries = points * (dim + 1);
    return {entries, (entries + Chunks::kSize - 1) / Chunks::kSize};
  }
  int64_t chunk_count() const { return int64_t(images) * chunks().count; }
  float alpha() const { return 1.f / (1.f + 1.f / float(1 << dim)); }
};

constexpr int64_t kMaxEntries = int64_t(1) << 29;    // of one image: slots, up to 4 each, stay in an int
constexpr int64_t kBatchEntries = int64_t(1) << 22;  // from here on more images at a time only take more memory

// How many images to give to build_lattice at a time.
int64_t images_at_once(int64_t images, int64_t dim, int64_t points);

// `features` (images, dim, points) contiguous. Waits for the device once, for the number of vertices, with a check().
HashLattice build_lattice(const Place& place, const float* features, int64_t images, int64_t dim, int64_t points,
                          const Buffer<int>& trouble);

// Values at the vertices of a lattice, `labels` side by side. Where one lattice serves several images, every image has
// its own (vertices, labels) block.
class VertexTables {
 public:
  VertexTables(const Place& place, const HashLattice& lattice, int64_t images, int64_t labels);

  // Splat and blur `values` (images, points, labels), or ones; the result stays here until the next call. No more
  // images than the constructor was told.
  const float* filter(const Place& place, const HashLattice& lattice, const float* values, int64_t images,
                      bool reverse = false);

  // In place of the result: matrix times the labels of each vertex, `transposed` being the matrix transposed.
  const float* mix(const Place& place, const HashLattice& lattice, const float* transposed, int64_t images);

 private:
  int labels_;
  Buffer<float> front_, back_, partial_;
};

// (images, points, labels) from the tables, times `factor`.
void slice(const Place& place, const HashLattice& lattice, const float* table, int64_t images, int64_t labels,
           float factor, float* values);

// (N, A, B) to (N, B, A), contiguous; a copy only where the layout asks for one.
Tensor swapped(const Tensor& tensor);

}  // namespace segops::gpu
