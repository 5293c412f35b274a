// Where an attention map holds the weight of each source at each receiver; see segops/reference/psa.py.
//
// An entry lies at its own position, the receiver where it collects, the source where it distributes, and tells apart
// the other ones: by their distance, row and column, or in compact form by their number. So a row of an entry's plane
// is a diagonal of the matrix (own, other), and in compact form a row of it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "segops/bfloat16.h"

namespace segops::psa {

constexpr int64_t kAhead =
    4;  // planes; a run is short, and the next one lies a plane further: no processor foresees that

// A range of positions, row-major in the map.
struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

struct Window {
  int64_t height, width;            // of the map
  int64_t mask_height, mask_width;  // odd; not used in compact form
  bool collect, compact;

  int64_t positions() const { return height * width; }
  int64_t planes() const { return compact ? positions() : mask_height * mask_width; }
  // Does every source have an entry at every receiver?
  bool covers() const { return compact || (mask_height >= 2 * height - 1 && mask_width >= 2 * width - 1); }

  // The positions in all rows that the window reaches from those of `at`.
  Range reached(Range at) const {
    if (compact) return {0, positions()};
    const int64_t reach = mask_height / 2;
    return {std::max<int64_t>(0, at.begin / width - reach) * width,
            std::min(height, (at.end - 1) / width + reach + 1) * width};
  }

  // body(offset, own, other, count): so many entries from an offset on belong to positions that begin at own and other,
  // both counted from the start of their range. One by one own grows by 1 and other by 1, in compact form by 0.
  template <class Body>
  void each_run(Range own, Range other, const Body& body) const {
    if (compact) {
      for (int64_t at = other.begin; at < other.end; ++at)
        body(at * positions() + own.begin, 0, at - other.begin, own.size());
      return;
    }
    for (int64_t y = own.begin / width; y * width < own.end; ++y)
      for (int64_t other_y = other.begin / width; other_y * width < other.end; ++other_y) {
        const int64_t i = other_y - y + mask_height / 2;
        if (i >= 0 && i < mask_height)
          each_diagonal(i, y, part(own, y), other_y, part(other, other_y), own, other, body);
      }
  }

  // each_run with the range of receivers and that of sources.
  template <class S, class T = Sum<S>>
  void gather(const S* entries, Range sources, int64_t source_stride, Range receivers, int64_t receiver_stride,
              T* tile) const {
    if (!covers()) {
      const bool by_source = source_stride > receiver_stride;
      const int64_t rows = by_source ? sources.size() : receivers.size();
      const int64_t columns = by_source ? receivers.size() : sources.size();
      const int64_t stride = by_source ? source_stride : receiver_stride;
      for (int64_t r = 0; r < rows; ++r) std::fill_n(tile + r * stride, columns, T(0));
    }
    walk(sources, source_stride, receivers, receiver_stride,
         [&](int64_t offset, int64_t at, int64_t step, int64_t count) {
           const S* from = entries + offset;
           for (int64_t k = 0; k < count; k += 64 / sizeof(S)) __builtin_prefetch(from + kAhead * positions() + k);
           for (int64_t k = 0; k < count; ++k) tile[at + k * step] = widen(from[k]);
         });
  }

  // And back, every entry of a source and a receiver in these ranges.
  template <class S, class T = Sum<S>>
  void scatter(const T* tile, Range sources, int64_t source_stride, Range receivers, int64_t receiver_stride,
               S* entries) const {
    walk(sources, source_stride, receivers, receiver_stride,
         [&](int64_t offset, int64_t at, int64_t step, int64_t count) {
           S* to = entries + offset;
           for (int64_t k = 0; k < count; ++k) to[k] = narrow<S>(tile[at + k * step]);
         });
  }

  // Zeros in what belongs to no position, in the planes [begin, end).
  template <class S>
  void clear_outside(S* entries, int64_t begin, int64_t end) const {
    if (compact) return;
    for (int64_t plane = begin; plane < end; ++plane) {
      const auto [top, bottom] = inside(plane / mask_width - mask_height / 2, height);
      const auto [left, right] = inside(plane % mask_width - mask_width / 2, width);
      S* to = entries + plane * positions();
      S* at = to + (top < bottom ? top * width + left : positions());
      std::fill(to, at, S{});  // in one piece, as all that lies between the insides of two rows
      for (int64_t y = top; y < bottom; ++y) {
        S* next = y + 1 < bottom ? at + width : to + positions();
        std::fill(at + (right - left), next, S{});
        at = next;
      }
    }
  }

 private:
  // The part of a range that lies in a row, as columns.
  Range part(Range range, int64_t row) const {
    return {std::max(range.begin - row * width, int64_t(0)), std::min(range.end - row * width, width)};
  }
  // The places from which a shift does not lead out of the map; none where it always does.
  static Range inside(int64_t shift, int64_t size) {
    const int64_t begin = std::min(std::max<int64_t>(0, -shift), size);
    return {begin, std::max(begin, std::min(size, size - shift))};
  }

  template <class Body>
  void each_diagonal(int64_t i, int64_t y, Range x, int64_t other_y, Range other_x, Range own, Range other,
                     const Body& body) const {
    const int64_t half = mask_width / 2;
    const int64_t least = std::max(-half, other_x.begin - x.end + 1), most = std::min(half, other_x.end - 1 - x.begin);
    for (int64_t shift = least; shift <= most; ++shift) {
      const int64_t begin = std::max(x.begin, other_x.begin - shift), end = std::min(x.end, other_x.end - shift);
      body((i * mask_width + shift + half) * positions() + y * width + begin, y * width + begin - own.begin,
           other_y * width + begin + shift - other.begin, end - begin);
    }
  }

  // each_run as places in a tile: body(offset, place, step, count).
  template <class Body>
  void walk(Range sources, int64_t source_stride, Range receivers, int64_t receiver_stride, const Body& body) const {
    const int64_t own_stride = collect ? receiver_stride : source_stride;
    const int64_t other_stride = collect ? source_stride : receiver_stride;
    const int64_t step = own_stride + (compact ? 0 : other_stride);
    each_run(collect ? receivers : sources, collect ? sources : receivers,
             [&](int64_t offset, int64_t own, int64_t other, int64_t count) {
               body(offset, own * own_stride + other * other_stride, step, count);
             });
  }
};

}  // namespace segops::psa
