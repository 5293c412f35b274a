// Interlaced attention: dense attention within the groups of a relation; see segops/reference/interlaced_attention.py.
// No torch in here.
//
// A thread takes a lot of groups side by side and copies a chunk of their channels at a time into small arrays
// (channels, padded members), out of whole lines of the map, so that what is multiplied lies in cache and nothing as
// large as a map is copied. Of the weights only those of the lot exist at a time. The backward makes them anew: with
// the paper's widths that is a seventh of its products, and they would have to be kept for every pixel.
//
// Where the processor multiplies pairs of bfloat16, maps of it are copied as they are, weights and their gradients are
// rounded to it before they are multiplied, and all sums are float.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "segops/bfloat16.h"
#include "segops/buffer.h"
#include "segops/isa.h"
#include "segops/memory.h"
#include "segops/parallel.h"

namespace segops::interlaced {

constexpr int64_t kChunk = 64;  // channels at a time
constexpr int64_t kPad = 8;     // members are padded to multiples of this
// Bytes of a lot's weights, or one group's if they are more: of eight groups of 360 members, since fewer than eight
// side by side can't be moved in tiles.
constexpr int64_t kWeights = 4 << 20;

// How the groups lie along one side of a map: in blocks of `factor`, or in lattices of that step. Blocks at the edges
// are narrower, evenly on both sides.
struct Axis {
  int64_t size, factor;
  bool local;

  int64_t blocks() const { return (size + factor - 1) / factor; }
  int64_t before() const { return (blocks() * factor - size) / 2; }
  int64_t groups() const { return local ? blocks() : std::min(factor, size); }
  int64_t step() const { return local ? 1 : factor; }
  int64_t begin(int64_t group) const { return local ? std::max<int64_t>(group * factor - before(), 0) : group; }
  int64_t count(int64_t group) const {
    return local ? std::min((group + 1) * factor - before(), size) - begin(group)
                 : (size - group + factor - 1) / factor;
  }
  int64_t most() const { return local ? std::min(factor, size) : blocks(); }  // members of a group
};

// Where members lie in a plane of the map, and where in the first row of an array.
struct Single {
  int64_t map, array;
};
struct Tile {
  int64_t map, arrays[8];
};

// Groups side by side. Their members are moved in tiles, of eight each of eight neighbouring groups of a lattice, in
// runs of eight members of one block, and the rest as singles.
struct Lot {
  std::vector<int64_t> members;  // of each group
  std::vector<Tile> tiles;
  std::vector<Single> runs, singles;
  int64_t step, area;  // from member to member in a tile; from group to group in an array

  int64_t groups() const { return int64_t(members.size()); }
};

template <class S, class T = Sum<S>>
struct Problem {
  int64_t batch, dims, channels;
  Axis y, x;
  T scale;
  const S *query = nullptr, *key = nullptr, *value = nullptr;  // (batch, dims or channels, H, W)
  S* out = nullptr;                                            // written by the forward
  const S* grad = nullptr;                                     // read by the backward
  S *grad_query = nullptr, *grad_key = nullptr, *grad_value = nullptr;

  int64_t pixels() const { return y.size * x.size; }
  int64_t groups() const { return batch * y.groups() * x.groups(); }
  int64_t padded() const { return (y.most() * x.most() + kPad - 1) / kPad * kPad; }
  // From row to row of an array, and from group to group of one with kChunk rows: odd multiples of half a line of
  // cache, since what lies a power of two apart competes for the same few places of a cache.
  int64_t pitch() const { return padded() | kPad; }
  int64_t area() const { return kChunk * pitch() + kPad; }
  int64_t square() const { return padded() * pitch(); }
  int64_t together() const { return std::clamp<int64_t>(kWeights / (square() * int64_t(sizeof(T))), 1, x.groups()); }

  // `count` groups from (row, first) on.
  Lot lot(int64_t row, int64_t first, int64_t count) const {
    Lot lot{{}, {}, {}, {}, x.step(), area()};
    for (int64_t g = first; g < first + count; ++g) lot.members.push_back(y.count(row) * x.count(g));
    for (int64_t i = 0; i < y.count(row); ++i) {
      const int64_t line = (y.begin(row) + i * y.step()) * x.size;
      const auto array = [&](int64_t g, int64_t j) { return g * lot.area + i * x.count(first + g) + j; };
      const auto add_from = [&](int64_t g, int64_t j) {
        const int64_t map = line + x.begin(first + g), members = x.count(first + g);
        if (x.step() == 1)
          for (; j + 8 <= members; j += 8) lot.runs.push_back({map + j, array(g, j)});
        for (; j < members; ++j) lot.singles.push_back({map + j * x.step(), array(g, j)});
      };
      int64_t g = 0;
      for (; !x.local && g + 8 <= count && x.count(first + g + 7) >= 8; g += 8) {
        const int64_t tiled = x.count(first + g + 7);  // no group of a lattice has more members than those before it
        for (int64_t j = 0; j < tiled; j += 8) {
          const int64_t at = std::min(j, tiled - 8);  // the last tiles overlap
          lot.tiles.push_back({line + x.begin(first + g) + at * x.step(), {}});
          for (int64_t k = 0; k < 8; ++k) lot.tiles.back().arrays[k] = array(g + k, at);
        }
        for (int64_t k = 0; k < 8; ++k) add_from(g + k, tiled);
      }
      for (; g < count; ++g) add_from(g, 0);
    }
    return lot;
  }
};

// body(image, lot) over the groups [begin, end) of the batch.
template <class S, class Body>
void each_lot(const Problem<S>& p, int64_t begin, int64_t end, const Body& body) {
  const int64_t across = p.x.groups(), down = p.y.groups();
  for (int64_t at = begin; at < end;) {
    const int64_t row = at / across % down, first = at % across;
    const int64_t count = std::min({p.together(), across - first, end - at});
    body(at / across / down, p.lot(row, first, count));
    at += count;
  }
}

#define SEGOPS_ISA_FILE "segops/interlaced_attention_isa.h"
#include "segops/foreach_isa.h"

// `squares`: how many arrays as large as its weights each group takes.
template <class S>
void each_group(const Problem<S>& p, Parallel& parallel, int squares,
                void (*pass)(const Problem<S>&, int64_t, int64_t)) {
  require_memory(double(parallel.threads()) * squares * p.together() * p.square() * sizeof(Sum<S>),
                 "interlaced_attention");
  const int64_t work = p.padded() * p.padded() * (p.dims + p.channels);
  parallel.range(p.groups(), 1 + (int64_t(1) << 17) / work, [&](int64_t begin, int64_t end) { pass(p, begin, end); });
}

template <class S>
void forward(const Problem<S>& p, Parallel& parallel) {
  each_group(p, parallel, 1, SEGOPS_BY_ISA(attend<S>));
}

template <class S>
void backward(const Problem<S>& p, Parallel& parallel) {
  each_group(p, parallel, 3, SEGOPS_BY_ISA(differentiate<S>));
}

}  // namespace segops::interlaced
