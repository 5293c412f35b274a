// Gaussian filtering on the permutohedral lattice on a GPU; see segops/reference/permutohedral_filter.py.
//
// Same input, same bits out, alone or in a batch: no sum depends on the order in which threads happen to run.
// - A hash table finds which of the E = points * (dim + 1) corners are the same vertex, and does nothing else. Which
// slot
//   a vertex gets depends on who comes first, so vertices are numbered by the first entry that touched them: a scan
//   over E flags. No keys need sorting, and vertices of points that lie together lie together.
// - The splat is a gather, not atomic additions: entries are sorted by vertex, stably, so that each vertex adds its
//   points in their order, in chunks whose bounds follow from the data; then the sums of its chunks, in order. To sort
//   32-bit vertex numbers of which log2(vertices) bits count takes two or three passes; 64-bit keys would take eight.
// Device memory: while the table is there, 24 to 48 bytes per corner for it (12 a slot, two to four slots a corner), 4
// for the numbers and 8 for what will be sorted; when it is gone, 16 for the sort and 8 for CUB. Kept are 16 per corner
// (itself and its entry) and 8 * (dim + 1) + 4 per vertex. Tables take 8 * labels per vertex and labels / 16 per
// corner. One wait for the device per lattice: the host must know the number of vertices, and whether the features make
// sense.
#include <torch/csrc/stable/library.h>

#include "segops/build_lattice.cuh"
#include "segops/torch_errors.h"
#include "segops/vertex_tables.cuh"

namespace segops::gpu {
namespace {

Tensor permutohedral_filter(Tensor values, Tensor features, bool reverse) {
  require(values.dim() == 3 && features.dim() == 3 && values.scalar_type() == ScalarType::Float &&
              features.scalar_type() == ScalarType::Float && values.device() == features.device(),
          "permutohedral_filter: expected values (N, V, P) and features (N or 1, D, P), float32 on one device");
  const int64_t images = values.size(0), labels = values.size(1), points = values.size(2), dim = features.size(1);
  const int64_t lattices = features.size(0);
  require((lattices == 1 || lattices == images) && features.size(2) == points,
          "features: expected as many images (or 1) and as many points as values");
  const Place place(values);
  if (values.numel() == 0) return place.floats({images, labels, points});
  const Tensor inputs = swapped(values), positions = torch::stable::contiguous(features);
  const Tensor outputs = place.floats({images, points, labels});
  Buffer<int> trouble(place, 1);
  trouble.fill_bytes(0, place);
  const int64_t step = images_at_once(lattices, dim, points);
  for (int64_t n = 0; n < lattices; n += step) {
    const int64_t built = std::min(step, lattices - n), served = lattices == 1 ? images : built;
    const HashLattice lattice =
        build_lattice(place, positions.const_data_ptr<float>() + n * dim * points, built, dim, points, trouble);
    VertexTables tables(place, lattice, served, labels);
    const int64_t offset = n * points * labels;
    const float* table = tables.filter(place, lattice, inputs.const_data_ptr<float>() + offset, served, reverse);
    slice(place, lattice, table, served, labels, lattice.alpha(), outputs.mutable_data_ptr<float>() + offset);
  }
  return swapped(outputs);
}

}  // namespace
}  // namespace segops::gpu

STABLE_TORCH_LIBRARY_IMPL(segops_cuda, CUDA, m) {
  m.impl("permutohedral_filter", SEGOPS_BOX(segops::gpu::permutohedral_filter));
}
