// The most uncertain cells of a grid: margins of the two largest logits, streamed into a selection.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "segops/parallel.h"
#include "segops/smallest.h"

namespace segops::uncertain {

// The k most uncertain of the cells of each of `batch` images. feed(selection, image, begin, end) pushes the margins of
// rows begin to end; take(image, candidates, k) gets the cells, most uncertain first. Images are cut into pieces of
// rows where there are more threads than images.
template <class T, class Feed, class Take>
void select(int64_t batch, int64_t height, int64_t width, int64_t k, Parallel& parallel, const Feed& feed,
            const Take& take) {
  if (batch == 0) return;
  const int64_t pieces = std::clamp<int64_t>(parallel.threads() / batch, 1, std::max<int64_t>(1, height));
  const int64_t at_once = std::min<int64_t>(batch, parallel.threads());  // images whose candidates are in memory
  for (int64_t first = 0; first < batch; first += at_once) {
    const int images = int(std::min(at_once, batch - first));
    std::vector<Smallest<T>> found;
    for (int64_t i = 0; i < images * pieces; ++i) {
      const int64_t rows =
          Parallel::cut(height, int(i % pieces) + 1, int(pieces)) - Parallel::cut(height, int(i % pieces), int(pieces));
      found.emplace_back(k, i % pieces == 0 ? height * width : rows * width);  // the first gets all of them in the end
    }
    parallel.run(int(images * pieces), [&](int i) {
      const int piece = int(i % pieces);
      feed(found[i], first + i / pieces, Parallel::cut(height, piece, int(pieces)),
           Parallel::cut(height, piece + 1, int(pieces)));
    });
    parallel.run(images, [&](int i) {
      Smallest<T>& all = found[i * pieces];
      for (int64_t piece = 1; piece < pieces; ++piece) all.append(found[i * pieces + piece]);
      const auto [candidates, count] = all.sorted();
      take(first + i, candidates, count);
    });
  }
}

// Cells as results: flat indices, and their centres as (x, y) in units of the image's width and height.
template <class T>
void write_cells(const typename Smallest<T>::Candidate* cells, int64_t k, int64_t height, int64_t width,
                 int64_t* indices, T* points) {
  for (int64_t i = 0; i < k; ++i) {
    const int64_t cell = cells[i].place;
    indices[i] = cell;
    points[2 * i] = (T(cell % width) + T(0.5)) / T(width);
    points[2 * i + 1] = (T(cell / width) + T(0.5)) / T(height);
  }
}

}  // namespace segops::uncertain
