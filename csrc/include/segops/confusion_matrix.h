// The confusion matrix: tiles of labels become places in the matrix, which each thread counts for itself.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <mutex>
#include <optional>
#include <vector>

#include "segops/isa.h"
#include "segops/memory.h"
#include "segops/parallel.h"

namespace segops::confusion {

constexpr int64_t kTile = 2048;   // pixels at a time
constexpr int32_t kOutside = -1;  // no label
constexpr int32_t kIgnored = std::numeric_limits<int32_t>::min();

#define SEGOPS_ISA_FILE "segops/confusion_matrix_isa.h"
#include "segops/foreach_isa.h"

// `count` labels, narrow; those equal to `ignored`, if there is such, are kIgnored.
template <class T>
void read_labels(const T* from, int64_t count, int32_t classes, std::optional<int64_t> ignored, int32_t* to) {
  const bool ignores = ignored && *ignored >= int64_t(std::numeric_limits<T>::min()) &&
                       *ignored <= int64_t(std::numeric_limits<T>::max());
  SEGOPS_BY_ISA(narrow<T>)(from, count, classes, ignores, ignores ? T(*ignored) : T(0), to);
}

// The argmax of `count` pixels of planes `plane` apart.
template <class T>
void read_argmax(const T* logits, int64_t plane, int64_t channels, int64_t count, int32_t* to) {
  SEGOPS_BY_ISA(argmax_of_planes<T>)(logits, plane, channels, count, to);
}

// Neighbouring pixels are mostly of one class: counted in several copies of the matrix in turn, an increment need not
// wait for the one before it.
class Counts {
 public:
  explicit Counts(int64_t places)
      : places_(places), copies_(places * kMost * sizeof(int64_t) <= kCache ? kMost : 1), count_(places * copies_) {}

  void add(const int32_t* place, int64_t count) {
    int64_t* to = count_.data();
    int64_t i = 0;
    if (copies_ == kMost)
      for (; i + kMost <= count; i += kMost)
        for (int64_t k = 0; k < kMost; ++k) ++to[k * places_ + place[i + k]];
    for (; i < count; ++i) ++to[place[i]];
  }

  void add_to(int64_t* out, int64_t count) const {
    for (int64_t k = 0; k < copies_; ++k)
      for (int64_t i = 0; i < count; ++i) out[i] += count_[k * places_ + i];
  }

 private:
  static constexpr int64_t kMost = 4, kCache = 1 << 16;
  int64_t places_, copies_;
  std::vector<int64_t> count_;
};

// Counts the pixels of `images` times `points` into out (classes, classes). predict and target(image, first, count, to)
// give labels of a tile. Returns the first pixel with a label out of range, or -1.
template <class Predict, class Target>
int64_t count(int64_t images, int64_t points, int32_t classes, Parallel& parallel, const Predict& predict,
              const Target& target, int64_t* out) {
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  const int64_t places = int64_t(classes) * classes, tiles = (points + kTile - 1) / kTile;
  require_memory(8.0 * double(places) * parallel.threads(), "confusion_matrix");
  std::fill_n(out, places, 0);
  int64_t wrong = kNone;
  std::mutex mutex;
  parallel.range(images * tiles, 8, [&](int64_t begin, int64_t end) {
    Counts counts(places + 1);
    int32_t p[kTile], t[kTile], place[kTile];
    int64_t bad = kNone;
    for (int64_t i = begin; i < end && bad == kNone; ++i) {
      const int64_t image = i / tiles, first = i % tiles * kTile, n = std::min(kTile, points - first);
      target(image, first, n, t);
      predict(image, first, n, p);
      if (SEGOPS_BY_ISA(find_places)(p, t, n, classes, place)) {
        counts.add(place, n);
        continue;
      }
      int64_t at = 0;
      while (t[at] == kIgnored || (t[at] >= 0 && p[at] >= 0)) ++at;
      bad = image * points + first + at;
    }
    std::lock_guard lock(mutex);  // sums of integers: their order does not matter
    counts.add_to(out, places);
    wrong = std::min(wrong, bad);
  });
  return wrong == kNone ? -1 : wrong;
}

}  // namespace segops::confusion
