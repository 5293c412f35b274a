// The step of the Jaccard loss in closed form; see segops/reference/lovasz_grad.py.
#pragma once

#include <cstdint>

#include "segops/host_device.h"

namespace segops {

// By how much the Jaccard loss grows at an element: `all` > 0 foreground elements in all, `before` of them and
// `background` of the others before it, in the order of falling errors. Counts are exact; T only rounds them and their
// quotient, of which there is one for both kinds of elements, as vectors like it.
template <class T>
SEGOPS_HOST_DEVICE T jaccard_quotient(bool foreground, int64_t all, int64_t before, int64_t background) {
  const T wide = T(all + background), above = T(all - before), below = T(all + background + 1);
  return (foreground ? T(1) : above) / (wide * (foreground ? T(1) : below));
}

// Without foreground the loss is 0, then 1 for ever.
template <class T>
SEGOPS_HOST_DEVICE T jaccard_step(bool foreground, int64_t all, int64_t before, int64_t background) {
  return all == 0 ? T(background == 0) : jaccard_quotient<T>(foreground, all, before, background);
}

}  // namespace segops
