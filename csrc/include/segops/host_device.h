// Arithmetic that CPU and GPU share: what CPU tests cover then holds for the kernels that run on a device.
#pragma once

#if defined(__CUDACC__)
#define SEGOPS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SEGOPS_HOST_DEVICE inline __attribute__((always_inline))
#endif
