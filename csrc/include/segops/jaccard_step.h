// The step of the Jaccard loss in closed form; see segops/reference/lovasz_grad.py.
#pragma once

#include <cstdint>

#include "segops/host_device.h"

namespace segops {

// By how much the Jaccard loss grows at an element: `all` foreground elements in all, `before` of them and `background`
// of the others before it, in the order of falling errors. Counts are exact; T only rounds them and their quotient.
template <class T>
SEGOPS_HOST_DEVICE T jaccard_step(bool foreground, int64_t all, int64_t before, int64_t background) {
  if (all == 0) return T(background == 0);  // without foreground the loss is 0, then 1 for ever
  const T wide = T(all + background);
  return foreground ? T(1) / wide : T(all - before) / (wide * T(all + background + 1));
}

}  // namespace segops
