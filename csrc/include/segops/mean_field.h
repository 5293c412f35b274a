// Mean-field inference on permutohedral lattices, forward and backward, for one image at a time. The marginals never
// exist as a whole between iterations: each point's are sliced, coupled, normalised and splatted again at once.
#pragma once

#include "segops/lattice_filter.h"

namespace segops {

// Energies of one set of kernels: (kernels, labels) diagonals or (kernels, labels, labels) matrices.
template <class T>
struct Compatibility {
  const T* energy;
  bool matrix;
};

template <class T>
class MeanField {
 public:
  MeanField(int64_t points, int labels, const std::vector<int>& dims, Parallel& parallel)
      : filter_(points, dims, labels, parallel), labels_(labels) {}

  void build(int k, const T* features, int64_t stride, Normalization normalization) {
    filter_.build(k, features, stride, normalization);
  }

  // logits to marginals or, with return_logits, to their logarithms up to a constant of each point; (labels, points).
  void forward(const T* logits, T* out, Compatibility<T> compatibility, int iterations, bool return_logits) {
    prepare(compatibility);
    Buffer<T> table(filter_.rows() * filter_.width()), start(filter_.points() * filter_.width());
    for (int step = 0; step <= iterations; ++step) {
      if (step > 0) {
        filter_.merge_and_blur(table.data());
        filter_.couple(table.data(), table.data(), coupling_, matrix_, labels_);
      }
      PointPass<T> pass = state_pass(step, logits, start.data(), step > 0 ? table.data() : nullptr, return_logits);
      const bool last = step == iterations;
      if (last) pass.maps_out = out;
      pass.softmax = !(last && return_logits);
      check(filter_.forward(pass, !last));
    }
  }

  // One update of given marginals: softmax(logits - sum_k C_k K_k Q) or, without logits, -sum_k C_k K_k Q. `out` may be
  // the marginals themselves.
  void update(const T* logits, const T* marginals, T* out, Compatibility<T> compatibility) {
    prepare(compatibility);
    Buffer<T> table(filter_.rows() * filter_.width());
    PointPass<T> pass = filter_.pass(labels_);
    pass.maps_in = marginals;
    filter_.forward(pass, true);
    filter_.merge_and_blur(table.data());
    filter_.couple(table.data(), table.data(), coupling_, matrix_, labels_);
    pass = state_pass(0, logits, nullptr, table.data(), false);
    pass.maps_out = out;
    pass.softmax = logits != nullptr;
    check(filter_.forward(pass, false));
  }

  // Gradients of logits (labels, points) and, added to grad_energy, of the energies.
  void backward(const T* grad, const T* logits, T* grad_logits, T* grad_energy, Compatibility<T> compatibility,
                int iterations, bool return_logits) {
    prepare(compatibility);
    const int64_t size = filter_.rows() * filter_.width();
    Buffer<T> start(filter_.points() * filter_.width()), grads(filter_.points() * filter_.width());
    Buffer<T> table(size), sums(size), grad_table(size);
    std::vector<Buffer<T>> blurred(iterations);  // of each iteration's marginals, before the coupling
    for (int step = 0; step < iterations; ++step) {
      if (step > 0) filter_.couple(blurred[step - 1].data(), table.data(), coupling_, matrix_, labels_);
      PointPass<T> pass = state_pass(step, logits, start.data(), step > 0 ? table.data() : nullptr, return_logits);
      pass.softmax = true;
      check(filter_.forward(pass, true));
      blurred[step] = Buffer<T>(size);
      filter_.merge_and_blur(blurred[step].data());
    }
    for (int step = iterations; step >= 0; --step) {
      const bool first = step == iterations;
      if (step > 0) filter_.couple(blurred[step - 1].data(), table.data(), coupling_, matrix_, labels_);
      PointPass<T> pass = filter_.pass(labels_);
      pass.start = start.data();
      if (step > 0) pass.table = table.data();
      pass.grad = grads.data();
      pass.grad_is_new = first;
      pass.grad_table = grad_table.data();
      if (first) pass.maps_in = grad;
      pass.softmax = !(first && return_logits);
      pass.log_softmax = return_logits;
      if (step == 0) pass.maps_out = grad_logits;
      if (iterations == 0) filter_.forward(state_pass(0, logits, start.data(), nullptr, return_logits), false);
      filter_.backward(pass, step > 0);
      if (step == 0) break;
      filter_.merge(sums.data());
      add_grad_energy(sums.data(), blurred[step - 1].data(), grad_energy);
      filter_.blur(sums.data(), grad_table.data(), true);
      filter_.couple(grad_table.data(), grad_table.data(), adjoint_, matrix_, labels_);
    }
  }

 private:
  static void check(bool finite) {
    if (!finite)
      throw std::invalid_argument(
          "logits: expected finite values (or -inf for labels that are impossible), got NaN, +inf or a point without a "
          "possible label");
  }

  PointPass<T> state_pass(int step, const T* logits, T* start, const T* table, bool return_logits) const {
    PointPass<T> pass = filter_.pass(labels_);
    pass.pad = T(-1e30);
    if (step == 0) pass.maps_in = logits;
    pass.start = start;
    pass.table = table;
    pass.log_softmax = return_logits;
    return pass;
  }

  // The state falls by energy * message, message = alpha * slice(blur(splat)): both factors go to the vertices, which
  // are fewer than the points.
  void prepare(Compatibility<T> compatibility) {
    filter_.reserve(labels_);
    matrix_ = compatibility.matrix;
    const int width = filter_.width(), count = matrix_ ? labels_ : 1;
    coupling_.clear(), adjoint_.clear();
    for (int k = 0; k < filter_.lattices(); ++k) {
      Buffer<T> forward(count * width), adjoint(count * width);
      std::fill_n(forward.data(), count * width, T(0));
      std::fill_n(adjoint.data(), count * width, T(0));
      const T* energy = compatibility.energy + int64_t(k) * count * labels_;
      const T factor = -filter_.lattice(k).alpha();
      for (int i = 0; i < count; ++i)
        for (int j = 0; j < labels_; ++j) {
          forward[matrix_ ? j * width + i : j] = factor * energy[i * labels_ + j];
          adjoint[i * width + j] = factor * energy[i * labels_ + j];
        }
      coupling_.push_back(std::move(forward));
      adjoint_.push_back(std::move(adjoint));
    }
  }

  // d state / d energy = -message: summed over points, that is a product of two small tables.
  void add_grad_energy(const T* sums, const T* blurred, T* grad_energy) {
    const int width = filter_.width(), count = matrix_ ? labels_ : 1;
    for (int k = 0; k < filter_.lattices(); ++k) {
      const T factor = -filter_.lattice(k).alpha();
      const int64_t base = filter_.base(k);
      filter_.parallel().range(count, 1, [&](int64_t begin, int64_t end) {
        std::vector<double> total(labels_);
        for (int64_t i = begin; i < end; ++i) {
          std::fill(total.begin(), total.end(), 0.0);
          for (int64_t v = base + 1; v <= base + filter_.lattice(k).vertices; ++v) {
            const T *left = sums + v * width, *right = blurred + v * width;
            for (int j = 0; j < labels_; ++j) total[j] += double(matrix_ ? left[i] : left[j]) * right[j];
          }
          T* row = grad_energy + (int64_t(k) * count + i) * labels_;
          for (int j = 0; j < labels_; ++j) row[j] += T(factor * total[j]);
        }
      });
    }
  }

  LatticeFilter<T> filter_;
  int labels_;
  bool matrix_ = false;
  std::vector<Buffer<T>> coupling_, adjoint_;
};

}  // namespace segops
