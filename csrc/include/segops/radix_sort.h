// A radix sort of records that have a rank() of unsigned bits and little else.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <utility>

#include "segops/buffer.h"

namespace segops {

// Puts the first `count` records of `list` into descending order of their ranks; equal ones keep their order. `room` is
// as large as the list, and the two may change places. Passes are as few as the span of the ranks asks for. More than
// 2^10 places to write to at a time do not fit the first cache: 2^11 take twice as long a pass.
template <class Record>
void sort_descending(Buffer<Record>& list, Buffer<Record>& room, int64_t count) {
  using Bits = decltype(list[0].rank());
  constexpr int kDigit = 10, kMostPasses = (8 * sizeof(Bits) + kDigit - 1) / kDigit;
  if (count < 512) {  // less than it takes to clear the counters
    std::stable_sort(list.data(), list.data() + count,
                     [](const Record& a, const Record& b) { return a.rank() > b.rank(); });
    return;
  }
  Bits largest = 0, smallest = ~Bits(0);
  for (int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, list[i].rank());
    smallest = std::min(smallest, list[i].rank());
  }
  const int bits = std::bit_width(Bits(largest - smallest)), passes = (bits + kDigit - 1) / kDigit;
  if (passes == 0) return;
  const int width = (bits + passes - 1) / passes;
  const Bits mask = (Bits(1) << width) - 1;
  std::array<std::array<uint32_t, 1 << kDigit>, kMostPasses> places;  // fewer than 2^32 records
  for (int pass = 0; pass < passes; ++pass) std::fill_n(places[pass].data(), mask + 1, 0);
  for (int64_t i = 0; i < count; ++i) {
    const Bits rest = largest - list[i].rank();
    for (int pass = 0; pass < passes; ++pass) ++places[pass][rest >> (pass * width) & mask];
  }
  for (int pass = 0; pass < passes; ++pass) {
    auto& place = places[pass];
    uint32_t before = 0;
    for (Bits d = 0; d <= mask; ++d) before += std::exchange(place[d], before);
    for (int64_t i = 0; i < count; ++i) {
      const Record r = list[i];
      room[place[Bits(largest - r.rank()) >> (pass * width) & mask]++] = r;
    }
    std::swap(list, room);
  }
}

}  // namespace segops
