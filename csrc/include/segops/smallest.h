// The k smallest of many non-negative numbers, in ascending order, equal ones in the order of their places: what "the
// most uncertain first" asks for. Exact, so the answer does not depend on how the numbers are cut into pieces.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "segops/buffer.h"

namespace segops {

// Keeps candidates while numbers stream by. Once there are k, only numbers below the largest of them get in, so few do;
// when the room is full, all but the k smallest are dropped. Time linear in the numbers, memory in k.
template <class T>
class Smallest {
 public:
  using Key = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;  // bits of numbers >= 0 have their order

  struct Candidate {
    Key key;
    int64_t place;
  };

  static constexpr int64_t kBlock = 1024;  // the most that one push may bring

  // For k of at most `count` numbers.
  Smallest(int64_t k, int64_t count)
      : k_(std::min(k, count)),
        capacity_(std::min(count, kRoom * k_ + 4 * kBlock)),
        candidates_(capacity_ + 1) {}  // one more, since every number is written before it is judged

  // values[i] lies at place first + i; places ascend from push to push. At most kBlock at once.
  void push(const T* values, int64_t count, int64_t first) {
    if (k_ == 0) return;
    make_room(count);
    Candidate* to = candidates_.data() + size_;
    for (int64_t i = 0; i < count; ++i) {
      const Key key = std::bit_cast<Key>(values[i]);
      *to = {key, first + i};
      to += key < limit_;
    }
    size_ = to - candidates_.data();
  }

  // The candidates of another, whose places all come later.
  void append(const Smallest& later) {
    for (int64_t begin = 0; begin < later.size_; begin += kBlock) {
      const int64_t count = std::min(kBlock, later.size_ - begin);
      make_room(count);
      for (int64_t i = begin; i < begin + count; ++i)
        if (later.candidates_[i].key < limit_) candidates_[size_++] = later.candidates_[i];
    }
  }

  // The k smallest (fewer, if fewer came), ascending, and how many they are.
  std::pair<const Candidate*, int64_t> sorted() {
    prune();
    sort();
    return {candidates_.data(), size_};
  }

 private:
  static constexpr int kBits = 8 * sizeof(Key), kMostBits = 11;
  static constexpr int64_t kRoom = 4;  // in units of k: more room, fewer prunings
  using Counts = std::array<int64_t, 1 << kMostBits>;

  // Bits of a radix digit: no more values than candidates.
  int digit_bits() const { return std::clamp(int(std::bit_width(uint64_t(size_))) - 1, 4, kMostBits); }

  void make_room(int64_t count) {
    if (size_ + count > capacity_) prune();
  }

  // The k-th smallest key and how many are smaller: one digit after the other, from the top.
  std::pair<Key, int64_t> kth() const {
    const int bits = digit_bits();
    Counts counts;
    Key prefix = 0;
    int64_t smaller = 0;
    for (int shift = kBits; shift > 0;) {
      const int width = std::min(bits, shift), above = shift;
      shift -= width;
      std::fill_n(counts.begin(), 1 << width, 0);
      for (int64_t i = 0; i < size_; ++i) {
        const Key key = candidates_[i].key ^ prefix;
        if (above == kBits || key >> (above % kBits) == 0) ++counts[key >> shift];
      }
      Key digit = 0;
      while (smaller + counts[digit] < k_) smaller += counts[digit++];
      prefix |= digit << shift;
    }
    return {prefix, smaller};
  }

  void prune() {
    if (size_ <= k_) return;
    const auto [key, smaller] = kth();
    int64_t equal = k_ - smaller;  // so many of those with the key itself, the first ones
    Candidate* to = candidates_.data();
    for (int64_t i = 0; i < size_; ++i) {
      const Candidate candidate = candidates_[i];
      const bool tied = candidate.key == key && equal > 0;
      *to = candidate;
      to += candidate.key < key || tied;
      equal -= tied;
    }
    size_ = k_;
    limit_ = key;
  }

  // Stable, by digits from the bottom: candidates come in the order of their places.
  void sort() {
    const int bits = digit_bits();
    const Key values = Key(1) << bits;
    Counts starts;
    Buffer<Candidate> other(size_);
    for (int shift = 0; shift < kBits; shift += bits) {
      std::fill_n(starts.begin(), values, 0);
      for (int64_t i = 0; i < size_; ++i) ++starts[(candidates_[i].key >> shift) % values];
      if (size_ > 0 && starts[(candidates_[0].key >> shift) % values] == size_) continue;  // a digit that all share
      int64_t sum = 0;
      for (Key value = 0; value < values; ++value) sum += std::exchange(starts[value], sum);
      for (int64_t i = 0; i < size_; ++i) other[starts[(candidates_[i].key >> shift) % values]++] = candidates_[i];
      std::swap(candidates_, other);
    }
  }

  int64_t k_, capacity_, size_ = 0;
  Key limit_ = ~Key{0};
  Buffer<Candidate> candidates_;
};

}  // namespace segops
