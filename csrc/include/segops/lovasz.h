// The Lovasz losses: errors of all pixels, one class of one set of pixels after the other, sorted and summed with the
// steps of the Jaccard loss. No torch in here.
//
// A segment is a class of a set (an image, or the whole batch). Of its pixels only some are sorted (see `select`):
// behind the last of the foreground nothing has a step, so background with an error below the least of the foreground's
// takes no part. Nothing is kept from the forward pass to the backward pass: to do this again costs less than to write
// and read the steps of all classes at all pixels.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "segops/buffer.h"
#include "segops/isa.h"
#include "segops/jaccard_step.h"
#include "segops/labels.h"
#include "segops/parallel.h"
#include "segops/radix_sort.h"

namespace segops::lovasz {

// What makes errors of the input.
enum class Link { kNone, kSoftmax, kSigmoid, kHinge };

constexpr int64_t kTile = 256;  // pixels of all channels at a time
constexpr int64_t kLane = 16;   // rows of our own are padded to a multiple

// Pixels of one channel of one image. The arrays of our own (peak, scale, label) can be read up to the padding.
template <class T>
struct Row {
  const T* value;
  const T* peak;         // softmax: the largest logit of each pixel
  const T* scale;        // softmax: 1 / sum of exp(logit - peak)
  const int32_t* label;  // -1 where ignored
  int64_t count;
};

// A pixel that takes part. The bits of a positive float have the order of the float; the lowest of the key says whether
// the pixel is foreground.
template <class T>
struct Record {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  Bits key, pixel;

  static Record of(T error, bool foreground, int64_t pixel) {
    return {Bits(std::bit_cast<Bits>(error) << 1 | Bits(foreground)), Bits(pixel)};
  }
  Bits rank() const { return key >> 1; }
  T error() const { return std::bit_cast<T>(rank()); }
  bool foreground() const { return key & 1; }
};

// The foreground of a segment.
template <class T>
struct Count {
  int64_t pixels = 0;
  T least = std::numeric_limits<T>::infinity();  // of their errors
};

template <class T>
bool is_foreground(const Record<T>& record) {
  return record.foreground();
}
template <class T>
  requires std::is_floating_point_v<T>
bool is_foreground(T value) {
  return value != 0;
}

#define SEGOPS_ISA_FILE "segops/lovasz_isa.h"
#include "segops/foreach_isa.h"

// jaccard_steps of the chosen instruction set.
template <class Element>
int64_t steps_of(const Element* elements, int64_t count, int64_t all, int64_t before, int64_t background,
                 double* steps) {
  return SEGOPS_BY_ISA(jaccard_steps<Element>)(elements, count, all, before, background, steps);
}

template <class T>
struct Problem {
  const T* input;         // (batch, channels, points)
  const int64_t* target;  // (batch, points)
  int64_t batch, channels, points;
  Link link;
  std::vector<int64_t> classes;  // the channels that are averaged
  bool present;                  // only those with a pixel in the set
  bool per_image;
  std::optional<int64_t> ignore_index;
  const T* class_weight = nullptr;  // (channels,)

  int64_t sets() const { return per_image ? batch : 1; }
  int64_t images_of_a_set() const { return per_image ? 1 : batch; }
  int64_t labels() const { return std::max<int64_t>(channels, 2); }
  int64_t label_of(int64_t channel) const { return channels == 1 ? 1 : channel; }
};

// Division of numbers below 2^32 by one of them, as a product: Lemire, Kaser and Kurz, Faster remainder by direct
// computation, 2019. By 0 it gives 0.
class Quotient {
 public:
  explicit Quotient(uint64_t divisor) : inverse_(divisor > 1 ? ~uint64_t(0) / divisor + 1 : 0), one_(divisor == 1) {}
  int64_t of(uint64_t x) const { return int64_t(one_ ? x : uint64_t((unsigned __int128)(inverse_)*x >> 64)); }

 private:
  uint64_t inverse_;
  bool one_;
};

template <class T>
class Loss {
 public:
  Loss(Problem<T> problem, Parallel& parallel)
      : p_(std::move(problem)),
        parallel_(parallel),
        pitch_((p_.points + kLane - 1) / kLane * kLane),
        label_(p_.batch * pitch_ + kLane),
        counts_(p_.sets() * p_.labels()) {
    if (p_.images_of_a_set() * p_.points >= int64_t(1) << 32)
      throw std::invalid_argument("target: expected fewer than 2^32 pixels in a set");
    if (p_.link == Link::kSoftmax) {
      peak_ = Buffer<T>(p_.batch * pitch_ + kLane);
      scale_ = Buffer<T>(p_.batch * pitch_ + kLane);
    }
    survey();
    weigh();
  }

  // (sets,)
  void forward(T* out) {
    std::vector<double> losses(p_.sets() * p_.classes.size());
    each_segment([&](int64_t set, int64_t k, Records& records, bool nan) {
      double sum = nan ? std::numeric_limits<double>::quiet_NaN() : 0;
      each_step(set, k, records, [&](const Record<T>* r, const double* steps, int64_t count) {
        sum += SEGOPS_BY_ISA(weighted_errors<T>)(r, steps, count);
      });
      losses[set * p_.classes.size() + k] = sum;
    });
    for (int64_t set = 0; set < p_.sets(); ++set) {
      double sum = 0;
      for (size_t k = 0; k < p_.classes.size(); ++k)
        if (used(set, p_.classes[k])) sum += factor_of(set, k) * losses[set * p_.classes.size() + k];
      out[set] = T(sum);
    }
  }

  // grad (sets,), out (batch, channels, points)
  void backward(const T* grad, T* out) {
    each_segment([&](int64_t set, int64_t k, Records& records, bool nan) {
      const double factor = double(grad[set]) * factor_of(set, k);
      T* plane = out + (first_image(set) * p_.channels + p_.classes[k]) * p_.points;
      for (int64_t n = 0; n < p_.images_of_a_set(); ++n)
        std::fill_n(plane + n * p_.channels * p_.points, p_.points, T(0));
      if (factor == 0) return;
      if (nan) return fill_valid(set, plane, std::numeric_limits<T>::quiet_NaN());
      const int64_t skip = (p_.channels - 1) * p_.points;  // from the end of a plane to the same one of the next image
      const Quotient image(p_.per_image ? 0 : p_.points);
      each_step(set, k, records, [&](const Record<T>* r, const double* steps, int64_t count) {
        for (int64_t i = 0; i < count; ++i)
          plane[image.of(r[i].pixel) * skip + r[i].pixel] =
              T(r[i].foreground() ? -factor * steps[i] : factor * steps[i]);
      });
    });
    chain_rule(out);
  }

 private:
  struct Records {
    Buffer<Record<T>> list, room;
    int64_t count = 0;
  };

  int64_t first_image(int64_t set) const { return p_.per_image ? set : 0; }
  Count<T>& count_of(int64_t set, int64_t label) { return counts_[set * p_.labels() + label]; }

  Row<T> row(int64_t n, int64_t channel, int64_t first, int64_t count) const {
    const int64_t at = n * pitch_ + first;
    return {p_.input + (n * p_.channels + channel) * p_.points + first, peak_.data() + at, scale_.data() + at,
            label_.data() + at, count};
  }

  // chunk(first tile, last tile + 1) over the tiles of all images.
  template <class Chunk>
  void each_chunk(const Chunk& chunk) {
    parallel_.range(p_.batch * tiles(), 1 + 16384 / (kTile * p_.channels), chunk);
  }
  int64_t tiles() const { return (p_.points + kTile - 1) / kTile; }

  struct Tile {
    int64_t image, first, count;
  };
  Tile tile(int64_t i) const {
    const int64_t first = i % tiles() * kTile;
    return {i / tiles(), first, std::min(kTile, p_.points - first)};
  }

  // Labels in a narrow form, the statistics of the softmax, and of each label in each set its pixels and least error.
  void survey() {
    constexpr int64_t kNone = std::numeric_limits<int64_t>::min();
    std::atomic<int64_t> wrong{kNone};
    std::mutex mutex;
    each_chunk([&](int64_t begin, int64_t end) {
      Buffer<T> room(p_.channels * kTile), own(kTile);
      std::vector<Count<T>> counts(counts_.size());
      for (int64_t i = begin; i < end; ++i) {
        const Tile t = tile(i);
        if (const auto label = narrow_labels(t)) {
          wrong = *label;
          return;
        }
        count_labels(t, room.data(), own.data(), counts.data() + (p_.per_image ? t.image : 0) * p_.labels());
      }
      std::lock_guard lock(mutex);  // sums of integers and minima: their order does not matter
      for (size_t i = 0; i < counts.size(); ++i) {
        counts_[i].pixels += counts[i].pixels;
        counts_[i].least = std::min(counts_[i].least, counts[i].least);
      }
    });
    if (wrong != kNone) range().refuse(wrong);
  }

  LabelRange range() const { return {p_.labels(), p_.ignore_index}; }

  // Returns a label that is none.
  std::optional<int64_t> narrow_labels(const Tile& t) {
    const int64_t* from = p_.target + t.image * p_.points + t.first;
    int32_t* to = label_.data() + t.image * pitch_ + t.first;
    std::fill_n(to + t.count, (kLane - t.count % kLane) % kLane, -1);
    const bool ignores = p_.ignore_index.has_value();
    const int64_t ignored = p_.ignore_index.value_or(0);
    if (SEGOPS_BY_ISA(narrow_labels)(from, t.count, p_.labels(), ignores, ignored, to)) return std::nullopt;
    return *std::find_if(from, from + t.count, [this](int64_t label) { return range().is_wrong(label); });
  }

  // The pixels of each label, and the least of their errors as foreground.
  void count_labels(const Tile& t, T* room, T* own, Count<T>* counts) {
    const Row<T> pixels = row(t.image, 0, t.first, t.count);
    if (p_.channels == 1) return SEGOPS_BY_ISA(count_class<T>)(p_.link, pixels, 1, counts[1]);
    if (p_.link == Link::kSoftmax) {
      const int64_t at = t.image * pitch_ + t.first;
      SEGOPS_BY_ISA(softmax_statistics<T>)
      (pixels, p_.channels, p_.points, room, peak_.data() + at, scale_.data() + at, own);
    }
    for (int64_t i = 0; i < t.count; ++i) {
      const int32_t label = pixels.label[i];
      if (label < 0) continue;
      const T error = p_.link == Link::kSoftmax ? own[i] : std::abs(1 - pixels.value[label * p_.points + i]);
      ++counts[label].pixels;
      counts[label].least = std::min(counts[label].least, error);
    }
  }

  // What each class counts in its set: its weight over the number of classes that are averaged.
  void weigh() {
    factors_.assign(p_.sets() * p_.classes.size(), 0);
    used_.assign(p_.sets() * p_.channels, 0);
    for (int64_t set = 0; set < p_.sets(); ++set) {
      auto counted = [&](int64_t channel) { return !p_.present || count_of(set, p_.label_of(channel)).pixels > 0; };
      const auto number = std::count_if(p_.classes.begin(), p_.classes.end(), counted);
      for (size_t k = 0; k < p_.classes.size(); ++k) {
        const int64_t channel = p_.classes[k];
        if (!counted(channel)) continue;
        const double weight = p_.class_weight ? double(p_.class_weight[channel]) : 1.0;
        factors_[set * p_.classes.size() + k] = weight / double(number);
        used_[set * p_.channels + channel] = weight != 0;
      }
    }
  }
  double factor_of(int64_t set, int64_t k) const { return factors_[set * p_.classes.size() + k]; }
  bool used(int64_t set, int64_t channel) const { return used_[set * p_.channels + channel]; }

  // body(set, k, sorted records, whether there is a NaN) for the segments that count, the largest first. Which thread
  // takes which is left to chance, and decides nothing.
  template <class Body>
  void each_segment(const Body& body) {
    const int64_t classes = p_.classes.size();
    std::vector<int64_t> order;
    for (int64_t i = 0; i < p_.sets() * classes; ++i)
      if (used(i / classes, p_.classes[i % classes])) order.push_back(i);
    const int64_t segments = order.size();
    auto pixels = [&](int64_t i) { return count_of(i / classes, p_.label_of(p_.classes[i % classes])).pixels; };
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return pixels(a) > pixels(b); });
    const int64_t tasks = std::min<int64_t>({segments, parallel_.threads(), 1 + p_.batch * p_.points / 4096});
    std::atomic<int64_t> next{0};
    parallel_.run(int(tasks), [&](int) {
      Records records;
      const int64_t most = p_.images_of_a_set() * p_.points + kLane;
      records.list = Buffer<Record<T>>(most);
      records.room = Buffer<Record<T>>(most);
      for (int64_t i; (i = next++) < segments;) {
        const int64_t set = order[i] / classes, k = order[i] % classes;
        const bool nan = gather(set, k, records);
        body(set, k, records, nan);
      }
    });
  }

  bool gather(int64_t set, int64_t k, Records& records) {
    const int64_t channel = p_.classes[k], label = p_.label_of(channel);
    const Count<T>& count = count_of(set, label);
    const T least = count.pixels ? count.least : T(0);
    bool nan = false;
    Record<T>* end = records.list.data();
    for (int64_t n = 0; n < p_.images_of_a_set(); ++n)
      end = SEGOPS_BY_ISA(select<T>)(p_.link, row(first_image(set) + n, channel, 0, p_.points), int32_t(label), least,
                                     n * p_.points, end, nan);
    records.count = end - records.list.data();
    auto larger = [](const Record<T>& a, const Record<T>& b) { return a.rank() < b.rank(); };
    if (count.pixels) {
      sort_descending(records.list, records.room, records.count);
    } else if (records.count) {  // all of the loss is the largest error
      records.list[0] = *std::max_element(records.list.data(), end, larger);
      records.count = 1;
    }
    return nan;
  }

  // visit(records, their steps, count), in the order of the errors.
  template <class Visit>
  void each_step(int64_t set, int64_t k, const Records& records, const Visit& visit) {
    double steps[kTile];
    int64_t before = 0;  // foreground
    const int64_t all = count_of(set, p_.label_of(p_.classes[k])).pixels;
    for (int64_t i = 0; i < records.count; i += kTile) {
      const int64_t count = std::min(kTile, records.count - i);
      const Record<T>* r = records.list.data() + i;
      before = steps_of(r, count, all, before, i - before, steps);
      visit(r, steps, count);
    }
  }

  void fill_valid(int64_t set, T* plane, T value) const {
    for (int64_t n = 0; n < p_.images_of_a_set(); ++n, plane += p_.channels * p_.points) {
      const int32_t* label = label_.data() + (first_image(set) + n) * pitch_;
      for (int64_t i = 0; i < p_.points; ++i)
        if (label[i] >= 0) plane[i] = value;
    }
  }

  void chain_rule(T* grad) {
    each_chunk([&](int64_t begin, int64_t end) {
      Buffer<T> room(p_.link == Link::kSoftmax ? (2 * p_.channels + 1) * kTile : 0);
      for (int64_t i = begin; i < end; ++i) {
        const Tile t = tile(i);
        const Row<T> pixels = row(t.image, 0, t.first, t.count);
        const int64_t set = p_.per_image ? t.image : 0;
        T* at = grad + t.image * p_.channels * p_.points + t.first;
        if (p_.link == Link::kSoftmax) {
          const char* used = used_.data() + set * p_.channels;
          SEGOPS_BY_ISA(softmax_chain_rule<T>)(pixels, p_.channels, p_.points, used, room.data(), at);
          continue;
        }
        for (int64_t c = 0; c < p_.channels; ++c)
          if (!used(set, c)) std::fill_n(at + c * p_.points, t.count, T(0));
        if (p_.link == Link::kSigmoid && used(set, 0)) SEGOPS_BY_ISA(sigmoid_chain_rule<T>)(pixels, at);
      }
    });
  }

  Problem<T> p_;
  Parallel& parallel_;
  int64_t pitch_;
  Buffer<int32_t> label_;
  Buffer<T> peak_, scale_;
  std::vector<Count<T>> counts_;  // (sets, labels)
  std::vector<double> factors_;   // (sets, classes)
  std::vector<char> used_;        // (sets, channels): whether it is averaged
};

}  // namespace segops::lovasz
