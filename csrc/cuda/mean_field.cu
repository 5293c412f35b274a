// Mean-field inference in a fully connected CRF on a GPU; see segops/reference/mean_field.py.
//
// Lattices are built once per image and feature set and serve every iteration. Norms are computed once and folded, with
// alpha, into the weights of the corners (slice) and of the entries (splat), so that iterations know nothing of them.
// Values lie as (point, label): labels across a warp's lanes, a whole row in one or two transactions. An iteration is,
// for each feature set, a splat and a blur (csrc/include/segops/vertex_tables.cuh), then one kernel that slices all
// feature sets, adds them to the logits and takes the softmax, which the next splat reads. A compatibility matrix is
// applied to the tables, whose vertices are fewer than the points: it is linear in the labels, so it commutes with blur
// and slice. A diagonal costs one multiplication where the sliced message is at hand.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <string>
#include <vector>

#include "segops/hash_lattice.cuh"
#include "segops/torch_errors.h"

namespace segops::gpu {
namespace {

constexpr float kEps = 1e-20f;  // keeps the norm of an isolated point finite

// What one feature set says about all points.
struct Message {
  const Corner* corners;
  const float* table;
  const float* energy;       // a diagonal, or nullptr for ones
  int64_t points, vertices;  // from one image to the next in corners and table; 0 where the image doesn't matter
  int size;                  // corners of a point
};

constexpr int kMessages = 8;  // more take another pass

struct Messages {
  Message of[kMessages];
  int count;
};

// The butterfly adds in one order for all lanes, so all of them get the same bits.
template <int kGroup>
__device__ __forceinline__ float group_sum(float x) {
#pragma unroll
  for (int step = kGroup / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}
template <int kGroup>
__device__ __forceinline__ float group_max(float x) {
#pragma unroll
  for (int step = kGroup / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}

// Some labels of one point: x[j] is label first + j * kGroup, minus infinity past the last label.
template <int kGroup, int kLabels>
__device__ __forceinline__ void updated_logits(const float* source, const Messages& messages, int image, int point,
                                               int first, int labels, float* x) {
#pragma unroll
  for (int j = 0; j < kLabels; ++j) x[j] = first + j * kGroup < labels ? source[first + j * kGroup] : -INFINITY;
  for (int k = 0; k < messages.count; ++k) {
    const Message& message = messages.of[k];
    const Corner* corners = message.corners + (image * message.points + point) * message.size;
    const float* table = message.table + image * message.vertices * labels;
    float sum[kLabels] = {};
    for (int r = 0; r < message.size; ++r) {
      const Corner corner = corners[r];
      const float* row = table + int64_t(corner.vertex) * labels;
#pragma unroll
      for (int j = 0; j < kLabels; ++j)
        if (first + j * kGroup < labels) sum[j] += corner.weight * row[first + j * kGroup];
    }
#pragma unroll
    for (int j = 0; j < kLabels; ++j)
      if (first + j * kGroup < labels) x[j] -= message.energy ? message.energy[first + j * kGroup] * sum[j] : sum[j];
  }
}

// source minus all messages, to `state`; its softmax, to `marginals`; each may be nullptr. `trouble` is given in the
// first pass only: then the logits are checked, and `state` becomes their log-softmax. kGroup lanes share a point and
// hold kLabels labels each; more labels than that are gone through twice, in tiles, and computed again the second time.
// state may be source: a thread writes only what it alone has read, and only afterwards.
template <int kGroup, int kLabels>
__global__ void __launch_bounds__(kThreads)
    update_points(const float* source, const __grid_constant__ Messages messages, int images, int points, int labels,
                  float* state, float* marginals, int* trouble) {
  constexpr int kTile = kGroup * kLabels;
  const bool valid = row() < points;  // lanes without a point stay for the shuffles
  const int point = min(row(), points - 1), lane = threadIdx.x;
  for (int image = blockIdx.y; image < images; image += gridDim.y) {
    const int64_t base = (int64_t(image) * points + point) * labels;
    float x[kLabels], top = -INFINITY, sum = 0;
    bool finite = true;
    for (int tile = 0; tile < labels; tile += kTile) {
      updated_logits<kGroup, kLabels>(source + base, messages, image, point, tile + lane, labels, x);
      float high = top;
#pragma unroll
      for (int j = 0; j < kLabels; ++j) {
        high = fmaxf(high, x[j]);
        finite = finite && x[j] < INFINITY;  // false for NaN
      }
      high = group_max<kGroup>(high);
      const float shift = high > -INFINITY ? high : 0.f;
      float part = 0;
#pragma unroll
      for (int j = 0; j < kLabels; ++j) part += expf(x[j] - shift);
      sum = sum * expf(top - shift) + group_sum<kGroup>(part);
      top = high;
    }
    if (trouble && valid && !(finite && top > -INFINITY)) atomicOr(trouble, kLogitsNotFinite);
    const float scale = 1.f / sum, shift = trouble ? top + logf(sum) : 0.f;
    for (int tile = 0; tile < labels; tile += kTile) {
      if (labels > kTile)
        updated_logits<kGroup, kLabels>(source + base, messages, image, point, tile + lane, labels, x);
#pragma unroll
      for (int j = 0; j < kLabels; ++j) {
        const int label = tile + lane + j * kGroup;
        if (!valid || label >= labels) continue;
        if (state) state[base + label] = x[j] - shift;
        if (marginals) marginals[base + label] = expf(x[j] - top) * scale;
      }
    }
  }
}

__device__ __forceinline__ float norm_factor(float norm, bool root) {
  return 1.f / (root ? sqrtf(norm + kEps) : norm + kEps);
}

__global__ void weigh_corners(Corner* __restrict__ corners, int count, int size, const float* __restrict__ norm,
                              bool root, float alpha) {
  const int i = row();
  if (i >= count) return;
  corners[i].weight *= norm ? alpha * norm_factor(norm[i / size], root) : alpha;
}

__global__ void weigh_entries(Entry* __restrict__ entries, int count, const float* __restrict__ norm, bool root) {
  const int i = row();
  if (i < count) entries[i].weight *= norm_factor(norm[entries[i].point()], root);
}

enum class Normalization { kNone, kBefore, kAfter, kSymmetric };

Normalization parse(const std::string& name) {
  if (name == "symmetric") return Normalization::kSymmetric;
  if (name == "before") return Normalization::kBefore;
  if (name == "after") return Normalization::kAfter;
  require(name == "none", "normalization: expected 'symmetric', 'before', 'after' or 'none'");
  return Normalization::kNone;
}

// Folds alpha and the norms, the filtered ones, into the weights.
void normalize(const Place& place, const HashLattice& lattice, Normalization normalization) {
  const int count = int(lattice.entry_count());
  const bool root = normalization == Normalization::kSymmetric;
  Buffer<float> norm;
  if (normalization != Normalization::kNone) {
    norm = Buffer<float>(place, int64_t(lattice.images) * lattice.points);
    VertexTables tables(place, lattice, lattice.images, 1);
    const float* table = tables.filter(place, lattice, nullptr, lattice.images);
    slice(place, lattice, table, lattice.images, 1, lattice.alpha(), norm.data());
  }
  if (root || normalization == Normalization::kBefore)
    launch(weigh_entries, shape_of(count), place, lattice.entries.data(), count, norm.data(), root);
  const float* after = root || normalization == Normalization::kAfter ? norm.data() : nullptr;
  launch(weigh_corners, shape_of(count), place, lattice.corners.data(), count, lattice.dim + 1, after, root,
         lattice.alpha());
}

// One feature set's lattice and tables.
struct Kernel {
  HashLattice lattice;
  VertexTables tables;
};

struct Problem {
  const Place& place;
  const int64_t images, labels, points;
  std::vector<Tensor> features;
  Tensor compatibility;  // (K, L), or (K, L, L) with each matrix transposed
  int64_t iterations = 0;
  Normalization normalization = Normalization::kNone;
  bool return_logits = false;
  Buffer<int> trouble;

  Problem(const Place& place, int64_t images, int64_t labels, int64_t points)
      : place(place), images(images), labels(labels), points(points), trouble(place, 1) {
    trouble.fill_bytes(0, place);
  }

  const float* energy(size_t k) const {
    return compatibility.const_data_ptr<float>() + k * labels * (compatibility.dim() == 3 ? labels : 1);
  }
};

// One launch for a number of images: whatever is not wanted is nullptr.
void update(const Problem& problem, const float* source, const Messages& messages, int64_t images, float* state,
            float* marginals, int* trouble) {
  const auto run = [&](auto kernel, int group) {
    launch(kernel, shape_of(problem.points, group, images), problem.place, source, messages, int(images),
           int(problem.points), int(problem.labels), state, marginals, trouble);
  };
  if (problem.labels <= 4) return run(update_points<4, 1>, 4);
  if (problem.labels <= 8) return run(update_points<8, 1>, 8);
  if (problem.labels <= 16) return run(update_points<16, 1>, 16);
  if (problem.labels <= 32) return run(update_points<32, 1>, 32);
  if (problem.labels <= 64) return run(update_points<32, 2>, 32);
  return run(update_points<32, 4>, 32);
}

// Lattices of images n, n + 1, ...; one that all images share is built once.
void build_kernels(const Problem& problem, std::vector<std::optional<Kernel>>& kernels, int64_t n, int64_t images) {
  const Place& place = problem.place;
  for (size_t k = 0; k < kernels.size(); ++k) {
    const Tensor& features = problem.features[k];
    const bool shared = features.size(0) == 1;
    if (shared && kernels[k]) continue;
    kernels[k].reset();  // first of all gives its memory back
    const int64_t dim = features.size(1), offset = shared ? 0 : n * dim * problem.points;
    HashLattice lattice = build_lattice(place, features.const_data_ptr<float>() + offset, shared ? 1 : images, dim,
                                        problem.points, problem.trouble);
    normalize(place, lattice, problem.normalization);
    VertexTables tables(place, lattice, images, problem.labels);
    kernels[k].emplace(Kernel{std::move(lattice), std::move(tables)});
  }
}

// Splats and blurs the marginals of all images at hand.
Message message_of(const Problem& problem, Kernel& kernel, size_t k, const float* marginals, int64_t images) {
  const HashLattice& lattice = kernel.lattice;
  const bool full = problem.compatibility.dim() == 3, one = lattice.images == 1;
  const float* table = kernel.tables.filter(problem.place, lattice, marginals, images);
  if (full) table = kernel.tables.mix(problem.place, lattice, problem.energy(k), images);
  return {lattice.corners.data(),     table,          full ? nullptr : problem.energy(k), one ? 0 : lattice.points,
          one ? lattice.vertices : 0, lattice.dim + 1};
}

// From marginals to new marginals or, the last time, to what the caller wants; in the same place.
void iterate(const Problem& problem, std::vector<std::optional<Kernel>>& kernels, const float* logits, float* marginals,
             int64_t images, bool want_logits) {
  std::vector<Message> all;
  for (size_t k = 0; k < kernels.size(); ++k) all.push_back(message_of(problem, *kernels[k], k, marginals, images));
  const float* source = logits;
  size_t k = 0;
  do {
    Messages messages = {};
    while (k < all.size() && messages.count < kMessages) messages.of[messages.count++] = all[k++];
    const bool to_logits = k < all.size() || want_logits;
    update(problem, source, messages, images, to_logits ? marginals : nullptr, to_logits ? nullptr : marginals,
           nullptr);
    source = marginals;
  } while (k < all.size());
}

void infer(const Problem& problem, const float* logits, float* out) {
  const int64_t stride = problem.points * problem.labels;
  const Buffer<float> unary(problem.place, problem.images * stride);
  const bool done = problem.iterations == 0 || problem.features.empty(), bare = done && problem.return_logits;
  update(problem, logits, Messages{}, problem.images, bare ? out : unary.data(), bare ? nullptr : out,
         problem.trouble.data());
  if (done) return check(problem.place, problem.trouble);
  int64_t step = problem.images;
  for (const Tensor& f : problem.features)
    step = std::min(step, images_at_once(problem.images, f.size(1), problem.points));
  std::vector<std::optional<Kernel>> kernels(problem.features.size());
  for (int64_t n = 0; n < problem.images; n += step) {
    const int64_t images = std::min(step, problem.images - n);
    build_kernels(problem, kernels, n, images);
    for (int64_t i = 1; i <= problem.iterations; ++i)
      iterate(problem, kernels, unary.data() + n * stride, out + n * stride, images,
              problem.return_logits && i == problem.iterations);
  }
}

void check_arguments(const Tensor& logits, const std::vector<Tensor>& features, const Tensor& compatibility) {
  const auto fits = [&](const Tensor& t) {
    return t.scalar_type() == ScalarType::Float && t.device() == logits.device();
  };
  require(logits.dim() == 3 && fits(logits), "logits: expected (N, L, P), float32");
  require(logits.size(1) <= kMaxRows && logits.size(2) <= kMaxRows, "logits: expected at most 2^30 labels and points");
  const int64_t labels = logits.size(1), rank = compatibility.dim();
  require((rank == 2 || rank == 3) && fits(compatibility) && compatibility.size(0) == int64_t(features.size()) &&
              compatibility.size(1) == labels && compatibility.size(rank - 1) == labels,
          "compatibility: expected (K, L) or (K, L, L) for K features and L labels, float32 on the device of logits");
  for (const Tensor& f : features)
    require(f.dim() == 3 && fits(f) && (f.size(0) == 1 || f.size(0) == logits.size(0)) && f.size(2) == logits.size(2),
            "features: expected (N or 1, D, P) each, float32 on the device of logits");
}

Tensor mean_field(Tensor logits, std::vector<Tensor> features, Tensor compatibility, int64_t iterations,
                  std::string normalization, bool return_logits) {
  check_arguments(logits, features, compatibility);
  require(iterations >= 0, "iterations: expected 0 or more");
  const Place place(logits);
  const int64_t images = logits.size(0), labels = logits.size(1), points = logits.size(2);
  Problem problem(place, images, labels, points);
  problem.iterations = iterations;
  problem.normalization = parse(normalization);
  problem.return_logits = return_logits;
  if (logits.numel() == 0) return place.floats({images, labels, points});
  for (const Tensor& f : features) problem.features.push_back(torch::stable::contiguous(f));
  problem.compatibility = compatibility.dim() == 3 ? swapped(compatibility) : torch::stable::contiguous(compatibility);
  const Tensor input = swapped(logits), result = place.floats({images, points, labels});
  infer(problem, input.const_data_ptr<float>(), result.mutable_data_ptr<float>());
  return swapped(result);
}

}  // namespace
}  // namespace segops::gpu

STABLE_TORCH_LIBRARY_IMPL(segops_cuda, CUDA, m) { m.impl("mean_field", SEGOPS_BOX(segops::gpu::mean_field)); }
