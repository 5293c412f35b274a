// How the operators that multiply pixels with a few vectors cut their work (see tile_product_isa.h).
#pragma once

#include <algorithm>
#include <cstdint>

#include "segops/bfloat16.h"
#include "segops/parallel.h"

namespace segops {

constexpr int kTile = 96;       // pixels: with 512 channels 192 KiB in float32
constexpr int kTileLanes = 16;  // rows of vectors are padded to whole registers of every instruction set

inline int64_t padded_lanes(int64_t count) { return (count + kTileLanes - 1) / kTileLanes * kTileLanes; }

// body(thread, begin, end): whole tiles of the pixels for each thread.
class Tiles {
 public:
  Tiles(int64_t pixels, Parallel& parallel)
      : pixels_(pixels), tiles_((pixels + kTile - 1) / kTile), parallel_(parallel) {}
  int threads() const { return int(std::min<int64_t>(tiles_, parallel_.threads())); }
  Parallel& parallel() const { return parallel_; }

  template <class Body>
  void run(const Body& body) {
    const int n = threads();
    parallel_.run(n, [&](int i) {
      body(i, Parallel::cut(tiles_, i, n) * kTile, std::min(pixels_, Parallel::cut(tiles_, i + 1, n) * kTile));
    });
  }

 private:
  int64_t pixels_, tiles_;
  Parallel& parallel_;
};

}  // namespace segops
