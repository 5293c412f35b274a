// The Lovasz-softmax loss on a GPU, float32; see segops/reference/lovasz_softmax.py, and lovasz.cu for all but the
// errors. A thread makes the softmax of a pixel in one pass over its channels, whatever their number, and in a second
// pass, whose reads mostly come from the cache, the key of each class. Backward, the gradient by the probabilities
// takes memory that the sort is done with, and one kernel takes it through the softmax.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "segops/lovasz.cuh"
#include "segops/torch_errors.h"

namespace segops::gpu {
namespace {

enum class Activation { kNone, kSigmoid, kSoftmax };

// Where things are: an image is channels of points; classes with a slot have a row of keys, or a part of one.
struct Layout {
  const int64_t* target;  // (N, P)
  const int* slots;       // (C,), -1 for channels that are no class of the loss
  Labels labels;
  int images, points, channels;
  int64_t row_n, row_k, position_n;  // from one image or class to the next, in keys and in their positions

  __device__ __forceinline__ int64_t pixel(int image, int point) const { return int64_t(image) * points + point; }
  __device__ __forceinline__ int64_t input(int image, int point) const {
    return int64_t(image) * channels * points + point;
  }
  __device__ __forceinline__ int64_t key(int image, int slot, int point) const {
    return image * row_n + slot * row_k + point;
  }
};

// A softmax over what has been seen so far. All of -inf, of +inf or a NaN end in NaN, as they should.
struct Softmax {
  float top = -INFINITY, total = 0;

  __device__ __forceinline__ float shift() const { return top > -INFINITY ? top : 0.f; }
  // Returns by what to scale sums of earlier exponentials; `e` becomes the new one.
  __device__ __forceinline__ float add(float x, float& e) {
    const float before = top;
    top = fmaxf(top, x);
    const float scale = expf(before - shift());
    e = expf(x - shift());
    total = total * scale + e;
    return scale;
  }
  __device__ __forceinline__ float of(float x) const { return expf(x - shift()) / total; }
};

template <Activation kActivation>
__device__ __forceinline__ float probability(float x, const Softmax& softmax) {
  if (kActivation == Activation::kSoftmax) return softmax.of(x);
  return kActivation == Activation::kSigmoid ? 1.f / (1.f + expf(-x)) : x;
}

template <Activation kActivation>
__global__ void __launch_bounds__(kThreads)
    softmax_keys(const float* __restrict__ input, const __grid_constant__ Layout at, uint32_t* __restrict__ keys,
                 uint32_t* __restrict__ order) {
  const int point = row();
  if (point >= at.points) return;
  for (int image = blockIdx.y; image < at.images; image += gridDim.y) {
    const int64_t label = at.target[at.pixel(image, point)];
    const bool valid = at.labels.valid(label);
    const int64_t own = label - (at.labels.count - at.channels);  // a single channel is class 1 of 2
    const float* x = input + at.input(image, point);
    Softmax softmax;
    float e;
    if (kActivation == Activation::kSoftmax)
#pragma unroll 4
      for (int c = 0; c < at.channels; ++c) softmax.add(x[int64_t(c) * at.points], e);
#pragma unroll 4
    for (int c = 0; c < at.channels; ++c) {
      const int slot = at.slots[c];
      if (slot < 0) continue;
      const float p = probability<kActivation>(x[int64_t(c) * at.points], softmax);
      const int64_t k = at.key(image, slot, point);
      keys[k] = encode(fabsf((c == own ? 1.f : 0.f) - p), c == own, valid);
      if (order) order[k] = uint32_t(image * at.position_n + point);
    }
  }
}

// From the gradient by the probabilities to that by the input (N, C, P).
template <Activation kActivation>
__global__ void __launch_bounds__(kThreads)
    activation_backward(const float* __restrict__ input, const __grid_constant__ Layout at,
                        const float* __restrict__ slopes, float* __restrict__ out) {
  const int point = row();
  if (point >= at.points) return;
  for (int image = blockIdx.y; image < at.images; image += gridDim.y) {
    const int64_t first = at.input(image, point);
    const bool valid = at.labels.valid(at.target[at.pixel(image, point)]);
    const auto slope = [&](int c) {
      const int slot = at.slots[c];
      return slot < 0 ? 0.f : slopes[at.key(image, slot, point)];
    };
    Softmax softmax;
    float mean = 0;
    if (kActivation == Activation::kSoftmax && valid) {
#pragma unroll 4
      for (int c = 0; c < at.channels; ++c) {
        float e;
        const float scale = softmax.add(input[first + int64_t(c) * at.points], e);
        mean = mean * scale + e * slope(c);
      }
      mean /= softmax.total;
    }
#pragma unroll 4
    for (int c = 0; c < at.channels; ++c) {
      const int64_t i = first + int64_t(c) * at.points;
      float g = 0;  // an ignored pixel's, whose logits may be anything, NaN too
      if (valid) {
        g = slope(c);
        if (kActivation != Activation::kNone) {
          const float p = probability<kActivation>(input[i], softmax);
          g = kActivation == Activation::kSoftmax ? p * (g - mean) : g * p * (1 - p);
        }
      }
      out[i] = g;
    }
  }
}

// Classes travel as a kernel's arguments: a copy from the host's memory would have to wait for it.
struct Chunk {
  int begin, count, of[256];
};

__global__ void write_classes(const __grid_constant__ Chunk chunk, const float* __restrict__ weight,
                              int* __restrict__ slots, float* __restrict__ weights) {
  const int i = row();
  if (i >= chunk.count) return;
  slots[chunk.of[i]] = chunk.begin + i;
  weights[chunk.begin + i] = weight ? weight[chunk.of[i]] : 1.f;
}

struct Problem {
  Place place;
  Tensor input, target;
  std::optional<Tensor> class_weight;
  std::vector<int64_t> classes;
  bool present, per_image;
  std::optional<int64_t> ignore_index;
  Activation activation;
  Buffer<int> slots;
  Buffer<float> weights;

  int64_t images() const { return input.size(0); }
  int64_t channels() const { return input.size(1); }
  int64_t points() const { return input.size(2); }
  int64_t sets() const { return per_image ? images() : 1; }
  Average average() const { return {weights.data(), present}; }

  Problem(Tensor in, Tensor labels, std::optional<Tensor> weight, std::vector<int64_t> chosen, bool present,
          bool per_image, std::optional<int64_t> ignore_index, bool from_logits)
      : place(in),
        input(torch::stable::contiguous(in)),
        target(torch::stable::contiguous(labels)),
        class_weight(std::move(weight)),
        classes(std::move(chosen)),
        present(present),
        per_image(per_image),
        ignore_index(ignore_index) {
    require(input.dim() == 3 && input.size(1) > 0 && input.scalar_type() == ScalarType::Float,
            "input: expected (N, C, P) with C > 0, float32");
    require(target.dim() == 2 && target.scalar_type() == ScalarType::Long && target.device() == input.device() &&
                target.size(0) == images() && target.size(1) == points(),
            "target: expected (N, P), int64, on the device of input");
    require(channels() <= kMaxRows && points() <= kMaxRows, "input: expected at most 2^30 channels and pixels");
    require(!classes.empty(), "classes: expected one or more");
    for (const int64_t c : classes) require(c >= 0 && c < channels(), "classes: expected channels of input");
    require(
        !class_weight || (class_weight->dim() == 1 && class_weight->size(0) == channels() &&
                          class_weight->device() == input.device() && class_weight->scalar_type() == ScalarType::Float),
        "class_weight: expected (C,), float32, on the device of input");
    activation = !from_logits ? Activation::kNone : channels() == 1 ? Activation::kSigmoid : Activation::kSoftmax;
  }

  Layout layout() const {
    const int64_t count = int64_t(classes.size());
    return {target.const_data_ptr<int64_t>(),
            slots.data(),
            Labels(std::max<int64_t>(channels(), 2), ignore_index),
            int(images()),
            int(points()),
            int(channels()),
            per_image ? count * points() : points(),
            per_image ? points() : images() * points(),
            per_image ? 0 : points()};
  }

  template <class... Parameters, class... Arguments>
  void launch_on_pixels(void (*none)(Parameters...), void (*sigmoid)(Parameters...), void (*softmax)(Parameters...),
                        Arguments... arguments) const {
    launch(activation == Activation::kNone      ? none
           : activation == Activation::kSigmoid ? sigmoid
                                                : softmax,
           shape_of(points(), 1, images()), place, input.const_data_ptr<float>(), layout(), arguments...);
  }

  void place_classes() {
    const int64_t count = int64_t(classes.size());
    slots = Buffer<int>(place, channels());
    weights = Buffer<float>(place, count);
    slots.fill_bytes(0xff, place);
    if (class_weight) class_weight = torch::stable::contiguous(*class_weight);
    Chunk chunk;
    for (int64_t begin = 0; begin < count; begin += chunk.count) {
      chunk.begin = int(begin);
      chunk.count = int(std::min<int64_t>(std::size(chunk.of), count - begin));
      std::copy_n(classes.begin() + begin, chunk.count, chunk.of);
      launch(write_classes, shape_of(chunk.count), place, chunk,
             class_weight ? class_weight->const_data_ptr<float>() : nullptr, slots.data(), weights.data());
    }
  }

  ErrorRows sorted_errors(bool with_order) {
    place_classes();
    ErrorRows rows(place, sets(), int64_t(classes.size()), images() * points() / sets(), with_order);
    launch_on_pixels(softmax_keys<Activation::kNone>, softmax_keys<Activation::kSigmoid>,
                     softmax_keys<Activation::kSoftmax>, rows.keys.data(), rows.order.data());
    sort(place, rows);
    return rows;
  }
};

Tensor lovasz_softmax(Tensor input, Tensor target, std::optional<Tensor> class_weight, std::vector<int64_t> classes,
                      bool present, bool per_image, std::optional<int64_t> ignore_index, bool from_logits) {
  Problem problem(input, target, class_weight, classes, present, per_image, ignore_index, from_logits);
  const Tensor losses = problem.place.floats({problem.sets()});
  if (input.numel() == 0) return torch::stable::fill_(losses, 0.0);
  const ErrorRows rows = problem.sorted_errors(false);
  write_losses(problem.place, rows, problem.average(), losses.mutable_data_ptr<float>());
  return losses;
}

Tensor lovasz_softmax_backward(Tensor grad, Tensor input, Tensor target, std::optional<Tensor> class_weight,
                               std::vector<int64_t> classes, bool present, bool per_image,
                               std::optional<int64_t> ignore_index, bool from_logits) {
  Problem problem(input, target, class_weight, classes, present, per_image, ignore_index, from_logits);
  const Tensor out = problem.place.floats(input.sizes());
  if (input.numel() == 0) return out;
  require(grad.dim() == 1 && grad.size(0) == problem.sets() && grad.device() == input.device() &&
              grad.scalar_type() == ScalarType::Float,
          "grad: expected (S,), one for each set, float32");
  const ErrorRows rows = problem.sorted_errors(true);
  const Tensor above = torch::stable::contiguous(grad);
  float* slopes = rows.free_memory();
  write_slopes(problem.place, rows, problem.average(), above.const_data_ptr<float>(), slopes);
  problem.launch_on_pixels(activation_backward<Activation::kNone>, activation_backward<Activation::kSigmoid>,
                           activation_backward<Activation::kSoftmax>, slopes, out.mutable_data_ptr<float>());
  return out;
}

}  // namespace
}  // namespace segops::gpu

STABLE_TORCH_LIBRARY_IMPL(segops_cuda, CUDA, m) {
  m.impl("lovasz_softmax", SEGOPS_BOX(segops::gpu::lovasz_softmax));
  m.impl("lovasz_softmax_backward", SEGOPS_BOX(segops::gpu::lovasz_softmax_backward));
}
