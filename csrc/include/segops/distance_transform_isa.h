// No include guard: compiled once for each instruction set (see foreach_isa.h) by distance_transform.h, which explains
// kFar.

// Rows to the nearest pixel above of another label; 0 where the label is 0. `above` is null in the first row.
template <class T>
void scan_down(const T* labels, const T* above, const int32_t* steps_above, int64_t count, int32_t* steps) {
  if (above == nullptr) {
    for (int64_t x = 0; x < count; ++x) steps[x] = labels[x] == 0 ? 0 : kFar;
    return;
  }
  for (int64_t x = 0; x < count; ++x) steps[x] = labels[x] == 0 ? 0 : labels[x] == above[x] ? steps_above[x] + 1 : 1;
}

// The least of that and the same of pixels below.
template <class T>
void scan_up(const T* labels, const T* below, const int32_t* steps_below, int64_t count, int32_t* steps) {
  for (int64_t x = 0; x < count; ++x) {
    const int32_t other = labels[x] == below[x] ? steps_below[x] + 1 : 1;
    steps[x] = other < steps[x] ? other : steps[x];
  }
}

template <class Real>
void roots(const Real* squares, int64_t count, float* out) {
  for (int64_t x = 0; x < count; ++x)
    out[x] = float(sizeof(Real) == 4 ? __builtin_sqrtf(squares[x]) : __builtin_sqrt(squares[x]));
}
