// The dense CRF for NumPy arrays, without torch. Its Python side is segops/compat/pydensecrf.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <atomic>
#include <limits>
#include <mutex>
#include <optional>
#include <string>

#include "segops/image_features.h"
#include "segops/mean_field.h"
#include "segops/memory.h"
#include "segops/thread_parallel.h"

namespace py = pybind11;

namespace {

using segops::Compatibility;
using segops::MeanField;
using segops::Normalization;
using segops::ThreadParallel;
using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

void expect(bool right, const std::string& message) {
  if (!right) throw std::invalid_argument(message);
}

// Lattices of one set of points, built once.
class LatticeCrf {
 public:
  LatticeCrf(int64_t points, int labels, const std::vector<Floats>& features, const std::vector<int>& normalizations)
      : points_(points),
        labels_(labels),
        kernels_(int(features.size())),
        mean_field_(points, labels, dims(points, labels, features), parallel_) {
    expect(normalizations.size() == features.size(), "normalizations: expected one for each of the features");
    std::vector<const float*> data;
    for (const auto& f : features) data.push_back(f.data());
    py::gil_scoped_release release;
    ThreadParallel::Crew crew(parallel_);
    for (size_t k = 0; k < data.size(); ++k)
      mean_field_.build(int(k), data[k], points, Normalization(normalizations[k]));
  }

  py::array_t<float> inference(const Floats& logits, const Floats& energy, int iterations) {
    check_maps("logits", logits);
    const auto compatibility = checked(energy);
    py::array_t<float> out({int64_t(labels_), points_});
    compute([&, from = logits.data(), to = out.mutable_data()] {
      mean_field_.forward(from, to, compatibility, iterations, false);
    });
    return out;
  }

  void update(const std::optional<Floats>& logits, const Floats& marginals, py::array_t<float> out,
              const Floats& energy) {
    if (logits) check_maps("logits", *logits);
    check_maps("marginals", marginals);
    check_maps("out", out);
    expect(out.flags() & py::array::c_style, "out: expected a C-contiguous array");
    const auto compatibility = checked(energy);
    compute([&, start = logits ? logits->data() : nullptr, from = marginals.data(), to = out.mutable_data()] {
      mean_field_.update(start, from, to, compatibility);
    });
  }

 private:
  static std::vector<int> dims(int64_t points, int labels, const std::vector<Floats>& features) {
    expect(points >= 1 && labels >= 1, "expected at least one point and one label");
    std::vector<int> dims;
    for (const auto& f : features) {
      expect(f.ndim() == 2 && f.shape(0) >= 1 && f.shape(0) <= segops::kMaxDim && f.shape(1) == points,
             "features: expected (D, points), D from 1 to " + std::to_string(segops::kMaxDim));
      dims.push_back(int(f.shape(0)));
    }
    return dims;
  }

  void check_maps(const char* name, const py::array& maps) const {
    expect(maps.ndim() == 2 && maps.shape(0) == labels_ && maps.shape(1) == points_,
           std::string(name) + ": expected shape (labels, points)");
  }

  Compatibility<float> checked(const Floats& energy) const {
    expect((energy.ndim() == 2 || energy.ndim() == 3) && energy.shape(0) == kernels_,
           "energy: expected (kernels, labels) or (kernels, labels, labels)");
    for (int i = 1; i < energy.ndim(); ++i) expect(energy.shape(i) == labels_, "energy: expected one for each label");
    return {energy.data(), energy.ndim() == 3};
  }

  // One computation at a time: the lattices come with tables to compute in.
  template <class Body>
  void compute(const Body& body) {
    py::gil_scoped_release release;
    std::lock_guard lock(mutex_);
    ThreadParallel::Crew crew(parallel_);
    body();
  }

  std::mutex mutex_;
  ThreadParallel parallel_;
  int64_t points_;
  int labels_, kernels_;
  MeanField<float> mean_field_;
};

py::array_t<float> logits(const Floats& energy) {
  expect(energy.ndim() == 2, "energy: expected shape (labels, points)");
  const int64_t labels = energy.shape(0), points = energy.shape(1);
  py::array_t<float> out({labels, points});
  const float* from = energy.data();
  float* to = out.mutable_data();
  std::atomic<bool> numbers = true, possible = true;
  {
    py::gil_scoped_release release;
    ThreadParallel parallel;
    ThreadParallel::Crew crew(parallel);
    constexpr int64_t kBlock = 1024;
    parallel.range(points, 1 << 14, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin; first < end; first += kBlock) {
        const int64_t count = std::min(kBlock, end - first);
        float top[kBlock];
        std::fill_n(top, count, -std::numeric_limits<float>::infinity());
        bool fine = true;
        for (int64_t l = 0; l < labels; ++l)
          for (int64_t p = 0; p < count; ++p) {
            const float x = to[l * points + first + p] = -from[l * points + first + p];
            fine &= x < std::numeric_limits<float>::infinity();  // false for NaN
            top[p] = std::max(top[p], x);
          }
        if (!fine) numbers = false;
        if (*std::min_element(top, top + count) < -1e28f) possible = false;
      }
    });
  }
  expect(numbers, "expected finite energies (or +inf for labels that are impossible), got NaN or -inf");
  expect(possible, "expected a label of finite energy (below 1e28) at every point, got a point without any");
  return out;
}

template <class Pixel>
void fill_features(const Pixel* image, const int64_t* step, int64_t height, int64_t width,
                   const std::array<float, 2>& sigma_xy, const std::vector<float>& sigma_color, float* features) {
  py::gil_scoped_release release;
  ThreadParallel parallel;
  ThreadParallel::Crew crew(parallel);
  const int64_t points = height * width;
  parallel.range(height, 1 + (1 << 14) / width, [&](int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) {
      float* row = features + y * width;
      segops::position_row(row, points, y, width, sigma_xy[0], sigma_xy[1]);
      for (size_t c = 0; c < sigma_color.size(); ++c)
        segops::color_row(row + (2 + c) * points, image + step[0] * y + step[2] * int64_t(c), step[1], width,
                          sigma_color[c]);
    }
  });
}

py::array_t<float> image_features(py::array image, std::array<float, 2> sigma_xy,
                                  const std::vector<float>& sigma_color) {
  expect(image.ndim() == 3 && image.shape(2) == py::ssize_t(sigma_color.size()),
         "image: expected shape (height, width, channels), and a sigma for each channel");
  const bool bytes = py::isinstance<py::array_t<uint8_t>>(image);
  if (!bytes) image = Floats(image);
  int64_t step[3];
  for (int i = 0; i < 3; ++i) step[i] = image.strides(i) / image.itemsize();
  const int64_t height = image.shape(0), width = image.shape(1);
  py::array_t<float> out({2 + image.shape(2), py::ssize_t(height * width)});
  float* to = out.mutable_data();
  if (bytes)
    fill_features(static_cast<const uint8_t*>(image.data()), step, height, width, sigma_xy, sigma_color, to);
  else
    fill_features(static_cast<const float*>(image.data()), step, height, width, sigma_xy, sigma_color, to);
  return out;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "The dense CRF for NumPy arrays; float32, on as many threads as OMP_NUM_THREADS and the processors allow.";

  py::class_<LatticeCrf>(m, "LatticeCrf", "Mean-field inference over one set of points; the lattices are built once.")
      .def(py::init<int64_t, int, const std::vector<Floats>&, const std::vector<int>&>(), py::arg("points"),
           py::arg("labels"), py::arg("features"), py::arg("normalizations"),
           "One lattice for each of the features (D, points). Normalizations: 0 none, 1 before, 2 after, 3 symmetric.")
      .def("inference", &LatticeCrf::inference, py::arg("logits"), py::arg("energy"), py::arg("iterations"),
           "Marginals (labels, points) after so many updates. energy: (kernels, labels) or (kernels, labels, labels).")
      .def("update", &LatticeCrf::update, py::arg("logits").none(true), py::arg("marginals"),
           py::arg("out").noconvert(), py::arg("energy"),
           "One update of marginals, written to out: softmax(logits - sum_k C K Q); without logits, -sum_k C K Q.");

  m.def("logits", &logits, py::arg("energy"), "Unary energies (labels, points) to logits: checked, and negated.");
  m.def(
      "image_features", &image_features, py::arg("image"), py::arg("sigma_xy"), py::arg("sigma_color"),
      "Features (2 + channels, height * width) of an image (height, width, channels), uint8 or float: x, y, channels, "
      "each over its sigma.");
  m.def("require_memory", &segops::require_memory, py::arg("bytes"), py::arg("what"),
        "Raise MemoryError if so many bytes are not to be had: Linux would promise them, and end the process that uses "
        "them.");
  m.def("threads", &segops::usable_threads, "The number of threads that the next call will use.");
  m.def("isa", &segops::isa_name, "The instruction set that was chosen on this processor: base, avx2 or avx512.");
}
